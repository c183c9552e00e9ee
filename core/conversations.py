"""Conversations as they are kept: each a tree of messages, of which one branch is shown.

A message follows its parent; messages with the same parent are versions of each other
(an answer regenerated, a question edited). The conversation's head is the newest message
of the branch that is shown.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import sqlalchemy as sa

from core.catalogue_schema import conversations as _conversations
from core.catalogue_schema import messages as _messages
from core.chat_options import ChatOptions
from core.errors import WorkbenchError
from core.message_tree import MessageTree
from core.store import MessageState, Store, is_alive, new_id
from core.transcripts import Transcript
from core.types import Message, Role

_TITLE_CHARACTERS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    conversation_id: str
    created_at: dt.datetime
    updated_at: dt.datetime
    title: str
    system: str
    params: Mapping[str, Any]
    options: ChatOptions
    head_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMessage:
    """One message as kept. `details` of an answer: its parameters, tokens, timing, finish reason, error.

    An answer whose process died reads as "interrupted": nobody was left to say so.
    """

    message_id: str
    conversation_id: str
    position: int
    role: Role
    content: str
    state: MessageState
    details: Mapping[str, Any]
    parent_id: str | None = None

    def as_message(self) -> Message:
        return Message(self.role, self.content)


@dataclass(frozen=True, slots=True)
class Turn:
    """A message of the branch that is shown.

    `versions` are the ids of all messages that follow the same parent, oldest first; it is the one
    at `index`.
    """

    message: StoredMessage
    versions: tuple[str, ...]
    index: int


@dataclass(frozen=True, slots=True)
class NewMessage:
    """A message to append."""

    role: Role
    content: str
    state: MessageState = "complete"
    details: Mapping[str, Any] = field(default_factory=dict)


class Conversations:
    """All conversations of one workspace. Every method is one transaction, from any thread."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def add(
        self,
        *,
        system: str = "",
        params: Mapping[str, Any] | None = None,
        options: ChatOptions | None = None,
        title: str = "",
    ) -> Conversation:
        now = dt.datetime.now(dt.UTC)
        made = Conversation(
            conversation_id=new_id(),
            created_at=now,
            updated_at=now,
            title=title,
            system=system,
            params=dict(params or {}),
            options=options or ChatOptions(),
        )
        self._store.execute(sa.insert(_conversations).values(_conversation_values(made)))
        return made

    def get(self, conversation_id: str) -> Conversation | None:
        row = self._store.first(_one(conversation_id))
        return _conversation(row) if row else None

    def list(self, limit: int = 50, search: str = "") -> list[Conversation]:
        """Last used first; with `search` those whose title or messages have these words, in any case."""
        query = sa.select(_conversations).order_by(_conversations.c.updated_at.desc()).limit(limit)
        if words := search.strip():
            told = sa.select(_messages.c.conversation_id).where(_contains(_messages.c.content, words))
            has_it = _contains(_conversations.c.title, words) | _conversations.c.conversation_id.in_(told)
            query = query.where(has_it)
        return [_conversation(row) for row in self._store.all(query)]

    def update(
        self,
        conversation_id: str,
        *,
        title: str | None = None,
        system: str | None = None,
        params: Mapping[str, Any] | None = None,
        options: ChatOptions | None = None,
    ) -> None:
        """Set what is given."""
        values = {"title": title, "system": system, "params": params, "options": options and asdict(options)}
        given = {name: value for name, value in values.items() if value is not None}
        self._store.execute(_set(conversation_id, **given))

    def rename(self, conversation_id: str, title: str) -> None:
        """Raises WorkbenchError for a blank title."""
        title = " ".join(title.split())
        if not title:
            raise WorkbenchError("The new name is empty.", hint="Write a name.")
        self.update(conversation_id, title=title)

    def clear(self, conversation_id: str) -> None:
        """Remove all messages and the title."""
        with self._store.transaction() as connection:
            connection.execute(sa.delete(_messages).where(_messages.c.conversation_id == conversation_id))
            connection.execute(_set(conversation_id, title="", head_id=None))

    def delete(self, conversation_id: str) -> None:
        with self._store.transaction() as connection:
            connection.execute(sa.delete(_messages).where(_messages.c.conversation_id == conversation_id))
            same = _conversations.c.conversation_id == conversation_id
            connection.execute(sa.delete(_conversations).where(same))

    # -- messages -----------------------------------------------------------

    def message(self, message_id: str) -> StoredMessage:
        """Raises WorkbenchError when there is none of that id."""
        row = self._store.first(sa.select(_messages).where(_messages.c.message_id == message_id))
        if row is None:
            raise WorkbenchError(
                "That message is no longer there.", hint="It was removed, perhaps: open the chat again."
            )
        return _message(row)

    def messages(self, conversation_id: str) -> list[StoredMessage]:
        """Those of all branches, in the order in which they were made."""
        query = sa.select(_messages).where(_messages.c.conversation_id == conversation_id)
        return [_message(row) for row in self._store.all(query.order_by(_messages.c.position))]

    def thread(self, conversation_id: str) -> list[Turn]:
        """The branch that is shown, from its first message to the head."""
        conversation = self.get(conversation_id)
        tree = self._tree(conversation_id)
        return self._turns(tree, tree.path(conversation.head_id)) if conversation else []

    def path(self, message_id: str) -> list[StoredMessage]:
        """From the first message of its branch to this one. Raises as `message`."""
        tree = self._tree(self.message(message_id).conversation_id)
        return [turn.message for turn in self._turns(tree, tree.path(message_id))]

    def has_followers(self, message_id: str) -> bool:
        """Whether the conversation went on after this message, on any branch."""
        query = sa.select(_messages.c.message_id).where(_messages.c.parent_id == message_id).limit(1)
        return self._store.first(query) is not None

    def unfinished(self, conversation_id: str | None = None) -> list[StoredMessage]:
        """Answers kept as "generating", of this or of all conversations. They read as all others do."""
        query = sa.select(_messages).where(_messages.c.state == "generating")
        if conversation_id is not None:
            query = query.where(_messages.c.conversation_id == conversation_id)
        return [_message(row) for row in self._store.all(query)]

    def append(
        self,
        conversation_id: str,
        parent_id: str | None,
        line: Sequence[NewMessage],
        versions: Sequence[NewMessage] = (),
        *,
        title: str | None = None,
    ) -> list[StoredMessage]:
        """Add `line` one after the other behind the parent, then `versions` beside each other.

        The head becomes the first of the versions, or the end of the line. One transaction: each
        waits for the disk, and somebody waits for the first token.
        """
        new = [*line, *versions]
        ids = [f"{new_id()}-{number}" for number in range(len(new))]
        with self._store.transaction() as connection:
            newest = sa.select(sa.func.max(_messages.c.position))
            last = connection.scalar(newest.where(_messages.c.conversation_id == conversation_id))
            start = 0 if last is None else last + 1
            added = [
                StoredMessage(
                    message_id=ids[number],
                    conversation_id=conversation_id,
                    position=start + number,
                    role=one.role,
                    content=one.content,
                    state=one.state,
                    details=dict(one.details),
                    parent_id=ids[min(number, len(line)) - 1] if number and line else parent_id,
                )
                for number, one in enumerate(new)
            ]
            connection.execute(sa.insert(_messages), [_values(message) for message in added])
            head = ids[len(line)] if versions else ids[-1]
            titled = {} if title is None else {"title": title}
            there = connection.execute(_set(conversation_id, head_id=head, **titled)).rowcount
            if not there:  # deleted in another tab; what was added is taken back
                raise _gone()
        return added

    def update_message(self, message_id: str, **values: Any) -> None:
        """Set content, state or details."""
        self._store.execute(sa.update(_messages).where(_messages.c.message_id == message_id).values(values))

    def select(self, message_id: str) -> None:
        """Show this message and the newest branch behind it. Raises as `message`."""
        message = self.message(message_id)
        head = self._tree(message.conversation_id).newest_after(message_id)
        same = _conversations.c.conversation_id == message.conversation_id
        self._store.execute(sa.update(_conversations).where(same).values(head_id=head))

    def branch(self, message_id: str) -> Conversation:
        """A new conversation with a copy of the messages up to this one. Raises as `message`."""
        path = self.path(message_id)
        of = self.get(path[0].conversation_id)
        title = f"{of.title} (branch)" if of.title and not of.title.endswith("(branch)") else of.title
        copied = self.add(system=of.system, params=of.params, options=of.options, title=title)
        line = [NewMessage(one.role, one.content, one.state, one.details) for one in path]
        self.append(copied.conversation_id, None, line)
        return self.get(copied.conversation_id)

    # -- in and out ---------------------------------------------------------

    def transcript(self, conversation_id: str) -> Transcript:
        """The branch that is shown, to export; answers without text (failed, stopped at once) left out."""
        conversation = self.get(conversation_id)
        if conversation is None:
            raise _gone()
        turns = [turn.message for turn in self.thread(conversation_id)]
        told = [turn.as_message() for turn in turns if turn.role == "user" or turn.content]
        system = [Message("system", conversation.system)] if conversation.system.strip() else []
        models = [turn.details["model"] for turn in turns if turn.details.get("model")]
        options = asdict(conversation.options)
        return Transcript(
            title=conversation.title,
            model=models[-1] if models else "",
            params=dict(conversation.params),
            options={} if conversation.options == ChatOptions() else options,
            messages=(*system, *told),
        )

    def add_from(self, transcript: Transcript) -> Conversation:
        """A new conversation with the transcript's messages."""
        system = [message.content for message in transcript.messages if message.role == "system"]
        asked = (message.content for message in transcript.messages if message.role == "user")
        made = self.add(
            system="\n\n".join(system),
            params=transcript.params,
            options=ChatOptions.of(transcript.options),
            title=transcript.title or title_of(next(asked, "")),
        )
        model = {"model": transcript.model} if transcript.model else {}
        line = [
            NewMessage(one.role, one.content, details=model if one.role == "assistant" else {})
            for one in transcript.messages
            if one.role != "system"
        ]
        if line:
            self.append(made.conversation_id, None, line)
        return self.get(made.conversation_id)

    # -- the tree -----------------------------------------------------------

    def _tree(self, conversation_id: str) -> MessageTree:
        query = sa.select(_messages.c.message_id, _messages.c.parent_id)
        query = query.where(_messages.c.conversation_id == conversation_id).order_by(_messages.c.position)
        return MessageTree({row["message_id"]: row["parent_id"] for row in self._store.all(query)})

    def _turns(self, tree: MessageTree, path: Sequence[str]) -> list[Turn]:
        """Only the path is read in full: versions that nobody looks at may be long."""
        rows = self._store.all(sa.select(_messages).where(_messages.c.message_id.in_(path)))
        found = {row["message_id"]: _message(row) for row in rows}
        turns = []
        for message_id in path:
            if message_id in found:  # or it was removed since the tree was read
                versions = tree.versions(message_id)
                turns.append(Turn(found[message_id], versions, versions.index(message_id)))
        return turns


def title_of(text: str) -> str:
    """The first words of a message, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= _TITLE_CHARACTERS else line[: _TITLE_CHARACTERS - 1].rstrip() + "…"


def _gone() -> WorkbenchError:
    return WorkbenchError("That chat is no longer there.", hint="It was deleted; open another one.")


def _one(conversation_id: str) -> sa.Select[Any]:
    return sa.select(_conversations).where(_conversations.c.conversation_id == conversation_id)


def _set(conversation_id: str, **values: Any) -> sa.Update:
    values["updated_at"] = dt.datetime.now(dt.UTC)
    same = _conversations.c.conversation_id == conversation_id
    return sa.update(_conversations).where(same).values(values)


def _contains(column: sa.Column[str], words: str) -> sa.ColumnElement[bool]:
    # not LIKE, whose ignoring of case ends at ASCII
    return sa.func.instr(sa.func.casefold(column), words.casefold()) > 0


def _conversation(row: Mapping[str, Any]) -> Conversation:
    return Conversation(**{**row, "options": ChatOptions.of(row["options"])})


def _conversation_values(conversation: Conversation) -> dict[str, Any]:
    values = {one.name: getattr(conversation, one.name) for one in fields(conversation)}
    return values | {"options": asdict(conversation.options)}


def _message(row: Mapping[str, Any]) -> StoredMessage:
    message = StoredMessage(**row)
    details = message.details
    if message.state != "generating" or is_alive(details.get("owner_pid"), details.get("owner_started")):
        return message
    return replace(message, state="interrupted")


def _values(message: StoredMessage) -> dict[str, Any]:
    return {one.name: getattr(message, one.name) for one in fields(message)}
