"""Servers with OpenAI's API: add one, see its models, use one of them."""

from __future__ import annotations

import streamlit as st

from core.endpoints import DEFAULT_SLOTS, Endpoint, RemoteModel
from core.errors import WorkbenchError
from core.types import EngineInfo, EngineSpec
from pages.parts import session
from pages.parts.charts import counted
from pages.parts.markdown import plain_text

_FOUND = "models:endpoints:found"
"""Address -> its models, or the error: what was last asked of the servers in this browser session."""
_MOST_SLOTS = 16_384
_WAITING = "models:endpoints:waiting"
"""A spec that is not loaded yet, because somebody is at work."""


def draw() -> None:
    st.subheader("Remote endpoints", anchor=False)
    st.caption(
        "Any server with OpenAI's API: vLLM's own, a cluster of them behind a router, Ray Serve LLM. "
        "Nothing is computed here; prompts go to that server."
    )
    saved = session.endpoints().list()
    for endpoint in saved:
        _endpoint(endpoint)
    with st.expander("Add an endpoint", expanded=not saved, icon=":material/add:"):
        _add()


def _add() -> None:
    with st.form("models:endpoints:add", clear_on_submit=True, border=False):
        address = st.text_input("Address", placeholder="http://server:8000/v1")
        name = st.text_input("Name", placeholder="The server's own, if empty")
        key = st.text_input(
            "Key", type="password", autocomplete="off", placeholder="Empty where the server wants none",
            help="Kept in one private file of the workspace; it goes to this address only.",
        )  # fmt: skip
        if not st.form_submit_button("Add and test", type="primary"):
            return
    try:
        endpoint = session.endpoints().save(address, name, key.strip() or None)
    except WorkbenchError as error:
        st.error(plain_text(str(error)))
        return
    _ask(endpoint)
    st.rerun()


def _endpoint(endpoint: Endpoint) -> None:
    status = session.runtime().status()
    in_use = status.spec is not None and status.spec.base_url == endpoint.base_url
    with st.container(border=True, key=f"endpoint-{_place(endpoint)}"):
        with st.container(horizontal=True, vertical_alignment="center"):
            with st.container(gap=None):
                st.markdown(f"**{plain_text(endpoint.name)}**")
                key = "key saved" if endpoint.has_key else "no key"
                st.caption(f"{plain_text(endpoint.base_url)} · {key}")
            if in_use and status.phase == "ready":
                st.badge("In use", icon=":material/check:", color="green")
            st.button("Test", key=_key("test", endpoint), icon=":material/network_check:",
                      help="Ask the server for its models.", on_click=_ask, args=(endpoint,))  # fmt: skip
            with st.popover("", icon=":material/more_vert:", key=_key("more", endpoint)):
                _more(endpoint)
        found = st.session_state.get(_FOUND, {}).get(endpoint.base_url)
        if isinstance(found, WorkbenchError):
            st.error(plain_text(str(found)))
        elif found is not None:
            _models(endpoint, found)
        _confirm_if_waiting(endpoint)
        if in_use and status.phase == "ready":
            _abilities(status.spec, status.info)


def _more(endpoint: Endpoint) -> None:
    with st.form(_key("key", endpoint), clear_on_submit=True, border=False):
        key = st.text_input("New key", type="password", autocomplete="off")
        if st.form_submit_button("Save the key"):
            try:
                session.endpoints().save(endpoint.base_url, endpoint.name, key)
            except WorkbenchError as error:
                st.error(plain_text(str(error)))
            else:
                st.rerun()
    if st.button("Delete this endpoint", key=_key("delete", endpoint), icon=":material/delete:",
                 help="Its key is forgotten, too."):  # fmt: skip
        session.endpoints().delete(endpoint.base_url)
        st.rerun()


def _ask(endpoint: Endpoint) -> None:
    try:
        with st.spinner(f"Asking {plain_text(endpoint.name)}"):
            found = session.endpoints().models(endpoint.base_url)
    except WorkbenchError as error:
        found = error
    st.session_state[_FOUND] = {**st.session_state.get(_FOUND, {}), endpoint.base_url: found}


def _models(endpoint: Endpoint, models: tuple[RemoteModel, ...]) -> None:
    if not models:
        st.caption("The server has no models.")
        return
    st.caption(f"It has {counted(len(models), 'model')}.")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        # a select box shows its options as they are: no Markdown in them
        model = st.selectbox("Model", models, format_func=_words, key=_key("model", endpoint))
        slots = st.number_input(
            "Requests at once", 1, _MOST_SLOTS, DEFAULT_SLOTS, key=_key("slots", endpoint), width=150,
            help="How many rows of a batch are asked at the same time. A large cluster takes more.",
        )  # fmt: skip
        spec = EngineSpec(
            engine="openai", model=model.name, base_url=endpoint.base_url, max_num_seqs=int(slots)
        )
        st.button("Use", type="primary", key=_key("use", endpoint), on_click=_use, args=(spec,))


def _words(model: RemoteModel) -> str:
    context = f" · context {model.max_model_len:,} tokens" if model.max_model_len else ""
    adapter = f" · adapter of {model.parent}" if model.parent else ""
    return f"{model.name}{context}{adapter}"


def _use(spec: EngineSpec) -> None:
    if session.runtime().in_use():
        st.session_state[_WAITING] = spec
    else:
        session.runtime().load(spec)


def _confirm_if_waiting(endpoint: Endpoint) -> None:
    spec = st.session_state.get(_WAITING)
    if spec is None or spec.base_url != endpoint.base_url:
        return
    at_work = ", ".join(counted(count, kind) for kind, count in session.runtime().in_use().items())
    if not at_work:
        del st.session_state[_WAITING]
        session.runtime().load(spec)
        st.rerun()
    st.warning(f"At work with the model that is loaded: {plain_text(at_work)}. To switch interrupts that.")
    with st.container(horizontal=True):
        if st.button("Switch", key="models:endpoints:switch", type="primary"):
            del st.session_state[_WAITING]
            session.runtime().load(spec)
            st.rerun()
        if st.button("Keep it", key="models:endpoints:keep"):
            del st.session_state[_WAITING]
            st.rerun()


def _abilities(spec: EngineSpec, info: EngineInfo) -> None:
    with st.expander(f"What {plain_text(info.model)} can't do there"):
        lines = [plain_text(reason) for reason in (*info.settings.get("notes", ()), *info.cannot.values())]
        for reason in dict.fromkeys(info.cannot_params.values()):
            names = [name for name, why in info.cannot_params.items() if why == reason]
            if reason not in info.cannot.values():
                lines.append(f"{', '.join(f'`{name}`' for name in names)}: {plain_text(reason)}")
        st.markdown("\n".join(f"- {line}" for line in lines))
        with st.container(horizontal=True, vertical_alignment="center"):
            st.caption("Found out when it was loaded, and kept for a day.")
            st.button("Find out again", key=f"models:endpoints:again:{spec.base_url}", type="tertiary",
                      icon=":material/refresh:", on_click=_find_out_again, args=(spec, info))  # fmt: skip


def _find_out_again(spec: EngineSpec, info: EngineInfo) -> None:
    from core.engines.openai import forget_known  # that of the engine in use: not for a page without one

    forget_known(session.runtime().settings, spec.base_url, info.model)
    _use(spec)


def _place(endpoint: Endpoint) -> str:
    """The address as a part of a widget's key."""
    return "".join(letter if letter.isalnum() else "-" for letter in endpoint.base_url)


def _key(what: str, endpoint: Endpoint) -> str:
    return f"models:endpoints:{what}:{_place(endpoint)}"
