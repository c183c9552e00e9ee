"""What the tests of chats share."""

from waiting import until

from core.chat import prompt_messages
from core.conversations import Conversations, NewMessage

ENDLESS = {"ignore_eos": True, "max_tokens": 8000}


def begin(chats, **values):
    return chats.create(**values).conversation_id


def ended(chats, conversation_id):
    """The last message of the branch that is shown, once nothing is generated any more."""
    until(lambda: not chats.live(conversation_id))
    return shown(chats, conversation_id)[-1]


def shown(chats, conversation_id):
    return [turn.message for turn in chats.conversations.thread(conversation_id)]


def told(chats, conversation_id, text):
    """What the model would be shown if `text` were sent now."""
    parser = chats.conversations.get(conversation_id).options.reasoning
    return prompt_messages("", shown(chats, conversation_id), text, parser)


def only(live):
    """The one answer of these that are being generated; None while there is none."""
    return next(iter(live.values()), None)


def grown(chats, conversation_id):
    """Wait for the first text of an answer."""
    return until(lambda: (live := only(chats.live(conversation_id))) and live.text and live)


def generating(store, owner):
    """A conversation whose answer a process with these details was at."""
    conversations = Conversations(store)
    conversation = conversations.add().conversation_id
    half = NewMessage("assistant", "Half an", "generating", owner)
    conversations.append(conversation, None, [NewMessage("user", "hi")], [half])
    return conversation
