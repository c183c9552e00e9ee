"""The code that asks the same of the API, or of the server that is the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st

from core import prompt_styles, snippets
from core.adapters.registry import is_base
from core.chat import prompt_messages
from core.chat_templates import fit
from core.conversations import StoredMessage
from core.errors import WorkbenchError
from core.sampling import BY_NAME
from core.types import EngineInfo, Message
from pages.parts import session
from pages.parts.chat_settings import ChatSettings
from pages.parts.markdown import plain_text

_EXAMPLE = "Hello"
_WIDTH_PIXELS, _HEIGHT_PIXELS = 560, 420


def menu(settings: ChatSettings, path: Sequence[StoredMessage]) -> None:
    """A popover with Python and curl for the last message of `path`, asked with the settings as they are."""
    menu = st.popover("Code", icon=":material/code:", on_change="rerun", key="chat:code")
    # of this size also while it is closed: it would open downwards, out of sight, if it were empty then
    with menu, st.container(width=_WIDTH_PIXELS, height=_HEIGHT_PIXELS, border=False):
        if menu.open:  # a long chat is not written out with each run of the page
            _code(settings, path)


def _code(settings: ChatSettings, path: Sequence[StoredMessage]) -> None:
    options = settings.options
    try:
        asked, params = _asked(settings, path), _params(settings)
    except WorkbenchError as error:
        st.error(plain_text(str(error)))
        return
    info = session.runtime().status().info
    adapter = None if is_base(options.adapter) else options.adapter
    server = _server(info)
    what = {
        "asked": asked,
        "params": params,
        "model": adapter or (info.model if info else "MODEL"),  # a server knows adapters as models
        "base_url": server.base_url,
        "template_options": options.template_options if options.style == prompt_styles.CHAT else None,
        "top_logprobs": options.top_logprobs,
        "generation_config": info.generation_config if info else None,
        "needs_key": server.needs_key,
    }
    st.caption(server.words)
    if adapter is not None and server.is_elsewhere:
        st.caption("That server must have the adapter, under this name.")
    python, curl = st.tabs(["Python", "curl"])
    python.code(snippets.python(**what), language="python", wrap_lines=True)
    curl.code(snippets.curl(**what), language="bash", wrap_lines=True)


@dataclass(frozen=True, slots=True)
class _Server:
    base_url: str
    needs_key: bool
    words: str
    is_elsewhere: bool = False


def _server(info: EngineInfo | None) -> _Server:
    """Who answers the program: the server that is loaded as the engine, else the workbench's own API."""
    if info is not None and (remote := info.settings.get("base_url")):
        return _Server(remote, False, "The same request to the server that answers here.", is_elsewhere=True)
    api = session.api().status()
    words = "The same request to the workbench's API."
    if api.phase != "serving":
        words += " It is off: start it on the API page."
    elif api.needs_key:
        words += f" It takes the key from the environment: `export {snippets.KEY_VARIABLE}=wb-…`"
    url = api.url or f"http://127.0.0.1:{api.port or 8000}"  # 0: any port, which it has once it serves
    return _Server(f"{url}/v1", api.needs_key, words)


def _params(settings: ChatSettings) -> dict[str, Any]:
    """The parameters as the engine gets them: with the number of answers, and the stops of the style."""
    options, params = settings.options, dict(settings.params)
    if options.n > 1:
        params["n"] = options.n
    if options.style == prompt_styles.CHAT:
        return params
    wrapper = session.wrappers().find(options.style)
    return prompt_styles.with_stops(params, session.runtime().engine, options.style, wrapper)


def _asked(settings: ChatSettings, path: Sequence[StoredMessage]) -> Sequence[Message] | str:
    """The messages; the prompt's text where the server's own template would not make it. Raises as `fit`."""
    options = settings.options
    if path and path[-1].role == "assistant":
        path = path[:-1]
    messages = prompt_messages(settings.system, path, None if path else _EXAMPLE, options.reasoning)
    if options.style == prompt_styles.CHAT:
        return messages
    engine = session.runtime().engine
    max_tokens = settings.params.get("max_tokens") or BY_NAME["max_tokens"].default
    wrapper = session.wrappers().find(options.style)
    return fit(messages, engine, max_tokens, style=options.style, wrapper=wrapper).text
