"""A report as sections of tables and charts, written as one HTML page or as Markdown.

Everything in it may come from outside: HTML is escaped by the template, Markdown letter by letter.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

import core

_TEMPLATE = Path(__file__).with_name("report.html")
_MARKDOWN = re.compile(r"([\\`*_\[\]<>|~$&@!#]|:(?=//|\w+:))")


@dataclass(frozen=True, slots=True)
class Cell:
    """A table's cell: text, more of it in small letters, a style of the page."""

    text: str
    more: str = ""
    style: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of a report; what is empty is left out. `charts` are (title, SVG)."""

    title: str
    about: str = ""
    heads: Sequence[str] = ()
    rows: Sequence[Sequence[Cell]] = ()
    charts: Sequence[tuple[str, Markup]] = ()
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """`about` is one sentence below the title."""

    title: str
    about: str
    warnings: Sequence[str] = ()
    sections: Sequence[Section] = ()


def html(report: Report) -> str:
    return _template().render(
        title=report.title,
        about=report.about,
        warnings=report.warnings,
        sections=report.sections,
        version=core.__version__,
    )


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))


def markdown(report: Report) -> str:
    parts = [f"# {_plain(report.title)}", _plain(report.about)]
    parts += [f"> {_plain(text)}" for text in report.warnings]
    for section in report.sections:
        parts.append(f"## {_plain(section.title)}")
        if section.about:
            parts.append(_plain(section.about))
        if section.rows:
            head = f"| {' | '.join(_plain(text) for text in section.heads)} |"
            rule = f"|{' --- |' * len(section.heads)}"
            parts.append("\n".join([head, rule, *(_row(row) for row in section.rows)]))
        if section.text:
            fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", section.text)), default=0))
            parts.append(f"{fence}json\n{section.text}\n{fence}")
    parts.append(f"vLLM Workbench {core.__version__}")
    return "\n\n".join(parts) + "\n"


def _row(cells: Sequence[Cell]) -> str:
    """The first column's explanation stays out: it is for reading beside a table, not for pasting."""
    first, *others = cells
    texts = [first.text] + [f"{cell.text} ({cell.more})" if cell.more else cell.text for cell in others]
    return f"| {' | '.join(_plain(text) for text in texts)} |"


def _plain(text: str) -> str:
    """One line that Markdown shows letter by letter: it makes no link, image, mention or HTML of it."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))
