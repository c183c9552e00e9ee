"""Pages of other sites that may ask from a browser (CORS, as the Fetch standard has it). None by default."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

Headers = list[tuple[bytes, bytes]]

_ORIGIN = re.compile(r"https?://[^\s/,@?#]+")
_METHODS = b"GET, POST, DELETE"
_READABLE = b"Retry-After"
_REMEMBERED_S = b"600"


def listed(text: str) -> tuple[str, ...]:
    """The origins of a list with commas, in lower case. Raises ValueError for what is none."""
    origins = tuple(part.strip().lower() for part in text.split(",") if part.strip())
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            raise ValueError(
                f"{origin!r} is no origin such as https://app.example.org or http://localhost:3000"
            )
    return origins


class AllowedOrigins:
    """What is answered to pages of these origins, beside the answer itself."""

    def __init__(self, origins: Iterable[str]) -> None:
        self._origins = frozenset(origins)

    def allows(self, origin: str | None) -> bool:
        return origin is not None and origin.lower() in self._origins

    def headers(self, origin: str | None) -> Headers:
        """With which a browser shows the answer to the page; without them it keeps it back."""
        if not self._origins:
            return []
        vary = [(b"vary", b"Origin")]  # what keeps answers must not give one page that of another
        if not self.allows(origin):
            return vary
        return [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-expose-headers", _READABLE),
            *vary,
        ]

    def preflight(self, method: str, headers: Mapping[str, str]) -> Headers | None:
        """Answers a browser's question whether the page may ask; None: that is not what is asked.

        It comes without the page's key, and asks nothing of the engine.
        """
        if method != "OPTIONS" or "access-control-request-method" not in headers:
            return None
        if not self.allows(headers.get("origin")):
            return None
        # clients send headers of their own making, such as x-stainless-os
        wanted = headers.get("access-control-request-headers", "").encode("latin-1")
        found = [
            (b"access-control-allow-methods", _METHODS),
            (b"access-control-allow-headers", wanted),
            (b"access-control-max-age", _REMEMBERED_S),
        ]
        if headers.get("access-control-request-private-network") == "true":
            found.append((b"access-control-allow-private-network", b"true"))
        return found
