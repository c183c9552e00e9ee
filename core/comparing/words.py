"""Which words of an answer another one does not have. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import lru_cache

# scripts that put no space between words are compared by the character
_ALONE = r"\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_LETTERS = rf"(?:(?![{_ALONE}])[^\W_])+"
_WORD = re.compile(rf"[{_ALONE}]|{_LETTERS}(?:['’\-]{_LETTERS})*|\s+|.", re.DOTALL)
MOST_WORDS = 4_000
"""Longer texts are shown without differences: finding them takes time that grows with the square."""

Part = tuple[bool, str]
"""(whether the other text lacks it, text)"""


@lru_cache(maxsize=2048)
def changed_words(text: str, other: str) -> tuple[Part, ...]:
    """`text` in parts, each marked when `other` does not have it there. The parts joined are `text`."""
    ours, theirs = _WORD.findall(text), _WORD.findall(other)
    if max(len(ours), len(theirs)) > MOST_WORDS:
        return ((False, text),) if text else ()
    matcher = SequenceMatcher(None, _compared(ours), _compared(theirs), autojunk=False)
    parts: list[Part] = []
    for kind, start, end, _other_start, _other_end in matcher.get_opcodes():
        if start < end:
            _add(parts, kind != "equal", "".join(ours[start:end]))
    return tuple(parts)


def _compared(words: Sequence[str]) -> list[str]:
    """White space is all alike: a line broken elsewhere is no difference."""
    return [" " if word.isspace() else word for word in words]


def _add(parts: list[Part], changed: bool, text: str) -> None:
    """Append; joined to what is before where it is of the same kind, or only white space is between."""
    if parts and parts[-1][0] == changed:
        parts[-1] = (changed, parts[-1][1] + text)
    elif changed and len(parts) > 1 and parts[-1][1].isspace():
        space = parts.pop()[1]
        parts[-1] = (True, parts[-1][1] + space + text)
    else:
        parts.append((changed, text))
