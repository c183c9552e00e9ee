"""What would be interrupted if the engine went now, in words."""

from __future__ import annotations

from pages.parts import session
from pages.parts.charts import counted

_FATES = {
    "batch runs": ("batch run", "goes on when an engine is back"),
    "comparisons": ("comparison", "goes on when an engine is back"),
    "chats": ("chat answer", "ends as it is"),
    "benchmarks": ("benchmark", "ends with what it has measured"),
    "API requests": ("API request", "ends with an error"),
}


def in_use_words(doing: str) -> str:
    """What is at work and what becomes of it if somebody is `doing` that; "" when nothing is."""
    at_work = session.runtime().in_use()
    if not at_work:
        return ""
    parts = [f"{counted(number, _FATES[kind][0])} ({_FATES[kind][1]})" for kind, number in at_work.items()]
    return f"{doing} interrupts {', '.join(parts)}."
