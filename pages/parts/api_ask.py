"""How programs ask the API: names of models, programs that run as they stand, the way from elsewhere."""

from __future__ import annotations

import socket

import streamlit as st

from core.api.examples import TASKS, examples
from core.api.records import ApiStatus
from core.snippets import KEY_VARIABLE
from pages.parts import session
from pages.parts.markdown import plain_text

_POLL_S = 2.0
_HIGHLIGHT = {"curl": "bash", "Python": "python", "JavaScript": "javascript"}
_NEEDS = {
    "curl": "Any shell.",
    "Python": "Needs the package `openai`: `pip install openai`.",
    "JavaScript": "Needs Node 18 or later, and no package: save it as `ask.mjs`, run `node ask.mjs`.",
}
_ENCRYPTED = {
    "http": "What goes over the network is not encrypted: across a network that you don't trust, use SSH as "
    "below, or a certificate (`WORKBENCH_API_SSL_CERTFILE`).",
    "https": "What goes over the network is encrypted. Instead of this machine's name use the one that the "
    "certificate is made out to, and set `WORKBENCH_API_ALLOWED_HOSTS` to it.",
}
_OFFERS = (
    ("Chat and completion", "`/v1/chat/completions`, `/v1/completions`: streamed or not, JSON by schema"),
    ("Batches", "`/v1/files`, `/v1/batches`: each is a run on the Batch page, and survives restarts"),
    ("A plain prompt", "`/generate`: a prompt in, a text out"),
    ("Models", "`/v1/models`: the loaded model, its adapters, and presets as `model:preset`"),
    ("For those who run it", "`/health`, `/metrics` for Prometheus, `/tokenize`"),
)  # fmt: skip


@st.fragment(run_every=_POLL_S)
def draw() -> None:
    """Programs while it serves; what it would offer while it does not."""
    status = session.api().status()
    if status.url is None:
        st.subheader("What it offers", anchor=False)
        st.markdown("\n".join(f"- **{title}**: {words}" for title, words in _OFFERS))
        st.caption("Start it to see its address and programs that ask it.")
        return
    if not status.models:
        st.caption("Programs that ask it stand here as soon as a model is loaded.")
        return
    _programs(status)
    with st.expander("What it offers", icon=":material/list:", key="api:offers"):
        st.markdown("\n".join(f"- **{title}**: {words}" for title, words in _OFFERS))
    with st.expander("From another machine", icon=":material/lan:", key="api:elsewhere"):
        _elsewhere(status)


def _programs(status: ApiStatus) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        task = st.segmented_control(
            "Program", list(TASKS), format_func=TASKS.get, required=True, default="chat", key="api:task",
            persist_state="session",
        )  # fmt: skip
        # a select box shows its options as they are: no Markdown in them
        model = st.selectbox(
            "Model", status.models, key="api:model", width=360,
            help="The names that requests may give: the loaded model, its adapters, and presets as "
            "model:preset, which fill in what a request leaves out.",
        )  # fmt: skip
    if status.needs_key:
        st.caption(f"The programs take the key from the environment. First: `export {KEY_VARIABLE}=wb-…`")
    programs = examples(task, status.url, model, needs_key=status.needs_key)
    for tab, (language, program) in zip(st.tabs(list(programs)), programs.items(), strict=True):
        with tab:
            needs = _NEEDS[language].replace("openai", "requests") if task == "generate" else _NEEDS[language]
            st.caption(needs)
            st.code(program, language=_HIGHLIGHT[language])


def _elsewhere(status: ApiStatus) -> None:
    port, here = status.url.rpartition(":")[2], plain_text(socket.gethostname())
    scheme = "https" if status.is_encrypted else "http"
    if status.needs_key:
        st.markdown(
            f"**It asks for a key.** Make one for each person or program under **Keys**; the address from "
            f"elsewhere is `{scheme}://{here}:{port}/v1`, if no firewall is in between. {_ENCRYPTED[scheme]}"
        )
    else:
        st.markdown(
            "**Now only this machine reaches it.** To let a network in: Stop, choose *Every network of this "
            "machine*, Start, and make a key for each person or program under **Keys**."
        )
    st.markdown("**Through SSH**, encrypted and without opening anything, run there:")
    st.code(f"ssh -N -L {port}:127.0.0.1:{port} you@{socket.gethostname()}", language="bash")
    st.markdown(f"Then `{scheme}://127.0.0.1:{port}/v1` is its address there, too.")
    st.markdown(
        "**Behind a proxy or a public tunnel**, everybody who reaches that reaches the API. Set "
        "`WORKBENCH_API_REQUIRE_KEY=true`, so that it asks for a key although it listens on this machine "
        "only, and `WORKBENCH_API_ALLOWED_HOSTS` to the name by which others call it."
    )
