"""Conversations: kept in the store, answered on the runtime's loop, whatever the browser does."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from typing import Any

from core.answers import Answer, LiveAnswer
from core.errors import WorkbenchError
from core.runtime import Runtime
from core.store import Conversation, Store, StoredMessage, is_alive, this_process
from core.types import Message

_log = logging.getLogger(__name__)
_TITLE_CHARACTERS = 60
_CLOSE_PATIENCE_S = 10.0


class Chats:
    """All conversations of one workspace. Every method returns at once, from any thread."""

    def __init__(self, runtime: Runtime, store: Store) -> None:
        self._runtime = runtime
        self._store = store
        self._asking = threading.Lock()  # two tabs may ask at once: only one gets the conversation
        self._lock = threading.Lock()
        self._live: dict[str, tuple[str, Answer, Future[None]]] = {}
        for message in store.messages_in_state("generating"):
            if not _is_answering(message):
                store.update_message(message.message_id, state="interrupted")

    def start(self, conversation_id: str, text: str, params: Mapping[str, Any]) -> None:
        """Append the user's `text` and answer it. Raises WorkbenchError while an answer is generated."""
        with self._asking:
            self._refuse_while_live(conversation_id)
            conversation = self._conversation(conversation_id)
            title = None if conversation.title else title_of(text)
            self._answer(conversation, params, asked=text, title=title)

    def regenerate(self, conversation_id: str, params: Mapping[str, Any]) -> None:
        """Answer the last user message again, in place of its answer. Raises as `start`."""
        with self._asking:
            self._refuse_while_live(conversation_id)
            conversation = self._conversation(conversation_id)
            turns = self._store.messages(conversation_id)
            asked = [turn.position for turn in turns if turn.role == "user"]
            if not asked:
                raise WorkbenchError("There is nothing to answer again.", hint="Write a message first.")
            self._store.delete_messages_from(conversation_id, asked[-1] + 1)
            self._answer(conversation, params)

    def stop(self, conversation_id: str) -> None:
        """Abort the answer being generated, if there is one; its text so far is kept."""
        with self._lock:
            entry = self._live.get(conversation_id)
        if entry:
            entry[1].stop(self._runtime)

    def live(self, conversation_id: str) -> LiveAnswer | None:
        """The answer being generated now. None: there is none, and the store has all there is."""
        with self._lock:
            entry = self._live.get(conversation_id)
        return entry[1].live() if entry else None

    def clear(self, conversation_id: str) -> None:
        """Remove all turns; an answer being generated is stopped first."""
        self.stop(conversation_id)
        with self._lock:  # forgotten at once: what it still writes goes to a message that is gone
            self._live.pop(conversation_id, None)
        self._store.delete_messages_from(conversation_id, 0)
        self._store.update_conversation(conversation_id, title="")

    def delete(self, conversation_id: str) -> None:
        """Remove the conversation with all its turns."""
        self.clear(conversation_id)
        self._store.delete_conversation(conversation_id)

    def close(self) -> None:
        """Stop every answer, keeping its text as "interrupted". Waits for the last saves."""
        with self._lock:
            entries = list(self._live.values())
        for _, answer, _ in entries:
            answer.stop(self._runtime, "interrupted")
        wait([future for _, _, future in entries], timeout=_CLOSE_PATIENCE_S)

    def _answer(
        self,
        conversation: Conversation,
        params: Mapping[str, Any],
        *,
        asked: str | None = None,
        title: str | None = None,
    ) -> None:
        """Answer the conversation as it is, or with the question `asked` added to it."""
        conversation_id = conversation.conversation_id
        history = _messages(conversation.system, self._store.messages(conversation_id), asked)
        answer = Answer(history, params)
        turns = [] if asked is None else [("user", asked, "complete")]
        *_, message = self._store.add_messages(
            conversation_id,
            [*turns, ("assistant", "", "generating")],
            details={**answer.details, **this_process()},
            title=title,
        )
        with self._lock:
            future = self._runtime.spawn(self._run(conversation_id, message.message_id, answer))
            self._live[conversation_id] = (message.message_id, answer, future)

    async def _run(self, conversation_id: str, message_id: str, answer: Answer) -> None:
        async def save() -> None:
            values = {"content": answer.text, "state": answer.state, "details": answer.details}
            if answer.state == "generating":
                values["details"] |= this_process()
            try:
                await asyncio.to_thread(self._store.update_message, message_id, **values)
            except WorkbenchError:  # a full disk must not end the answer that somebody reads right now
                _log.exception("The answer %s could not be saved", message_id)

        try:
            await answer.run(self._runtime, save)
        finally:
            with self._lock:  # after the last save, so that live() None means: the store has it all
                entry = self._live.get(conversation_id)
                if entry and entry[0] == message_id:
                    del self._live[conversation_id]

    def _conversation(self, conversation_id: str) -> Conversation:
        conversation = self._store.conversation(conversation_id)
        if conversation is None:
            raise WorkbenchError(
                f"There is no conversation {conversation_id}.", hint="It was deleted; start a new one."
            )
        return conversation

    def _refuse_while_live(self, conversation_id: str) -> None:
        if self.live(conversation_id):
            raise WorkbenchError(
                "This conversation is being answered.", hint="Wait for the answer, or stop it first."
            )


def title_of(text: str) -> str:
    """The first words of a message, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= _TITLE_CHARACTERS else line[: _TITLE_CHARACTERS - 1].rstrip() + "…"


def _messages(system: str, history: Sequence[StoredMessage], asked: str | None) -> list[Message]:
    """What the model is shown. A question that got no answer (refused, stopped at once) is left out:

    templates want user and assistant to alternate, and a message that was
    refused for its length must not spoil the next one.
    """
    told = [turn.as_message() for turn in history if turn.role == "user" or turn.content]
    if asked is not None:
        told.append(Message("user", asked))
    answered = [
        turn
        for turn, following in zip(told, [*told[1:], None], strict=True)
        if not (turn.role == "user" and following is not None and following.role == "user")
    ]
    return [*([Message("system", system)] if system.strip() else []), *answered]


def _is_answering(message: StoredMessage) -> bool:
    """Whether another process that lives generates this answer. Our own is new and generates none yet."""
    owner = {name: message.details.get(name) for name in ("owner_pid", "owner_started")}
    return owner != this_process() and is_alive(owner["owner_pid"], owner["owner_started"])
