"""Rows into prompts: column templates in Jinja's sandbox.

A template sees the columns by name (`{{ movie_title }}`) and the whole row as
`row`, for names that are no identifiers (`{{ row["review text"] }}`). It comes
from outside and is not trusted: no attribute of Python is reachable, and loops,
repetition and output are bounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

from core.errors import TemplateError, UnknownColumn
from core.types import Message

MAX_TEMPLATE_CHARS = 100_000
MAX_OUTPUT_CHARS = 4_000_000
MAX_LOOP_DEPTH = 2
MAX_RANGE = 1_000
ROW = "row"

_WIDTH_METHODS = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs", "replace"})
_WIDTH_FILTERS = ("center", "format", "indent", "wordwrap", "batch", "slice", "pprint", "xmlattr", "urlize")


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with the ways to ask for unbounded time or memory closed as well."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(undefined=jinja2.StrictUndefined, finalize=_finalize, keep_trailing_newline=True)
        self.globals = {"range": _bounded_range}
        for name in _WIDTH_FILTERS:
            self.filters.pop(name, None)
        self.filters["replace"] = _bounded_replace

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if not (isinstance(left, int | float) and isinstance(right, int | float)):
            raise SecurityError(f"'{operator}' works on numbers only")
        if operator == "**" and abs(right) > 64:
            raise SecurityError("the exponent is too large")
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Any:
        if super().wrap_str_format(value) is not None:
            raise SecurityError("format() is not available in templates")
        return None

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str) and attr in _WIDTH_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)


def _finalize(value: Any) -> Any:
    return "" if value is None else value


def _bounded_replace(text: Any, old: str, new: str, count: int = -1) -> str:
    text = str(text)
    if len(text) + text.count(old) * len(new) > MAX_OUTPUT_CHARS:
        raise SecurityError(f"the text is over {MAX_OUTPUT_CHARS:,} characters")
    return text.replace(old, new, count)


def _bounded_range(*args: int) -> range:
    values = range(*args)
    if len(values) > MAX_RANGE:
        raise SecurityError(f"range() is limited to {MAX_RANGE} steps")
    return values


_environment = _Environment()


def column_reference(name: str) -> str:
    """How a template refers to the column `name`: `{{ name }}` or `{{ row["a name"] }}`."""
    if name.isidentifier() and name != ROW and not _is_reserved(name):
        return "{{ " + name + " }}"
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return '{{ row["' + escaped + '"] }}'


def _is_reserved(name: str) -> bool:
    try:
        return bool(meta.find_undeclared_variables(_environment.parse("{{ " + name + " }}")) != {name})
    except jinja2.TemplateSyntaxError:
        return True


class Template:
    """A compiled template over `columns`. `variables` are the columns it uses, in order of appearance.

    Raises TemplateError for a template that can't be compiled, UnknownColumn
    for one that names a column the table doesn't have.
    """

    def __init__(self, source: str, columns: Sequence[str]) -> None:
        if len(source) > MAX_TEMPLATE_CHARS:
            raise TemplateError(
                f"The template has {len(source):,} characters; {MAX_TEMPLATE_CHARS:,} are allowed.",
                hint="Put long texts into a column.",
            )
        self.source = source
        tree = self._parse(source)
        self._check_loops(tree)
        self._columns = tuple(columns)
        self.variables = self._find_variables(tree)
        self._compiled = _environment.from_string(source)

    def render(self, row: Mapping[str, Any]) -> str:
        """The prompt of one row; `row` maps at least `variables` to values. Raises TemplateError."""
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._compiled.generate({**row, ROW: row}):
                size += len(piece)
                if size > MAX_OUTPUT_CHARS:
                    raise SecurityError(f"the text is over {MAX_OUTPUT_CHARS:,} characters")
                pieces.append(piece)
        except Exception as error:  # whatever a template from outside does, it fails its own row only
            raise TemplateError(f"The template fails on this row: {error}.".replace("..", ".")) from error
        return "".join(pieces)

    @staticmethod
    def _parse(source: str) -> nodes.Template:
        try:
            tree = _environment.parse(source)
            _environment.compile(source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(
                f"The template can't be read: line {error.lineno}: {error.message}.".replace("..", "."),
                hint='Write {{ column }}, or {{ row["a column"] }} for a name with spaces or signs.',
            ) from error
        return tree

    @staticmethod
    def _check_loops(tree: nodes.Template) -> None:
        def depth(node: nodes.Node) -> int:
            below = max((depth(child) for child in node.iter_child_nodes()), default=0)
            return below + isinstance(node, nodes.For)

        if depth(tree) > MAX_LOOP_DEPTH:
            raise TemplateError(
                f"The template nests more than {MAX_LOOP_DEPTH} loops.", hint="Use fewer loops."
            )
        for forbidden in (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends, nodes.Macro):
            if next(tree.find_all(forbidden), None) is not None:
                raise TemplateError(
                    f"The template uses {forbidden.__name__.lower()}, which prompts can't.",
                    hint="Write it out in one template.",
                )

    def _find_variables(self, tree: nodes.Template) -> tuple[str, ...]:
        undeclared = meta.find_undeclared_variables(tree) - {"range"}
        used: dict[str, None] = {}
        row_parts: set[int] = set()
        for node in tree.find_all((nodes.Name, nodes.Getitem, nodes.Getattr)):
            if isinstance(node, nodes.Name):
                if node.name == ROW and id(node) not in row_parts:
                    used.update(dict.fromkeys(self._columns))  # the whole row: a loop over it, say
                elif node.name in undeclared and node.name != ROW:
                    used[node.name] = None
            elif isinstance(node.node, nodes.Name) and node.node.name == ROW:
                name = node.attr if isinstance(node, nodes.Getattr) else _constant(node.arg)
                if isinstance(name, str) and name not in ("items", "keys", "values", "get"):
                    used[name] = None
                    row_parts.add(id(node.node))
        unknown = [name for name in used if name not in self._columns]
        if unknown:
            shown = ", ".join(self._columns[:30]) + (" ..." if len(self._columns) > 30 else "")
            raise UnknownColumn(
                f"The template uses {_quoted(unknown)}, which the table doesn't have.",
                hint=f"Columns: {shown}.",
            )
        return tuple(sorted(used, key=lambda name: _position(self.source, name)))


def _constant(node: nodes.Node) -> Any:
    return node.value if isinstance(node, nodes.Const) else None


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _position(source: str, name: str) -> int:
    at = source.find(name)
    return at if at >= 0 else len(source)


def plain_text(messages: Sequence[Message]) -> str:
    """The prompt text for a model without a chat template: the turns, a blank line between them."""
    return "\n\n".join(message.content for message in messages)


def check_column(name: str, columns: Sequence[str]) -> None:
    """Raise UnknownColumn when the table has no column `name`."""
    if name not in columns:
        raise UnknownColumn(f"The table has no column {name!r}.", hint=f"Columns: {', '.join(columns[:30])}.")
