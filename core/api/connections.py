"""Connections whose requests don't begin: uvicorn waits for them for ever, and reads headers of any size."""

from __future__ import annotations

import asyncio
from typing import Any

MOST_HEAD_BYTES = 64 << 10
HEAD_PATIENCE_S = 15.0


def protocol() -> type[asyncio.Protocol]:
    """uvicorn's own protocol for HTTP/1.1, which closes such connections."""
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    class Bounded(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        """In a request's head, from its first byte (of the connection: from its beginning) to its last."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._begin_head()

        def connection_lost(self, error: Exception | None) -> None:
            self._patience.cancel()
            super().connection_lost(error)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._in_head:
                self._head_bytes += len(data)
                if self._head_bytes > MOST_HEAD_BYTES:
                    self.transport.abort()

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
