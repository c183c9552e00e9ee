"""The API's server: started and stopped at any time, on the runtime's own loop, whatever engine is loaded."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from core.api import tls
from core.api.context import ApiContext
from core.api.gate import is_loopback
from core.api.keys import ApiKeys
from core.api.live import LiveCalls
from core.api.records import ApiStatus, LiveRequest
from core.api.usage import Usage
from core.errors import ApiError, WorkbenchError
from core.runtime import Runtime
from core.settings import Settings
from core.store import Store

if TYPE_CHECKING:
    from core.api.app import ApiApp
    from core.api.gate import Gate
    from core.api.models import ModelNames
    from core.api.routes import OwnApi
    from core.jobs import Jobs

_log = logging.getLogger(__name__)
_LOOK_EVERY_S = 0.25
_NAMES_EVERY_S = 2.0
_STOP_S = 2
_CLOSE_PATIENCE_S = 10.0
_KEEP_ALIVE_S = 30
_MOST_CONNECTIONS = 4096


class ApiServer:
    """One server a workspace. Every method returns at once, from any thread.

    `keys` opens it, `usage` has what was asked. `jobs` gives the queue that batches go through; without
    it the server makes its own at the first batch.
    """

    def __init__(
        self,
        runtime: Runtime,
        store: Store,
        settings: Settings,
        *,
        jobs: Callable[[], Jobs] | None = None,
    ) -> None:
        self._runtime = runtime
        self._store = store
        self._settings = settings
        self._lock = threading.Lock()
        self._own_jobs: Jobs | None = None
        self._jobs = jobs or self._make_jobs
        self._live = LiveCalls()
        self._status = ApiStatus(phase="stopped", host=settings.api_host, port=settings.api_port)
        self._server: Any = None
        self._future: Future[None] | None = None
        self.keys = ApiKeys(store)
        self.usage = Usage(store)
        runtime.add_user("API requests", lambda: len(self._live))

    def start(self, host: str | None = None, port: int | None = None) -> None:
        """Begin to serve; `status` says how it goes. Raises ApiError when it serves already."""
        host = self._settings.api_host if host is None else host.strip()
        port = self._settings.api_port if port is None else port
        with self._lock:
            if self._future is not None and not self._future.done():
                raise ApiError("The API is at work already.", hint="Stop it first.")
            self._status = ApiStatus(phase="starting", host=host, port=port, needs_key=self._needs_key(host))
            self._future = self._runtime.spawn(self._run(host, port))

    def stop(self) -> None:
        """End it. Requests at work are broken off."""
        with self._lock:
            server, future = self._server, self._future
        if server is not None:
            server.should_exit = True
            self._runtime.spawn(self._abort_all())
        elif future is not None:
            future.cancel()

    def status(self) -> ApiStatus:
        return self._status

    def live(self) -> tuple[LiveRequest, ...]:
        """The requests at work, oldest first."""
        now = time.monotonic()
        return tuple(call.as_live(now) for call in self._live.all())

    def abort(self, request_id: str) -> None:
        """End one request; its client is told. Nothing happens when it has ended meanwhile."""
        self._runtime.spawn(self._abort(request_id))

    def wait(self, timeout_s: float | None = None) -> ApiStatus:
        """Wait on this thread until the server serves, or has ended; gives the status then."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while self._status.phase == "starting" and (end is None or time.monotonic() < end):
            time.sleep(0.02)
        return self._status

    def close(self) -> None:
        """Stop, wait for the end, and write what was counted. Safe to call twice."""
        self.stop()
        if self._future is not None:
            wait([self._future], timeout=_CLOSE_PATIENCE_S)
        self.usage.close()
        if self._own_jobs is not None:
            self._own_jobs.close()

    # -- the inside ------------------------------------------------------------

    def _needs_key(self, host: str) -> bool:
        return self._settings.api_require_key or not is_loopback(host)

    def _make_jobs(self) -> Jobs:
        from core.jobs import Jobs

        with self._lock:
            if self._own_jobs is None:
                self._own_jobs = Jobs(self._runtime, self._store)
            return self._own_jobs

    def _refresh(self) -> None:
        """What is read from the catalogue now and then: not on the loop."""
        self.keys.refresh()
        self.usage.tokens_today("")

    async def _abort(self, request_id: str) -> None:
        call = self._live.find(request_id)
        if call is not None:
            call.abort()

    async def _abort_all(self) -> None:
        for call in self._live.all():
            call.abort()

    async def _run(self, host: str, port: int) -> None:
        try:
            await self._serve(host, port)
        except ApiError as error:
            self._status = replace(self._status, phase="failed", url=None, error=str(error))
        except Exception as error:
            _log.exception("The API could not go on")
            self._status = replace(self._status, phase="failed", url=None, error=f"{error}")
        except asyncio.CancelledError:
            self._status = replace(self._status, phase="stopped", url=None)
            raise
        else:
            self._status = replace(self._status, phase="stopped", url=None, models=())
        finally:
            self._server = None

    async def _serve(self, host: str, port: int) -> None:
        certificate = await self._runtime.in_thread(lambda: tls.certificate(self._settings))
        listening = await bind(host, port)
        try:
            # imports web frameworks: 0.3 s that chats would wait for
            app, gate, own = await self._runtime.in_thread(lambda: self._make_app(host))
            server = await self._runtime.in_thread(lambda: _server(gate, certificate))
            own.start()
        except BaseException:
            listening.close()
            raise
        following = asyncio.create_task(self._follow(app, own.names))
        try:
            self._server = server
            port = listening.getsockname()[1]
            # the socket listens: who comes before uvicorn does is answered by it
            url = _url(self._name(host, certificate), port, is_secure=certificate is not None)
            self._status = replace(self._status, phase="serving", port=port, url=url)
            await server.serve(sockets=[listening])
        finally:
            following.cancel()
            await asyncio.wait({following})
            await self._runtime.in_thread(own.close)
            listening.close()

    def _name(self, host: str, certificate: tls.Certificate | None) -> str:
        """By which it is called: a certificate is made out to a name, and hardly to an address."""
        names = self._allowed_hosts()
        return names[0] if names and certificate is not None else host

    def _allowed_hosts(self) -> list[str]:
        return [name.strip() for name in self._settings.api_allowed_hosts.split(",") if name.strip()]

    def _make_app(self, host: str) -> tuple[ApiApp, Gate, OwnApi]:
        from core.api import cors
        from core.api.app import ApiApp
        from core.api.gate import Gate
        from core.api.limits import Limits
        from core.api.routes import OwnApi

        settings = self._settings
        context = ApiContext(runtime=self._runtime, store=self._store, settings=settings, jobs=self._jobs)
        own = OwnApi(context)
        counts = (self.usage.tokens_today, self._live.tokens_of, own.tokens_today)
        limits = Limits(
            lambda key_id: sum(count(key_id) for count in counts), at_once=settings.api_max_requests
        )
        app = ApiApp(self._runtime, own.names, own.routes())
        gate = Gate(
            app,
            keys=self.keys,
            limits=limits,
            live=self._live,
            usage=self.usage,
            needs_key=self._needs_key(host),
            bound_to=host,
            allowed_hosts=self._allowed_hosts(),
            allowed_origins=cors.listed(settings.api_allowed_origins),
            most_body_bytes=settings.api_max_body_bytes,
        )
        return app, gate, own

    async def _follow(self, app: ApiApp, names: ModelNames) -> None:
        """Keep up with engines that come and go, with keys, and with the names of models."""
        named_at = 0.0
        while True:
            try:
                await app.follow()
                await self._runtime.in_thread(self._refresh)
                if time.monotonic() - named_at >= _NAMES_EVERY_S:
                    named_at = time.monotonic()
                    models = await self._runtime.in_thread(names.names)
                    self._status = replace(self._status, models=models)
            except WorkbenchError as error:
                _log.warning("The API: %s", error)
            except Exception:
                _log.exception("The API could not follow the engine")
            await asyncio.sleep(_LOOK_EVERY_S)


async def bind(host: str, port: int) -> socket.socket:
    """A socket on this address. Raises ApiError with what to do about it."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ApiError(f"{host!r} is no address: {error}.", hint="Use 127.0.0.1, or 0.0.0.0.") from error
    # "localhost" is both: clients that are told 127.0.0.1 must find it
    family, kind, protocol, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(2048)
    except (OSError, OverflowError) as error:
        listening.close()
        raise ApiError(
            f"The API can't listen on {host}, port {port}: {_why(error)}", hint=_remedy(error)
        ) from error
    return listening


def _why(error: Exception) -> str:
    reasons = {
        errno.EADDRINUSE: "another program has the port.",
        errno.EACCES: "this port is not for everybody.",
        errno.EADDRNOTAVAIL: "this machine has no such address.",
    }
    return reasons.get(getattr(error, "errno", None), f"{error}.")


def _remedy(error: Exception) -> str:
    if getattr(error, "errno", None) == errno.EADDRNOTAVAIL:
        return "Use 127.0.0.1 for this machine alone, or 0.0.0.0 for all its addresses."
    return "Choose another port, above 1024; 0 is a free one."


def _url(host: str, port: int, *, is_secure: bool) -> str:
    """Where this machine itself reaches it."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http{'s' if is_secure else ''}://{f'[{name}]' if ':' in name else name}:{port}"


def _server(app: Any, certificate: tls.Certificate | None) -> Any:
    import uvicorn

    from core.api.connections import protocol

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield  # signals are the whole program's

    config = uvicorn.Config(
        app,
        http=protocol(),
        ws="none",
        lifespan="off",
        log_config=None,  # Streamlit's server is uvicorn too, and logs as it likes
        access_log=False,
        proxy_headers=False,
        server_header=False,
        interface="asgi3",
        h11_max_incomplete_event_size=64 << 10,
        limit_concurrency=_MOST_CONNECTIONS,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_STOP_S,
        reset_contextvars=True,
        ssl_certfile=certificate and str(certificate.file),
        ssl_keyfile=certificate and certificate.key and str(certificate.key),
    )
    config.load()
    return Server(config)
