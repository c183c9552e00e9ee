"""Table rows into requests: rendered, in the model's chat form, tokenized many at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from core import prompts, results, tables
from core.engines.base import Engine
from core.errors import TemplateError, WorkbenchError
from core.prompts import PromptRecipe
from core.results import InputRow, Result


@dataclass(frozen=True, slots=True)
class Item:
    """A row ready for the engine."""

    row: int
    token_ids: Sequence[int]


class Preparer:
    """Rows of the table into token ids, or into the reason why not. Runs on the reader's thread."""

    def __init__(self, recipe: PromptRecipe, reader: Any, engine: Engine) -> None:
        self._reader = reader
        self._engine = engine
        self._columns = tables.info(reader).columns
        self._position = {column.name: index for index, column in enumerate(self._columns)}
        self._recipe = recipe

    def prepare(self, wanted: Sequence[int]) -> list[Item | Result]:
        """One entry a row, in order."""
        rows = results.read_rows(self._reader, self._columns, wanted, only=self._recipe.variables)
        ready: dict[int, Any] = {row.row: self._chat(row) for row in rows}
        chats = {row: chat for row, chat in ready.items() if isinstance(chat, list)}
        for row, outcome in zip(chats, encode_chats(self._engine, list(chats.values())), strict=True):
            ready[row] = Item(row, outcome) if isinstance(outcome, list) else _failed(row, outcome)
        return [self._fitting(item) for item in ready.values()]

    def _chat(self, row: InputRow) -> Any:
        if row.problem:
            return Result(row=row.row, status="error", error=row.problem)
        if row.cells is not None:
            missing = [name for name in self._recipe.variables if self._position[name] >= row.cells]
            if missing:
                cells = f"it has {row.cells} of {len(self._columns)} cells"
                message = f"line {row.line} ends before column {missing[0]!r}: {cells}"
                return Result(row=row.row, status="error", error=message)
        try:
            chat = self._recipe.messages(row.values)
        except TemplateError as error:
            return _failed(row.row, error)
        return chat or Result(row=row.row, status="skipped", error="The prompt is empty.")

    def _fitting(self, item: Item | Result) -> Item | Result:
        limit = self._engine.info.max_model_len
        if isinstance(item, Result) or len(item.token_ids) < limit:
            return item
        tokens = len(item.token_ids)
        message = f"The prompt has {tokens:,} tokens; the context holds {limit:,}, the answer included."
        return Result(row=item.row, status="error", error=message, prompt_tokens=tokens)


def _failed(row: int, error: WorkbenchError) -> Result:
    return Result(row=row, status="error", error=str(error))


def encode_chats(engine: Engine, chats: Sequence[Any]) -> list[list[int] | TemplateError]:
    """Token ids of each chat by the model's own template, or the template's refusal of that one chat."""
    if not chats:
        return []
    if not engine.info.has_chat_template:
        return list(engine.encode([prompts.plain_text(chat) for chat in chats], add_special_tokens=True))
    try:
        return list(engine.encode(engine.render_chat(chats)))
    except TemplateError as error:
        if len(chats) == 1:
            return [error]
        # one chat is at fault: find it, so that only its row fails
        return [outcome for chat in chats for outcome in encode_chats(engine, [chat])]
