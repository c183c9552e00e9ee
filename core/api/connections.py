"""Connections that hold a place for nothing: uvicorn waits for ever for a request that doesn't begin and for
a client that doesn't read, and takes headers of any size.
"""

from __future__ import annotations

import asyncio
from typing import Any

MOST_HEAD_BYTES = 64 << 10
HEAD_PATIENCE_S = 15.0
READ_PATIENCE_S = 60.0
"""So long a client may read nothing of what is ready for it."""


def protocol() -> type[asyncio.Protocol]:
    """uvicorn's own protocol for HTTP/1.1, which closes such connections."""
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    class Bounded(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        """`_in_head`: from a request's first byte, or the connection's, to the end of its headers."""

        _stalled: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._begin_head()

        def connection_lost(self, error: Exception | None) -> None:
            self._patience.cancel()
            self._end_stall()
            super().connection_lost(error)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._in_head:
                self._head_bytes += len(data)
                if self._head_bytes > MOST_HEAD_BYTES:
                    self.transport.abort()

        def pause_writing(self) -> None:  # what waits for the client has reached the transport's bound
            self._stalled = self.loop.call_later(READ_PATIENCE_S, self.transport.abort)
            super().pause_writing()

        def resume_writing(self) -> None:
            self._end_stall()
            super().resume_writing()

        def _end_stall(self) -> None:
            if self._stalled is not None:
                self._stalled.cancel()

        def on_message_begin(self) -> None:
            self._patience.cancel()
            self._begin_head()
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._end_head()
            super().on_headers_complete()

        def handle_events(self) -> None:  # of h11, which bounds the head by itself
            super().handle_events()
            if self.cycle is not None:
                self._end_head()

        def _begin_head(self) -> None:
            self._in_head, self._head_bytes = True, 0
            self._patience = self.loop.call_later(HEAD_PATIENCE_S, self._give_up)

        def _end_head(self) -> None:
            self._in_head = False
            self._patience.cancel()

        def _give_up(self) -> None:
            if self._in_head:
                self.transport.abort()

    return Bounded
