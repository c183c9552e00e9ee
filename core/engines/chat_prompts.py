"""A conversation as a prompt's text: for engines that hold the model's template themselves."""

from __future__ import annotations

from core.engines.base import Engine
from core.errors import RequestRejected, TemplateError
from core.prompts import plain_text
from core.types import ChatPrompt


def chat_text(prompt: ChatPrompt, engine: Engine) -> tuple[str, bool]:
    """The prompt's text, and whether the tokenizer shall add its own special tokens.

    Without a chat template the contents are all there is. Raises RequestRejected where the template
    refuses the messages.
    """
    if not engine.info.has_chat_template:
        return plain_text(prompt.messages), True
    try:
        (text,) = engine.render_chat([prompt.messages], prompt.options)
    except TemplateError as error:
        raise RequestRejected(error.message, hint=error.hint) from error
    return text, False  # the template writes the special tokens itself
