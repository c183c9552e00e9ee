"""What all pages and browser sessions share: one of each, made on first use, closed with the server.

In a module that pages import, not in Home.py: Home.py runs under two names
(as the server's app and as the page), which would make two of everything.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from core.adapters.merging import Merges
from core.adapters.registry import Adapters
from core.api.server import ApiServer
from core.chat import Chats
from core.comparing.runner import Comparisons
from core.endpoints import Endpoints
from core.errors import WorkbenchError
from core.hub.downloads import Downloads
from core.models.importing import Imports
from core.models.library import Library
from core.presets import Presets
from core.prompt_styles import Wrappers
from core.runtime import Runtime
from core.saved_settings import SavedSettings
from core.secrets import Secrets
from core.store import Store
from core.types import EngineSpec

if TYPE_CHECKING:
    from core.bench.engines import Engines
    from core.bench.runner import Benchmarks
    from core.bench.tuning import Tuning
    from core.jobs import Jobs

ROOT = Path(__file__).resolve().parents[2]
PROMOTED = "batch:promoted"
"""Key of {"prompt": PromptSpec, "params": ..., "name": ...}: what the batch page fills in next."""

# users before what they use
_CLOSE_ORDER = (
    "api", "tuning", "bench_engines", "benchmarks", "merges", "jobs", "comparisons", "chats", "downloads",
    "imports", "runtime", "store",
)  # fmt: skip
_log = logging.getLogger(__name__)


@st.cache_resource(show_spinner=False)
def _opened() -> dict[str, Any]:
    """What has been made. Cached too: the file watcher may load this module anew and forget a global."""
    return {}


@st.cache_resource(show_spinner=False)
def runtime() -> Runtime:
    return _opened().setdefault("runtime", Runtime())


@st.cache_resource(show_spinner=False)
def store() -> Store:
    return _opened().setdefault("store", Store(runtime().settings.catalogue_path))


@st.cache_resource(show_spinner=False)
def chats() -> Chats:
    return _opened().setdefault("chats", Chats(runtime(), store()))


@st.cache_resource(show_spinner=False)
def comparisons() -> Comparisons:
    return _opened().setdefault("comparisons", Comparisons(runtime(), store()))


@st.cache_resource(show_spinner=False)
def benchmarks() -> Benchmarks:
    from core.bench.runner import Benchmarks

    opened = _opened().setdefault("benchmarks", Benchmarks(runtime(), store(), runtime().settings))
    opened.sweep()
    return opened


@st.cache_resource(show_spinner=False)
def bench_engines() -> Engines:
    from core.bench.engines import Engines

    return _opened().setdefault("bench_engines", Engines(benchmarks(), runtime(), saved_settings()))


@st.cache_resource(show_spinner=False)
def tuning() -> Tuning:
    from core.bench.tuning import Tuning

    return _opened().setdefault("tuning", Tuning(benchmarks(), runtime(), saved_settings()))


@st.cache_resource(show_spinner=False)
def presets() -> Presets:
    return Presets(store())


@st.cache_resource(show_spinner=False)
def wrappers() -> Wrappers:
    return Wrappers(store())


@st.cache_resource(show_spinner=False)
def secrets() -> Secrets:
    return Secrets(runtime().settings)


@st.cache_resource(show_spinner=False)
def downloads() -> Downloads:
    return _opened().setdefault("downloads", Downloads(runtime().settings, store()))


@st.cache_resource(show_spinner=False)
def adapters() -> Adapters:
    return Adapters(runtime().settings, store())


@st.cache_resource(show_spinner=False)
def merges() -> Merges:
    return _opened().setdefault("merges", Merges(runtime().settings, store()))


@st.cache_resource(show_spinner=False)
def library() -> Library:
    return Library(runtime().settings, store())


@st.cache_resource(show_spinner=False)
def imports() -> Imports:
    return _opened().setdefault("imports", Imports(runtime().settings, store()))


@st.cache_resource(show_spinner=False)
def endpoints() -> Endpoints:
    return Endpoints(store(), secrets())


@st.cache_resource(show_spinner=False)
def saved_settings() -> SavedSettings:
    return SavedSettings(store())


@st.cache_resource(show_spinner=False)
def jobs() -> Jobs:
    from core.jobs import Jobs

    opened = _opened().setdefault("jobs", Jobs(runtime(), store()))
    opened.sweep()
    return opened


@st.cache_resource(show_spinner=False)
def api() -> ApiServer:
    return _opened().setdefault("api", ApiServer(runtime(), store(), runtime().settings, jobs=_jobs))


def _jobs() -> Jobs:
    """For threads that belong to no page."""
    with _outside_scripts():
        return jobs()


def close() -> None:
    """Close everything that was made, and forget it. Safe to call twice."""
    opened = _opened()
    for name in _CLOSE_ORDER:
        if name in opened:
            opened.pop(name).close()
    for cached in (
        runtime, store, chats, comparisons, presets, wrappers, downloads, adapters, merges, secrets,
        library, imports, endpoints, saved_settings, jobs, benchmarks, bench_engines,
        tuning, api,
    ):  # fmt: skip
        cached.clear()


def first_spec() -> EngineSpec:
    """What the environment asks for, and beside it what was kept for that model."""
    spec, any_engine = runtime().default_spec(), runtime().settings.engine == "auto"
    return saved_settings().applied(spec, engine_too=any_engine)


def ensure_loaded() -> None:
    """Load that, if nobody has loaded anything yet."""
    runtime().ensure_loaded(first_spec())


@contextlib.asynccontextmanager
async def lifespan(_app: Any) -> AsyncIterator[None]:
    """Around the server's life: start to load before any browser comes, leave nothing behind."""
    # an answer's polling fragment goes when the answer ends, and its last tick may come after that
    with _quiet("streamlit.runtime.app_session", "fragment with id"):
        with _outside_scripts():
            try:
                ensure_loaded()
                if runtime().settings.api_autostart:
                    api().start()
            except WorkbenchError as error:  # the page says it again, to whoever opens it
                _log.error("%s", error)
        yield
        with _outside_scripts():
            close()


def _outside_scripts() -> AbstractContextManager[None]:
    """Calling a cached function outside a page, which Streamlit warns of, is meant here."""
    return _quiet("streamlit.runtime.scriptrunner_utils.script_run_context", "missing ScriptRunContext")


@contextlib.contextmanager
def _quiet(logger_name: str, phrase: str) -> Iterator[None]:
    """Leave out log records of one logger that contain `phrase`."""
    logger = logging.getLogger(logger_name)

    def wanted(record: logging.LogRecord) -> bool:
        return phrase not in record.getMessage()

    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)


class LocalImages:
    """ASGI middleware: browsers fetch images and media from this server only.

    Model output may name any picture in the world, and fetching it tells its
    server what was asked. `pages.parts.markdown` shows such a picture as text;
    this holds even where it would miss one.
    """

    _POLICY = b"img-src 'self' data: blob:; media-src 'self' data: blob:"

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), (b"content-security-policy", self._POLICY)]
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, send_with_policy if scope["type"] == "http" else send)


def page_exists(path: str) -> bool:
    """Whether this page is there to link to, such as "pages/batch.py"."""
    return (ROOT / path).is_file()
