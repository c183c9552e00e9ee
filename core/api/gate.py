"""What a request passes before anything looks at what it asks: its Host, Origin, size, key and limits.

Pure ASGI, in this order. It also lists the request among those at work and books it at its end,
refused ones too.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any

from core.api.cors import AllowedOrigins
from core.api.keys import ApiKeys
from core.api.limits import Limits
from core.api.live import Call, LiveCalls
from core.api.openai_errors import HttpError
from core.api.usage import Usage

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/health",)
"""Paths that need no key: they tell nothing."""
_STREAMED = ("/v1/files",)
"""Paths whose bodies go to disk as they come, within a limit of their own."""
_BODY_PATIENCE_S = 30.0
_CLIENT_LEFT = 499
_UNKNOWN_A_MINUTE = 60
# a page of another site can't have an answer of ours as its script, style or image
_FOR_BROWSERS = (
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-content-type-options", b"nosniff"),
)
_HOST = re.compile(r"^(\[[0-9a-f:.]+\]|[^:]+)(?::\d+)?$")


def is_loopback(host: str) -> bool:
    """Whether a server bound to `host` is reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class Gate:
    """`allowed_hosts` are names, beside this machine's own, that requests may give as their Host;
    `allowed_origins` are pages of other sites that may ask, as `cors.listed` gives them.
    """

    def __init__(
        self,
        app: App,
        *,
        keys: ApiKeys,
        limits: Limits,
        live: LiveCalls,
        usage: Usage,
        needs_key: bool,
        bound_to: str,
        allowed_hosts: Iterable[str] = (),
        allowed_origins: Iterable[str] = (),
        most_body_bytes: int,
    ) -> None:
        self._app = app
        self._keys = keys
        self._limits = limits
        self._live = live
        self._usage = usage
        self._needs_key = needs_key
        self._hosts = {name.lower() for name in ("localhost", *allowed_hosts)}
        if not is_loopback(bound_to):
            self._hosts |= {bound_to.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}
        self._origins = AllowedOrigins(allowed_origins)
        self._is_local = is_loopback(bound_to)
        self._most_body_bytes = most_body_bytes
        self._unknown: list[float] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # uvicorn is told to begin no web socket and no lifespan
            return
        # our own: a client's would be the engine's name for the request, which must not be taken already
        call = Call(request_id=secrets.token_hex(16), endpoint=scope["path"])
        status, is_whole = _CLIENT_LEFT, False
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        for_page = self._origins.headers(headers.get("origin"))

        async def send_on(message: Message) -> None:
            nonlocal status, is_whole
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *_FOR_BROWSERS, *for_page]}
            else:
                is_whole = not message.get("more_body", False)
            await send(message)

        try:
            await self._let_in(call, scope, headers, receive, send_on)
        except HttpError as error:
            await error.response(scope, receive, send_on)
        finally:
            if scope["method"] != "OPTIONS":  # a browser's question, before the page's own
                self._book(call, status if is_whole or status >= 400 else _CLIENT_LEFT)

    async def _let_in(
        self, call: Call, scope: Scope, headers: Mapping[str, str], receive: Receive, send: Send
    ) -> None:
        self._check_host(headers.get("host", ""))
        may_ask = self._origins.preflight(scope["method"], headers)
        if may_ask is not None:
            await send({"type": "http.response.start", "status": 204, "headers": may_ask})
            await send({"type": "http.response.body"})
            return
        self._check_origin(headers.get("origin"), headers.get("host", ""))
        path = scope["path"]
        is_streamed = path in _STREAMED
        if not is_streamed:
            self._check_length(headers.get("content-length"))
        call.key = self._keys.check(headers.get("authorization"))
        if self._needs_key and call.key is None and path not in OPEN:
            raise HttpError(
                401,
                "This API asks for a key: send one that the workbench made, as Authorization: Bearer wb-….",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        scope = {**scope, "headers": _with_id(scope["headers"], call.request_id)}
        if scope["method"] != "POST":
            with self._live.at_work(call, listed=False):
                await self._app(scope, receive, send)
            return
        self._limits.admit(call.key, len(self._live))
        with self._live.at_work(call):
            if not is_streamed:
                receive = _again(await self._read(receive), receive)
            await self._app(scope, receive, send)

    def _check_host(self, host: str) -> None:
        """A page of another site that had its name point here sends that name: it is refused."""
        found = _HOST.match(host.lower())
        name = found[1] if found else ""
        if name in self._hosts:
            return
        try:
            address = ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            address = None
        if address is None or (self._is_local and not address.is_loopback):
            raise HttpError(
                421,
                f"This API is not called {name[:100]!r}. Use its address, or add the name to "
                "WORKBENCH_API_ALLOWED_HOSTS.",
                code="wrong_host",
            )

    def _check_origin(self, origin: str | None, host: str) -> None:
        """A page of another site that asks from somebody's browser, which needs no key on loopback."""
        if origin is None or self._needs_key or self._origins.allows(origin):
            return
        name = origin.partition("://")[2].lower()
        if name != host.lower():
            raise HttpError(
                403,
                "Pages of other sites may not ask without a key, unless they are among "
                "WORKBENCH_API_ALLOWED_ORIGINS.",
                code="origin_not_allowed",
            )

    def _check_length(self, length: str | None) -> None:
        if length is not None and (not length.isdigit() or int(length) > self._most_body_bytes):
            raise self._too_large()

    def _too_large(self) -> HttpError:
        most = f"{self._most_body_bytes / (1 << 20):,.0f} MiB"
        return HttpError(413, f"The body is larger than {most}. Send less at once.", code="body_too_large")

    async def _read(self, receive: Receive) -> bytes:
        """The whole body. Raises HttpError 413, or 408 when nothing comes for a while."""
        parts, size, more = [], 0, True
        while more:
            try:
                async with asyncio.timeout(_BODY_PATIENCE_S):
                    message = await receive()
            except TimeoutError as error:
                raise HttpError(408, "The rest of the body did not come.", code="body_too_slow") from error
            if message["type"] == "http.disconnect":
                break
            part = message.get("body", b"")
            size += len(part)
            if size > self._most_body_bytes:
                raise self._too_large()
            parts.append(part)
            more = message.get("more_body", False)
        return b"".join(parts)

    def _book(self, call: Call, status: int) -> None:
        now = time.monotonic()
        if call.endpoint in OPEN or (call.key is None and self._needs_key and not self._counts(now)):
            return
        self._usage.record(
            endpoint=call.endpoint,
            status=call.failed or status,
            duration_s=now - call.began_s,
            key_id=call.key_id,
            model=call.model,
            ttft_s=None if call.first_token_s is None else call.first_token_s - call.began_s,
            prompt_tokens=call.prompt_tokens,
            output_tokens=call.output_tokens,
        )

    def _counts(self, now: float) -> bool:
        """Whether a request without a key is booked: not all of them, else anybody could fill the disk."""
        self._unknown = [at for at in self._unknown if at > now - 60]
        if len(self._unknown) >= _UNKNOWN_A_MINUTE:
            return False
        self._unknown.append(now)
        return True


def _with_id(headers: Iterable[tuple[bytes, bytes]], request_id: str) -> list[tuple[bytes, bytes]]:
    """The headers with our id, and without what would let a client choose its own priority."""
    replaced = (b"x-request-id", b"x-vllm-priority", b"x-data-parallel-rank")
    kept = [(name, value) for name, value in headers if name not in replaced]
    return [*kept, (b"x-request-id", request_id.encode())]


def _again(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body, which was read, and then what comes after it."""
    is_given = False

    async def receive_again() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again
