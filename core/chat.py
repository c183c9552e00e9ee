"""Conversations answered on the runtime's loop, whatever the browser does."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any

from core import reasoning
from core.adapters.registry import Adapters
from core.answers import Answer, Earlier, LiveAnswer
from core.chat_options import check_answers
from core.conversations import (
    ChatOptions,
    Conversation,
    Conversations,
    NewMessage,
    StoredMessage,
    title_of,
)
from core.errors import WorkbenchError
from core.prompt_styles import Wrappers
from core.runtime import Runtime
from core.store import Store, this_process
from core.types import Message

_log = logging.getLogger(__name__)
_CLOSE_PATIENCE_S = 10.0
_SAVE_AGAIN_S = 2.0


@dataclass(frozen=True, slots=True)
class _Live:
    answer: Answer
    future: Future[None]


class Chats:
    """All conversations of one workspace. Every method returns at once, from any thread.

    What is kept is in `conversations`; what is being generated is told by `live`. A conversation
    is answered one message at a time (with any number of versions): what asks for more raises
    WorkbenchError meanwhile.
    """

    def __init__(self, runtime: Runtime, store: Store) -> None:
        self.conversations = Conversations(store)
        self._runtime = runtime
        self._wrappers = Wrappers(store)
        self._adapters = Adapters(runtime.settings, store)
        self._asking = threading.Lock()  # two tabs may ask at once: only one gets the conversation
        self._lock = threading.Lock()
        self._live: dict[str, dict[str, _Live]] = {}
        self._is_closed = False
        self._interrupt_what_nobody_generates()
        runtime.add_user("chats", self._count_live)

    def create(
        self, system: str = "", params: Mapping[str, Any] | None = None, options: ChatOptions | None = None
    ) -> Conversation:
        return self.conversations.add(system=system, params=params, options=options)

    def send(
        self, conversation_id: str, text: str, params: Mapping[str, Any], *, n: int | None = None
    ) -> tuple[str, ...]:
        """Add the user's `text` to the branch that is shown, and answer it; returns the answers' ids.

        `n` answers at once, by default as many as the conversation's options say.
        """
        with self._asking:
            conversation = self._free(conversation_id)
            _refuse_blank(text)
            path = [turn.message for turn in self.conversations.thread(conversation_id)]
            return self._ask(conversation, path, params, n, asked=text)

    def regenerate(
        self, message_id: str, params: Mapping[str, Any], *, n: int | None = None
    ) -> tuple[str, ...]:
        """Answer again: a new version of this answer, or an answer to this user's message; as `send`."""
        with self._asking:
            conversation, path = self._free_path(message_id)
            path = path if path[-1].role == "user" else path[:-1]
            if not path or path[-1].role != "user":
                raise WorkbenchError("There is nothing to answer again.", hint="Write a message first.")
            return self._ask(conversation, path, params, n)

    def edit(self, message_id: str, text: str, params: Mapping[str, Any]) -> tuple[str, ...]:
        """A new version of this message, which then is shown; what was there stays beside it.

        A user's message is answered anew (the answers' ids are returned); an answer just has this text.
        """
        with self._asking:
            conversation, path = self._free_path(message_id)
            _refuse_blank(text)
            if path[-1].role == "user":
                return self._ask(conversation, path[:-1], params, None, asked=text)
            edited = NewMessage("assistant", text, details={"edited": True})
            self.conversations.append(conversation.conversation_id, path[-1].parent_id, [edited])
            return ()

    def go_on(self, message_id: str, params: Mapping[str, Any]) -> None:
        """Continue an answer that was cut, stopped or edited, in place; what is there stays if it fails."""
        with self._asking:
            conversation, path = self._free_path(message_id)
            message = path[-1]
            if message.role != "assistant" or message.details.get("finish_reason") == "stop":
                raise WorkbenchError("This answer came to its end.", hint="Regenerate or edit it instead.")
            if self.conversations.has_followers(message_id):
                raise WorkbenchError("The chat went on after this answer.", hint="Branch from it first.")
            if params.get("structured_outputs"):
                raise WorkbenchError("An answer with a given shape can't go on.", hint="Regenerate it.")
            earlier = Earlier(message.content, message.details)
            messages = prompt_messages(conversation.system, path[:-1], None, conversation.options.reasoning)
            answer = self._answer(conversation, messages, _of_sample(params, 0), earlier)
            details = {**message.details, **this_process()}
            self.conversations.update_message(message_id, state="generating", details=details)
            self._spawn(conversation.conversation_id, {message_id: answer})

    def stop(self, conversation_id: str, message_id: str | None = None) -> None:
        """Abort the answers being generated, or just this one; their texts so far are kept."""
        for its_id, live in self._live_of(conversation_id).items():
            if message_id in (None, its_id):
                live.answer.stop(self._runtime)

    def live(self, conversation_id: str) -> dict[str, LiveAnswer]:
        """Message id -> the answer being generated now. Empty: the store has all there is."""
        return {its_id: one.answer.live() for its_id, one in self._live_of(conversation_id).items()}

    def select(self, message_id: str) -> None:
        """Show this version, and the newest of what followed it."""
        self.conversations.select(message_id)

    def branch(self, message_id: str) -> Conversation:
        """A new conversation that goes on from a copy of this message and all before it."""
        message = self.conversations.message(message_id)
        if message.state == "generating":
            raise WorkbenchError("This answer is not complete yet.", hint="Wait for it, or stop it first.")
        return self.conversations.branch(message_id)

    def clear(self, conversation_id: str) -> None:
        """Remove all messages; answers being generated are stopped first."""
        with self._asking:
            self._forget(conversation_id)
            self.conversations.clear(conversation_id)

    def delete(self, conversation_id: str) -> None:
        """Remove the conversation with all its messages."""
        with self._asking:
            self._forget(conversation_id)
            self.conversations.delete(conversation_id)

    def close(self) -> None:
        """Stop every answer, keeping its text as "interrupted". Waits for the last saves."""
        self._is_closed = True
        with self._lock:
            entries = [one for answers in self._live.values() for one in answers.values()]
        for entry in entries:
            entry.answer.stop(self._runtime, "interrupted")
        wait([entry.future for entry in entries], timeout=_CLOSE_PATIENCE_S)

    # -- asking -------------------------------------------------------------

    def _ask(
        self,
        conversation: Conversation,
        path: Sequence[StoredMessage],
        params: Mapping[str, Any],
        n: int | None,
        *,
        asked: str | None = None,
    ) -> tuple[str, ...]:
        """Answer the path as it is, or with the user's message `asked` behind it."""
        n = conversation.options.n if n is None else n
        check_answers(n)
        sets = [_of_sample(params, number) for number in range(n)]
        messages = prompt_messages(conversation.system, path, asked, conversation.options.reasoning)
        first = self._answer(conversation, messages, sets[0])
        answers = [first, *(first.version(one) for one in sets[1:])]
        owned = [{**answer.details, **this_process()} for answer in answers]
        added = self.conversations.append(
            conversation.conversation_id,
            path[-1].message_id if path else None,
            [] if asked is None else [NewMessage("user", asked)],
            [NewMessage("assistant", "", "generating", details) for details in owned],
            title=None if conversation.title or asked is None else title_of(asked),
        )
        ids = [message.message_id for message in added if message.role == "assistant"]
        self._spawn(conversation.conversation_id, dict(zip(ids, answers, strict=True)))
        return tuple(ids)

    def _answer(
        self,
        conversation: Conversation,
        messages: Sequence[Message],
        params: Mapping[str, Any],
        earlier: Earlier | None = None,
    ) -> Answer:
        options = conversation.options
        return Answer(
            messages,
            params,
            style=options.style,
            wrapper=self._wrappers.find(options.style),
            template_options=options.template_options,
            top_logprobs=options.top_logprobs,
            earlier=earlier,
            adapter=self._adapters.lora(options.adapter),
        )

    def _spawn(self, conversation_id: str, answers: Mapping[str, Answer]) -> None:
        with self._lock:
            live = self._live.setdefault(conversation_id, {})
            for message_id, answer in answers.items():
                future = self._runtime.spawn(self._run(conversation_id, message_id, answer))
                live[message_id] = _Live(answer, future)

    async def _run(self, conversation_id: str, message_id: str, answer: Answer) -> None:
        is_kept = False

        async def save() -> None:
            nonlocal is_kept
            details = answer.details
            if answer.state == "generating":  # thousands of tokens are not written again twice a second
                details |= this_process()
            elif logprobs := answer.logprobs:
                details["logprobs"] = logprobs
            values = {"content": answer.text, "state": answer.state, "details": details}
            try:
                await asyncio.to_thread(self.conversations.update_message, message_id, **values)
                is_kept = answer.state != "generating"
            except WorkbenchError:  # a full disk must not end the answer that somebody reads right now
                _log.exception("The answer %s could not be saved", message_id)

        try:
            await answer.run(self._runtime, save)
            while not is_kept and not self._is_closed:  # there is room again some time
                await asyncio.sleep(_SAVE_AGAIN_S)
                await save()
        finally:
            with self._lock:  # after the last save, so that what is not live is in the store
                live = self._live.get(conversation_id, {})
                if message_id in live and live[message_id].answer is answer:
                    del live[message_id]
                    if not live:
                        del self._live[conversation_id]

    # -- who is at it -------------------------------------------------------

    def _count_live(self) -> int:
        with self._lock:
            return sum(map(len, self._live.values()))

    def _live_of(self, conversation_id: str) -> dict[str, _Live]:
        with self._lock:
            return dict(self._live.get(conversation_id, {}))

    def _forget(self, conversation_id: str) -> None:
        """Stop its answers, and forget them at once: what they still write goes to messages that are gone."""
        self.stop(conversation_id)
        with self._lock:
            self._live.pop(conversation_id, None)

    def _free(self, conversation_id: str) -> Conversation:
        """The conversation, unless one of its answers is being generated, here or in another process."""
        others = [one for one in self.conversations.unfinished(conversation_id) if _is_answering(one)]
        if self._live_of(conversation_id) or others:
            raise WorkbenchError(
                "This conversation is being answered.", hint="Wait for the answer, or stop it first."
            )
        return self._found(conversation_id)

    def _found(self, conversation_id: str) -> Conversation:
        conversation = self.conversations.get(conversation_id)
        if conversation is None:
            raise WorkbenchError(
                f"There is no conversation {conversation_id}.", hint="It was deleted; start a new one."
            )
        return conversation

    def _free_path(self, message_id: str) -> tuple[Conversation, list[StoredMessage]]:
        """The messages up to this one, read once nothing is written to them any more."""
        conversation = self._free(self.conversations.message(message_id).conversation_id)
        return conversation, self.conversations.path(message_id)

    def _interrupt_what_nobody_generates(self) -> None:
        """Answers of processes that died. Our own process is new and generates none yet."""
        for message in self.conversations.unfinished():
            if not _is_answering(message):
                self.conversations.update_message(message.message_id, state="interrupted")


def _is_answering(message: StoredMessage) -> bool:
    """Whether another process that lives generates this answer."""
    return message.state == "generating" and not this_process().items() <= message.details.items()


def _refuse_blank(text: str) -> None:
    if not text.strip():
        raise WorkbenchError("The message is empty.", hint="Write one.")


def _of_sample(params: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The parameters of one of several answers: equal seeds would give equal answers."""
    one = {name: value for name, value in params.items() if name != "n"}
    if one.get("seed") is not None:
        one["seed"] += number
    return one


def prompt_messages(
    system: str, path: Sequence[StoredMessage], asked: str | None, parser: str = reasoning.AUTO
) -> list[Message]:
    """What the model is shown: answers without their reasoning, as the models are trained.

    A question that got no answer (refused, stopped at once) is left out: templates want user and
    assistant to alternate, and a message that was refused for its length must not spoil the next one.
    """
    told = []
    for message in path:
        if message.role == "user":
            told.append(message.as_message())
        elif message.content:
            inside = bool(message.details.get("begins_inside"))
            answer = reasoning.split(message.content, parser, begins_inside=inside).answer
            # all of it where the answer was cut while the model was thinking
            told.append(Message("assistant", answer or message.content))
    if asked is not None:
        told.append(Message("user", asked))
    answered = [
        turn
        for turn, following in zip(told, [*told[1:], None], strict=True)
        if not (turn.role == "user" and following is not None and following.role == "user")
    ]
    return [*([Message("system", system)] if system.strip() else []), *answered]
