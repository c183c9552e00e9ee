"""Conversations as trees of messages: versions, branches, search, and catalogues of before."""

import sqlite3
import threading

import pytest

from core import catalogue_schema
from core.conversations import ChatOptions, Conversations, NewMessage
from core.errors import ParameterError, WorkbenchError
from core.store import Store, this_process
from core.transcripts import Transcript
from core.types import Message


@pytest.fixture
def conversations(store):
    return Conversations(store)


def said(conversations, conversation_id):
    return [turn.message.content for turn in conversations.thread(conversation_id)]


def talk(conversations, *texts, **values):
    """A conversation of these texts, user and assistant by turns; returns it and its messages."""
    made = conversations.add(**values)
    roles = ["user", "assistant"] * len(texts)
    line = [NewMessage(role, text) for role, text in zip(roles, texts, strict=False)]
    return made.conversation_id, conversations.append(made.conversation_id, None, line) if line else []


def test_a_conversation_is_kept_as_it_was_made(conversations):
    options = ChatOptions(style="Alpaca", template_options={"enable_thinking": False}, top_logprobs=5, n=2)
    made = conversations.add(system="Be brief.", params={"seed": 1}, options=options, title="A talk")
    assert conversations.get(made.conversation_id) == made
    assert conversations.get("nothing") is None and conversations.thread("nothing") == []


def test_each_message_follows_the_one_before(conversations):
    chat, messages = talk(conversations, "one", "two", "three")
    assert [message.parent_id for message in messages] == [None, *[m.message_id for m in messages[:2]]]
    assert said(conversations, chat) == ["one", "two", "three"]
    assert all(turn.versions == (turn.message.message_id,) for turn in conversations.thread(chat))


def test_versions_stand_beside_each_other_and_the_first_is_shown(conversations):
    chat, [asked] = talk(conversations, "which?")
    answers = [NewMessage("assistant", text) for text in ("a", "b", "c")]
    added = conversations.append(chat, asked.message_id, [], answers)
    last = conversations.thread(chat)[-1]
    assert said(conversations, chat) == ["which?", "a"]
    assert last.versions == tuple(message.message_id for message in added) and last.index == 0
    conversations.append(chat, added[0].message_id, [NewMessage("user", "and?")])
    conversations.select(added[2].message_id)
    assert said(conversations, chat) == ["which?", "c"] and conversations.thread(chat)[-1].index == 2


def test_a_selected_message_is_shown_with_the_newest_that_followed_it(conversations):
    chat, [first, answer, _] = talk(conversations, "one", "two", "three")
    conversations.append(
        chat, answer.message_id, [NewMessage("user", "other"), NewMessage("assistant", "end")]
    )
    edited = conversations.append(chat, None, [NewMessage("user", "ONE")])[0]
    assert said(conversations, chat) == ["ONE"]
    conversations.select(first.message_id)
    assert said(conversations, chat) == ["one", "two", "other", "end"]
    assert conversations.thread(chat)[0].versions == (first.message_id, edited.message_id)


def test_a_branch_is_a_copy_that_leaves_its_origin_alone(conversations):
    chat, messages = talk(
        conversations, "one", "two", "three", "four", system="S", params={"seed": 3}, title="Numbers"
    )
    branch = conversations.branch(messages[1].message_id)
    assert said(conversations, branch.conversation_id) == ["one", "two"]
    assert (branch.system, branch.params, branch.title) == ("S", {"seed": 3}, "Numbers (branch)")
    conversations.append(branch.conversation_id, branch.head_id, [NewMessage("user", "else")])
    assert said(conversations, chat) == ["one", "two", "three", "four"]
    again = conversations.branch(conversations.thread(branch.conversation_id)[0].message.message_id)
    assert again.title == "Numbers (branch)"


def test_clear_and_delete_leave_nothing(conversations, store):
    chat, _ = talk(conversations, "one", "two", title="T")
    conversations.clear(chat)
    kept = conversations.get(chat)
    assert (kept.title, kept.head_id, conversations.messages(chat)) == ("", None, [])
    other, [message] = talk(conversations, "one")
    conversations.delete(other)
    assert conversations.get(other) is None and conversations.messages(other) == []
    with pytest.raises(WorkbenchError, match="no longer there"):
        conversations.select(message.message_id)


def test_search_finds_words_in_titles_and_messages_in_any_case(conversations):
    by_title, _ = talk(conversations, "hello", title="Größe der Straße")
    by_text, _ = talk(conversations, "nothing", "ЁЛКА и 50% off_sale")

    def found(words):
        return {one.conversation_id for one in conversations.list(search=words)}

    assert found("grÖSSE") == {by_title} == found(" STRASSE ")
    assert found("ёлка") == {by_text} == found("0% OFF_") == found("50%")
    assert found("5_%") == set() == found("offxsale")  # the signs of LIKE mean themselves
    assert found("") == {by_title, by_text} == found("  ")


def test_the_last_used_is_listed_first(conversations):
    first, _ = talk(conversations, "one")
    second, _ = talk(conversations, "two")
    conversations.append(first, conversations.get(first).head_id, [NewMessage("user", "more")])
    assert [one.conversation_id for one in conversations.list()] == [first, second]
    assert len(conversations.list(1)) == 1


def test_rename_is_one_line_and_never_empty(conversations):
    chat, _ = talk(conversations, "one")
    conversations.rename(chat, " A\n new  name ")
    assert conversations.get(chat).title == "A new name"
    with pytest.raises(WorkbenchError, match="empty"):
        conversations.rename(chat, " \n")


def test_update_sets_what_is_given_and_nothing_else(conversations):
    made = conversations.add(system="S", params={"seed": 1}, title="T")
    conversations.update(made.conversation_id, system="", options=ChatOptions(n=3))
    kept = conversations.get(made.conversation_id)
    assert (kept.system, kept.params, kept.title, kept.options.n) == ("", {"seed": 1}, "T", 3)


@pytest.mark.parametrize(
    "options",
    [
        {"n": 0},
        {"n": 17},
        {"n": "many"},
        {"top_logprobs": 21},
        {"reasoning": "telepathy"},
        {"template_options": []},
    ],
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ParameterError):
        ChatOptions.of(options)


def test_options_of_a_later_version_are_left_out():
    assert ChatOptions.of({"n": 2, "telepathy": True}) == ChatOptions(n=2)


def test_two_processes_that_write_to_one_conversation_lose_nothing(settings):
    stores = [Store(settings.catalogue_path) for _ in range(2)]
    chat, [root] = talk(Conversations(stores[0]), "root")

    def write(store):
        for number in range(20):
            Conversations(store).append(chat, root.message_id, [NewMessage("assistant", str(number))])

    writers = [threading.Thread(target=write, args=(store,)) for store in stores]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    messages = Conversations(stores[0]).messages(chat)
    assert [message.position for message in messages] == list(range(41))
    for store in stores:
        store.close()


def test_the_branch_that_is_shown_becomes_a_transcript_and_back(conversations):
    options = ChatOptions(style="completion")
    chat, messages = talk(
        conversations, "one", "old", system="S", params={"seed": 1}, options=options, title="T"
    )
    answers = [NewMessage("assistant", "new", details={"model": "m"})]
    [answer] = conversations.append(chat, messages[0].message_id, [], answers)
    conversations.append(chat, answer.message_id, [NewMessage("user", "on"), NewMessage("assistant", "")])
    transcript = conversations.transcript(chat)
    assert (transcript.title, transcript.model, transcript.params) == ("T", "m", {"seed": 1})
    told = [(message.role, message.content) for message in transcript.messages]
    assert told == [("system", "S"), ("user", "one"), ("assistant", "new"), ("user", "on")]
    back = conversations.add_from(transcript)
    assert conversations.transcript(back.conversation_id) == transcript
    assert back.system == "S" and back.options == options


def test_a_transcript_without_a_title_is_named_by_its_first_question(conversations):
    made = conversations.add_from(Transcript(messages=(Message("user", "What is\na cat?"),)))
    assert made.title == "What is a cat?"


def test_nothing_is_added_to_a_conversation_that_was_deleted(conversations):
    chat, [message] = talk(conversations, "one")
    conversations.delete(chat)
    with pytest.raises(WorkbenchError, match="no longer there"):
        conversations.append(chat, message.message_id, [NewMessage("assistant", "two")])
    assert conversations.messages(chat) == []


def test_an_empty_transcript_is_an_empty_conversation(conversations):
    made = conversations.add_from(Transcript(messages=(Message("system", "S"),)))
    assert made.system == "S" and conversations.thread(made.conversation_id) == []


# -- catalogues of before ---------------------------------------------------------

FIRST_SCHEMA = """
CREATE TABLE conversations (
    conversation_id TEXT NOT NULL, created_at DATETIME NOT NULL, updated_at DATETIME NOT NULL,
    title TEXT NOT NULL, system TEXT NOT NULL, params TEXT NOT NULL, PRIMARY KEY (conversation_id));
CREATE TABLE messages (
    message_id TEXT NOT NULL, conversation_id TEXT NOT NULL, position INTEGER NOT NULL, role TEXT NOT NULL,
    content TEXT NOT NULL, state TEXT NOT NULL, details TEXT NOT NULL, PRIMARY KEY (message_id),
    UNIQUE (conversation_id, position));
CREATE INDEX ix_messages_conversation_id ON messages (conversation_id);
CREATE TABLE comparisons (
    comparison_id TEXT NOT NULL, created_at DATETIME NOT NULL, body TEXT NOT NULL,
    PRIMARY KEY (comparison_id));
"""


def write_first_catalogue(path):
    """Two conversations, their messages written by turns, with a gap where a regenerated one was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with sqlite3.connect(path) as database:
        database.executescript(FIRST_SCHEMA)
        for chat in "ab":
            values = (
                chat,
                "2026-01-01 10:00:00.000000",
                "2026-01-01 10:00:00.000000",
                chat,
                "S",
                '{"seed": 1}',
            )
            database.execute("INSERT INTO conversations VALUES (?, ?, ?, ?, ?, ?)", values)
        for position in (0, 1, 3, 4):
            for chat in "ba":
                role = "user" if position in (0, 3) else "assistant"
                values = (
                    f"{chat}{position}",
                    chat,
                    position,
                    role,
                    f"{chat} says {position}",
                    "complete",
                    "{}",
                )
                database.execute("INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?, ?)", values)
    database.close()


def test_conversations_of_an_earlier_version_are_a_line(settings):
    write_first_catalogue(settings.catalogue_path)
    for _ in range(2):  # what was done once is not done again
        store = Store(settings.catalogue_path)
        conversations = Conversations(store)
        for chat in "ab":
            assert said(conversations, chat) == [f"{chat} says {position}" for position in (0, 1, 3, 4)]
            parents = [message.parent_id for message in conversations.messages(chat)]
            assert parents == [None, f"{chat}0", f"{chat}1", f"{chat}3"]
            assert conversations.get(chat).options == ChatOptions()
        store.close()


def test_an_earlier_version_goes_on_as_a_tree(settings):
    write_first_catalogue(settings.catalogue_path)
    store = Store(settings.catalogue_path)
    conversations = Conversations(store)
    conversations.append("a", "a0", [], [NewMessage("assistant", "again")])
    assert said(conversations, "a") == ["a says 0", "again"]
    conversations.select("a1")
    assert said(conversations, "a")[-1] == "a says 4"
    store.close()


def test_a_migration_that_breaks_off_is_done_again_as_a_whole(settings, monkeypatch):
    write_first_catalogue(settings.catalogue_path)
    with monkeypatch.context() as patch:
        patch.setattr(catalogue_schema, "_follow_one_another", lambda connection: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            Store(settings.catalogue_path)
    store = Store(settings.catalogue_path)
    assert said(Conversations(store), "a") == [f"a says {position}" for position in (0, 1, 3, 4)]
    store.close()


def test_an_answer_reads_as_generating_while_its_process_lives(conversations):
    chat, [asked] = talk(conversations, "hi")
    dead = {"owner_pid": 2**22 + 1, "owner_started": 1.0}
    answers = [NewMessage("assistant", "x", "generating", owner) for owner in (this_process(), dead, {})]
    conversations.append(chat, asked.message_id, [], answers)
    states = [message.state for message in conversations.messages(chat)[1:]]
    assert states == ["generating", "interrupted", "interrupted"]
