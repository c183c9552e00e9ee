"""One server with OpenAI's API: its connections, its errors as ours, and when to ask again.

What a server sends is bounded and read as plain JSON: it is as untrusted as any other input. The
key goes to the server's address only, and is cut out of whatever the server says.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2
import openai
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_exponential_jitter

from core.endpoints import RemoteModel
from core.errors import EngineDied, EngineError, EngineLoadError, RequestRejected

T = TypeVar("T")
Body = Mapping[str, Any]

MOST_BYTES = 32 << 20
"""Of one response, streamed ones included."""
_MOST_MODELS = 2_000
_CONNECT_S, _READ_S, _PROBE_S = 10.0, 600.0, 10.0
_BUSY_TRIES, _BROKEN_TRIES = 10, 3
_LONGEST_WAIT_S = 120.0
_BACK_OFF = wait_exponential_jitter(multiplier=0.5, max=30)
_IDLE_CONNECTION_S = 3.0  # uvicorn closes them after five; one that is closed while we write is lost
_BUSY = (429, 503)
# To find a free connection, httpx looks at all of them: with 256 in one pool that took half of the time.
_CONNECTIONS = 16


@dataclass(slots=True)
class _Line:
    client: openai.AsyncOpenAI
    busy: int = 0


class _Again(RequestRejected):
    """Worth another try, in `wait_s` seconds (None: longer each time), `tries` times in all."""

    def __init__(self, message: str, *, hint: str, tries: int, wait_s: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.tries = tries
        self.wait_s = wait_s


class Refused(RequestRejected):
    """The server said no to this request, and might say yes to another. `status` is HTTP's."""

    def __init__(self, message: str, *, hint: str, status: int) -> None:
        super().__init__(message, hint=hint)
        self.status = status


class Broken(RequestRejected):
    """The connection broke off in the middle of an answer, and the server is there."""


class Server:
    """Asks the server at `base_url`. For one event loop; `close` when done.

    Each method raises EngineDied where the server can't be reached any more, and RequestRejected for
    everything else. Before the first byte of an answer, a server that is busy (429, 503) or a
    connection that broke is tried again.
    """

    def __init__(self, base_url: str, key: str | None = None) -> None:
        self.base_url = base_url
        self.host = urlsplit(base_url).netloc
        self.root = base_url.removesuffix("/v1")
        """Where vLLM has what is beside OpenAI's API: /health, /version, /tokenize."""
        self._key = key
        self._has_health = False
        self._looking: asyncio.Task[bool] | None = None
        self._trust = httpx2.create_ssl_context()  # made once: to read the certificates takes a while
        self._lines = [_Line(self._new_client())]

    async def models(self) -> tuple[RemoteModel, ...]:
        """What the server says it has."""
        reply = await self._retried(lambda: self._get("/models", object))
        entries = reply.get("data") if isinstance(reply, dict) else None
        if not isinstance(entries, list):
            raise RequestRejected(
                f"{self.host} gives no list of models.", hint="Check that the address ends in /v1."
            )
        return tuple(map(_model, filter(_is_model, entries[:_MOST_MODELS])))

    async def post(self, path: str, body: Body) -> dict[str, Any]:
        """The reply to `body`, a JSON object."""

        async def ask() -> Any:
            with self._line() as client:
                return await client.post(path, cast_to=object, body=dict(body))

        return self._object(await self._retried(ask))

    async def stream(self, path: str, body: Body) -> AsyncIterator[dict[str, Any]]:
        """The chunks of a streamed reply. Closing the iterator closes the connection."""
        with self._line() as client:

            async def open_stream() -> Any:
                return await client.post(
                    path,
                    cast_to=object,
                    body={**body, "stream": True},
                    stream=True,
                    stream_cls=openai.AsyncStream[object],
                )

            stream = await self._retried(open_stream)
            try:
                async for chunk in stream:
                    yield self._object(chunk)
            except (openai.OpenAIError, httpx2.HTTPError, httpx2.StreamError, ValueError) as error:
                raise await self._explained(error, broken_after_begin=True) from error
            finally:
                await asyncio.shield(stream.close())

    async def get(self, path: str) -> Any:
        """JSON beside the API, such as vLLM's /version; None where there is no such thing."""
        try:
            return await self._get(self.root + path, object)
        except (openai.OpenAIError, httpx2.HTTPError, ValueError):
            return None

    async def look_for_health(self) -> bool:
        """Whether the server has vLLM's /health, which `is_alive` asks from then on."""
        self._has_health = await self._answers("/health") == 200
        return self._has_health

    async def is_alive(self) -> bool:
        """Whether the server answers at all; callers at the same time share one look."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        looking = self._looking
        await asyncio.wait({looking})  # it is nobody's own: to leave it doesn't end it, nor does its end
        return not looking.cancelled() and looking.result()

    async def _look(self) -> bool:
        for wait_s in (0.0, 0.5):
            await asyncio.sleep(wait_s)
            if self._has_health:
                alive = await self._answers("/health") == 200
            else:
                status = await self._answers("/models", base=self.base_url)
                alive = status is not None and status < 500  # a proxy without a server says 502 or 503
            if alive:
                return True
        return False

    async def _answers(self, path: str, base: str | None = None) -> int | None:
        """The HTTP status there, None where nobody answers."""
        try:
            await self._get((base or self.root) + path, httpx2.Response)
        except openai.APIStatusError as error:
            return error.status_code
        except (openai.OpenAIError, httpx2.HTTPError, RequestRejected):
            return None
        return 200

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
        for line in self._lines:
            await line.client.close()

    @contextlib.contextmanager
    def _line(self) -> Iterator[openai.AsyncOpenAI]:
        """A client for one request, of a few that each have few connections."""
        line = min(self._lines, key=lambda one: one.busy)
        if line.busy >= _CONNECTIONS:
            line = _Line(self._new_client())
            self._lines.append(line)
        line.busy += 1
        try:
            yield line.client
        finally:
            line.busy -= 1

    def _new_client(self) -> openai.AsyncOpenAI:
        http = openai.DefaultAsyncHttpxClient(
            follow_redirects=False,  # to another host, prompts and key would go along
            timeout=httpx2.Timeout(_READ_S, connect=_CONNECT_S, pool=None),
            limits=httpx2.Limits(max_connections=None, keepalive_expiry=_IDLE_CONNECTION_S),
            event_hooks={"response": [_bound]},
            verify=self._trust,
        )
        client = openai.AsyncOpenAI(
            base_url=self.base_url,
            api_key=self._key or "none",  # many servers want no key; the client does
            max_retries=0,
            http_client=http,
            default_headers={"Accept-Encoding": "identity"},
        )
        # from the environment, for OpenAI's own server: nobody else needs to know them
        client.organization = client.project = None
        return client

    async def _get(self, path: str, kind: Any) -> Any:
        with self._line() as client:
            return await client.get(path, cast_to=kind, options=_QUICK)

    # -- errors ------------------------------------------------------------------

    async def _retried(self, ask: Callable[[], Awaitable[T]]) -> T:
        async def once() -> T:
            try:
                return await ask()
            except (openai.OpenAIError, httpx2.HTTPError, ValueError) as error:
                raise await self._explained(error) from error

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_Again), wait=_wait_s, stop=_had_enough, reraise=True
        )
        return await retrying(once)

    async def _explained(self, error: Exception, *, broken_after_begin: bool = False) -> EngineError:
        """`error` as one of ours."""
        if isinstance(error, openai.APIStatusError):
            return await self._refused(error)
        if isinstance(error, openai.APITimeoutError | httpx2.TimeoutException):
            if not await self.is_alive():
                return self.died()
            return RequestRejected(f"{self.host} took too long to answer.", hint="Try again later.")
        if isinstance(error, openai.APIConnectionError | httpx2.TransportError):
            if not await self.is_alive():
                return self.died()
            if broken_after_begin:
                return Broken(f"The connection to {self.host} broke off.", hint="Try again.")
            message = f"The connection to {self.host} broke off, {_BROKEN_TRIES} times."
            return _Again(message, hint="Try again.", tries=_BROKEN_TRIES)
        if isinstance(error, openai.APIError):  # an error inside a stream
            return RequestRejected(f"{self.host} failed: {self._told(error)}.", hint="Try again.")
        return RequestRejected(f"{self.host} sent what is no answer.", hint="Check its address.")

    async def _refused(self, error: openai.APIStatusError) -> EngineError:
        status, told = error.status_code, self._told(error)
        if status in (401, 403):  # its words may repeat the key
            what = "the key" if self._key else "requests without a key"
            return RequestRejected(
                f"{self.host} does not accept {what}.", hint="Enter a key on the Models page, under Engines."
            )
        if status == 404:
            words, hint = f"{self.host} has no such thing: {told}.", "Check address and model."
            return Refused(words, hint=hint, status=status)
        if status in (400, 405, 413, 415, 422, 501):
            words, hint = f"{self.host} refused the request: {told}.", "Change the prompt or parameters."
            return Refused(words, hint=hint, status=status)
        if 300 <= status < 400:
            return RequestRejected(f"{self.host} sends to another address.", hint="Give that one.")
        if status >= 500 and not await self.is_alive():
            return self.died()
        if status in _BUSY and error.code != "insufficient_quota":
            wait_s = _asked_to_wait(error.response.headers)
            if wait_s is None or wait_s <= _LONGEST_WAIT_S:
                return _Again(
                    f"{self.host} is too busy: {told}.",
                    hint="Try again later, or with fewer requests at once.",
                    tries=_BUSY_TRIES,
                    wait_s=wait_s,
                )
            told += f"; it asks to wait {wait_s:,.0f} s"
        return Refused(f"{self.host} failed (HTTP {status}): {told}.", hint="Try again later.", status=status)

    def died(self) -> EngineDied:
        return EngineDied(f"{self.host} can't be reached any more.", hint="The workbench waits for it.")

    def _told(self, error: openai.APIError) -> str:
        """What the server says, on one line, without the key."""
        body = error.body
        words = body.get("message", body.get("detail")) if isinstance(body, dict) else body
        text = words if isinstance(words, str) else json.dumps(words) if words else error.message
        text = " ".join(text[:4_000].split())
        if self._key and len(self._key) > 3:
            text = text.replace(self._key, "(key)")
        return text[:400].rstrip(". ") or "no reason given"

    def _object(self, reply: Any) -> dict[str, Any]:
        if not isinstance(reply, dict):
            raise RequestRejected(f"{self.host} sent what is no answer.", hint="Check its address.")
        return reply


def list_models(base_url: str, key: str | None) -> tuple[RemoteModel, ...]:
    """From a thread without an event loop. Raises EngineLoadError."""

    async def ask() -> tuple[RemoteModel, ...]:
        server = Server(base_url, key)
        try:
            return await server.models()
        finally:
            await server.close()

    try:
        return asyncio.run(ask())
    except EngineDied as error:
        host = urlsplit(base_url).netloc
        raise EngineLoadError(
            f"{host} can't be reached.", hint="Check the address, and that the server runs."
        ) from error
    except RequestRejected as error:
        raise EngineLoadError(error.message, hint=error.hint) from error


_QUICK: Any = {"timeout": _PROBE_S}


def _is_model(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("id"), str) and 0 < len(entry["id"]) <= 500


def _model(entry: Mapping[str, Any]) -> RemoteModel:
    meta = entry.get("meta") if isinstance(entry.get("meta"), dict) else {}
    said = (
        entry.get("max_model_len"),  # vLLM
        entry.get("context_length"),  # OpenRouter, Together
        entry.get("max_context_length"),  # Mistral, LM Studio
        entry.get("context_window"),  # Groq
        meta.get("n_ctx"),  # llama.cpp
        meta.get("n_ctx_train"),
    )
    context = next((size for size in said if isinstance(size, int) and 0 < size < 1 << 31), None)
    parent = entry.get("parent")
    return RemoteModel(entry["id"], context, parent if isinstance(parent, str) else None)


def _asked_to_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that Retry-After gives, as a number or a date; None where it says nothing."""
    text = headers.get("retry-after", "")
    with contextlib.suppress(ValueError):
        return max(0.0, float(text))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    return None


def _wait_s(state: RetryCallState) -> float:
    asked = state.outcome.exception().wait_s
    return _BACK_OFF(state) if asked is None else asked


def _had_enough(state: RetryCallState) -> bool:
    return state.attempt_number >= state.outcome.exception().tries


async def _bound(response: httpx2.Response) -> None:
    """Let no response grow without end. A compressed one could, so none may be."""
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise RequestRejected("The server sends compressed data, unasked.", hint="Switch that off there.")
    response.stream = _Bounded(response.stream)


class _Bounded(httpx2.AsyncByteStream):
    def __init__(self, inner: Any) -> None:
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._inner:
            size += len(chunk)
            if size > MOST_BYTES:
                raise RequestRejected(
                    f"The server's answer is longer than {MOST_BYTES >> 20} MiB.", hint="Ask for less."
                )
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()
