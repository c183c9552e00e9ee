"""One repository of a hub before it is downloaded: its files, what is refused, whether it fits."""

from __future__ import annotations

import streamlit as st

from core.errors import HubError, WorkbenchError
from core.hub import choosing, permissions, repositories
from core.hub.choosing import Choice, Permission
from core.hub.downloads import DownloadSpec
from core.hub.records import size_words
from core.hub.repositories import TITLES, RepoFiles
from core.types import Hub
from pages.parts import models_fit, models_tokens, session
from pages.parts.charts import counted, short_number
from pages.parts.markdown import plain_text

_OPEN, _LOOKED, _REVISION = "get:open", "get:looked", "get:revision"
_NEEDED = "what the model needs"
_RISKS: dict[Permission, tuple[str, str]] = {
    "pickle": (
        "Take its pickle weights",
        "A pickle file can run any code on this machine when it is loaded. Allow it only if you trust "
        "its owner. It is remembered for this model alone.",
    ),
    "code": (
        "Take its own Python code",
        "The code of the repository runs on this machine when the model is loaded. Allow it only if you "
        "have read it, or trust its owner. It is remembered for this model alone.",
    ),
}


def open_repo(hub: Hub, repo: str) -> None:
    st.session_state[_OPEN] = (hub, repo)
    st.session_state.pop(_LOOKED, None)
    st.session_state[_REVISION] = ""


def is_open() -> bool:
    return _OPEN in st.session_state


def _close() -> None:
    for key in (_OPEN, _LOOKED):
        st.session_state.pop(key, None)


def draw() -> None:
    hub, name = st.session_state[_OPEN]
    st.button("Back to the search", icon=":material/arrow_back:", type="tertiary", on_click=_close)
    repo = _look(hub, name)
    if repo is None:
        return
    _head(repo)
    patterns = _what(repo)
    known = permissions.allowed(session.runtime().settings, repo.repo, hub)
    refused = {_permission(file.suffix) for file, _ in choosing.choose(repo, patterns).refused}
    if repo.own_code:  # also where the code lies in another repository
        refused.add("code")
    allow = frozenset(known) | _allow(repo, refused, known)
    choice = choosing.choose(repo, patterns, allow)
    _download(repo, choice, patterns, allow)
    if choice.taken and not repo.locked and not repo.is_adapter:
        models_fit.remote_fit(hub, repo.repo, repo.commit or repo.revision, choice.taken)
    _files(repo, choice)


def _look(hub: Hub, name: str) -> RepoFiles | None:
    """What the hub tells, asked once; None where that failed, and why is shown."""
    revision = st.session_state.get(_REVISION, "").strip() or None
    kept = st.session_state.get(_LOOKED)
    if kept is not None and kept[0] == revision:
        return kept[1]
    try:
        with st.spinner(f"Looking at {plain_text(name)} on {TITLES[hub]}"):
            repo = repositories.look(hub, name, revision, settings=session.runtime().settings)
    except WorkbenchError as error:
        st.error(f"{plain_text(error.message)} {plain_text(error.hint)}", icon=":material/cloud_off:")
        if isinstance(error, HubError) and error.kind in ("token", "missing", "gated"):
            models_tokens.draw(hub, expanded=True)
        if revision:
            _revision()
        st.button("Try again", icon=":material/refresh:")
        return None
    st.session_state[_LOOKED] = (revision, repo)
    return repo


def _head(repo: RepoFiles) -> None:
    badges = [" :orange-badge[gated]"] if repo.gated else []
    badges += [" :violet-badge[LoRA adapter]"] if repo.is_adapter else []
    badges += [" :orange-badge[own code]"] if repo.own_code else []
    st.subheader(plain_text(repo.repo) + "".join(badges), anchor=False)
    about = [TITLES[repo.hub], f"licence: {repo.license or 'not told'}"]
    about += [f"{short_number(repo.downloads)} downloads"] if repo.downloads else []
    about += [f"{counted(len(repo.files), 'file')}, {size_words(repo.total_bytes)} in all"]
    about += [f"commit {repo.commit[:8]}"] if repo.commit else []
    st.caption(plain_text(" · ".join(about)))
    if repo.locked:
        st.warning(plain_text(repo.locked), icon=":material/lock:")
        models_tokens.draw(repo.hub, expanded=True)


def _revision() -> None:
    st.text_input(
        "Revision", key=_REVISION, placeholder="the newest",
        help="A branch, tag or commit. Empty: the newest of the main branch.",
    )  # fmt: skip


def _what(repo: RepoFiles) -> tuple[str, ...]:
    """The patterns of files to take; none: what the model needs."""
    ggufs = choosing.ggufs(repo)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        gguf = None
        if ggufs:
            suggested = choosing.suggested_gguf(repo)
            names = [_NEEDED, *ggufs] if repo.has_safetensors else list(ggufs)
            gguf = st.selectbox(
                "GGUF", names, index=0 if repo.has_safetensors else names.index(suggested),
                key=f"get:gguf:{repo.repo}",
                format_func=lambda name: name if name == _NEEDED else _gguf_words(name, ggufs[name]),
                help="One file per quantization: fewer bits need less memory and answer worse.",
            )  # fmt: skip
        _revision()
        own = st.text_input(
            "Only files like", key="get:patterns", placeholder="*.safetensors *.json",
            help="Patterns with * and ?, apart by blanks. Empty: what the model needs to be loaded.",
        )  # fmt: skip
    if own.split():
        return tuple(own.split())
    return tuple(file.path for file in ggufs[gguf]) if gguf in ggufs else ()


def _gguf_words(name: str, files: tuple[repositories.RepoFile, ...]) -> str:
    return f"{name} · {size_words(sum(file.size_bytes for file in files))}"


def _permission(suffix: str) -> Permission:
    return "code" if suffix == ".py" else "pickle"


def _allow(repo: RepoFiles, refused: set[Permission], known: frozenset[Permission]) -> frozenset[Permission]:
    """Ask only for what would change something: beside safetensors, pickle is never taken."""
    asked = sorted(refused - known - ({"pickle"} if repo.has_safetensors else set()))
    allowed = set()
    for permission in asked:
        title, risk = _RISKS[permission]
        if st.checkbox(title, value=False, key=f"get:allow:{permission}:{repo.hub}:{repo.repo}", help=risk):
            st.warning(risk, icon=":material/gpp_maybe:")
            allowed.add(permission)
    return frozenset(allowed)


def _download(
    repo: RepoFiles, choice: Choice, patterns: tuple[str, ...], allow: frozenset[Permission]
) -> None:
    problem = None
    try:
        choosing.demand(repo, choice, patterns)
    except HubError as error:
        problem = error
        st.warning(f"{plain_text(error.message)} {plain_text(error.hint)}", icon=":material/block:")
    free = size_words(repositories.free_bytes(repo.hub))
    with st.container(horizontal=True, vertical_alignment="center"):
        start = st.button(
            f"Download {size_words(choice.total_bytes)}", type="primary", icon=":material/download:",
            disabled=problem is not None or bool(repo.locked and repo.gated),
        )  # fmt: skip
        words = [counted(len(choice.taken), "file"), f"{free} free on the disk of the hub's cache"]
        here = _bytes_here(repo, choice)
        if here:
            everything = here >= choice.total_bytes
            words.insert(1, "all of it is here already" if everything else f"{size_words(here)} here already")
        st.caption(" · ".join(words))
    if not start:
        return
    spec = DownloadSpec(hub=repo.hub, repo=repo.repo, revision=repo.revision, patterns=patterns, allow=allow)
    try:
        session.downloads().start(spec, repo)
    except WorkbenchError as error:
        st.error(f"{plain_text(error.message)} {plain_text(error.hint)}", icon=":material/error:")
    else:
        _close()
        st.rerun()


def _bytes_here(repo: RepoFiles, choice: Choice) -> int:
    hub, at = repositories.client(repo.hub), repo.commit or repo.revision
    places = [(hub.place(repo.repo, at, file), file) for file in choice.taken]
    return sum(min(place.received_bytes(), file.size_bytes) for place, file in places)


def _files(repo: RepoFiles, choice: Choice) -> None:
    taken = {file.path for file in choice.taken}
    reasons = {file.path: reason for file, reason in choice.refused}
    rows = [
        {
            "Taken": file.path in taken,
            "File": file.path,
            "Size": size_words(file.size_bytes),
            "Why not": reasons.get(file.path, "" if file.path in taken else "Not needed to load it"),
        }
        for file in sorted(repo.files, key=lambda file: (file.path not in taken, -file.size_bytes))
    ]
    with st.expander(f"Files: {len(taken):,} of {len(rows):,} are taken", expanded=len(rows) <= 12):
        widths = {
            "Taken": st.column_config.CheckboxColumn(width=50),
            "Size": st.column_config.Column(width=70),
        }
        reason = st.column_config.Column(width="large")
        st.dataframe(rows, hide_index=True, column_config={**widths, "Why not": reason})
