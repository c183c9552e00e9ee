"""Keys of the API: made and shown once, limited, revoked."""

from __future__ import annotations

import streamlit as st

from core.api.records import ApiKey, KeyLimits
from core.errors import WorkbenchError
from core.snippets import KEY_VARIABLE
from pages.parts import session
from pages.parts.api_words import ago
from pages.parts.charts import counted, short_number
from pages.parts.markdown import plain_text

_MADE = "api:made"
"""(name, secret) of the key that was just made, until somebody says that it is copied."""
_MOST = 10**12


def draw() -> None:
    st.caption(
        "One for each person or program. A key is shown once, when it is made; what is kept is a hash of it."
    )
    status = session.api().status()
    if status.phase == "serving" and not status.needs_key:
        st.caption(
            "Now the API needs none, as only this machine reaches it; limits hold for those who send one."
        )
    _just_made()
    keys = session.api().keys.list(revoked=True)
    valid = [key for key in keys if key.revoked_at is None]
    with st.expander("Make a key", expanded=not valid, icon=":material/add:", key="api:make"):
        _make()
    for key in valid:
        _key(key)
    revoked = sorted((key for key in keys if key.revoked_at), key=lambda key: key.revoked_at, reverse=True)
    if revoked:
        with st.expander(f"Revoked: {len(revoked):,}", icon=":material/block:", key="api:revoked"):
            lines = (
                f"- {plain_text(key.name)} · `{key.start}…` · revoked {ago(key.revoked_at)}"
                for key in revoked
            )
            st.markdown("\n".join(lines))


def _make() -> None:
    with st.form("api:make:form", clear_on_submit=True, border=False):
        name = st.text_input("Name", placeholder="Who uses it, such as Ana's notebook", max_chars=80)
        limits = _limits("api:make", KeyLimits())
        if not st.form_submit_button("Make it", type="primary"):
            return
    try:
        key, secret = session.api().keys.create(name, limits)
    except WorkbenchError as error:
        st.error(plain_text(str(error)))
    else:
        st.session_state[_MADE] = (key.name, secret)
        st.rerun()


def _just_made() -> None:
    made = st.session_state.get(_MADE)
    if made is None:
        return
    name, secret = made
    with st.container(border=True, key="api-made"):
        st.success(
            f"The key **{plain_text(name)}** is made. Copy it now: it is not shown again.",
            icon=":material/key:",
        )
        st.code(secret, language=None)
        st.caption("For programs that take it from the environment:")
        st.code(f"export {KEY_VARIABLE}={secret}", language="bash")
        st.button("I have copied it", key="api:made:done", on_click=st.session_state.pop, args=(_MADE, None))


def _limits(key: str, now: KeyLimits) -> KeyLimits:
    """The fields of a key's limits, and what they hold."""
    with st.container(horizontal=True):
        requests = st.number_input(
            "Requests a minute", 1, _MOST, now.requests_per_minute, key=f"{key}:requests", width=170,
            placeholder="No limit",
        )  # fmt: skip
        tokens = st.number_input(
            "Tokens a day", 1, _MOST, now.tokens_per_day, key=f"{key}:tokens", width=170,
            placeholder="No limit", help="Of prompts and answers together. A day begins at midnight UTC.",
        )  # fmt: skip
        priority = st.number_input(
            "Priority", 0, 9, now.priority, key=f"{key}:priority", width=120,
            help="Where requests wait, those with the lower number go first.",
        )  # fmt: skip
    return KeyLimits(requests_per_minute=requests, tokens_per_day=tokens, priority=int(priority))


def _key(key: ApiKey) -> None:
    with st.container(border=True, horizontal=True, vertical_alignment="center", key=f"api-key-{key.key_id}"):
        with st.container(gap=None):
            st.markdown(f"**{plain_text(key.name)}** &nbsp; :gray[`{key.start}…`]")
            st.caption(_words(key))
        with st.popover("", icon=":material/more_vert:", key=f"api:more:{key.key_id}"):
            _more(key)


def _words(key: ApiKey) -> str:
    limits, used = key.limits, f"last used {ago(key.last_used_at)}" if key.last_used_at else "never used"
    tokens = short_number(session.api().usage.tokens_today(key.key_id))
    of = f" of {short_number(limits.tokens_per_day)}" if limits.tokens_per_day else ""
    words = [f"made {ago(key.created_at)}", used, f"{tokens}{of} tokens today"]
    if limits.requests_per_minute:
        words.append(f"at most {counted(limits.requests_per_minute, 'request')} a minute")
    return " · ".join((*words, f"priority {limits.priority}"))


def _more(key: ApiKey) -> None:
    with st.form(f"api:limits:{key.key_id}", border=False):
        limits = _limits(f"api:limits:{key.key_id}", key.limits)
        if st.form_submit_button("Save the limits"):
            _act(session.api().keys.set_limits, key.key_id, limits)
    sure = f"api:revoke:{key.key_id}:sure"
    if not st.session_state.get(sure):
        st.button("Revoke this key", key=f"api:revoke:{key.key_id}", icon=":material/block:",
                  on_click=st.session_state.__setitem__, args=(sure, True))  # fmt: skip
        return
    st.warning("Who uses it is refused from now on. It can't be undone.", icon=":material/warning:")
    if st.button("Revoke it", key=f"{sure}:yes", type="primary"):
        _act(session.api().keys.revoke, key.key_id)


def _act(action: object, *args: object) -> None:
    try:
        action(*args)
    except WorkbenchError as error:
        st.error(plain_text(str(error)))
    else:
        st.rerun()
