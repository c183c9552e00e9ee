"""Errors in OpenAI's form, which its clients turn into exceptions of their own.

{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}
"""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import JSONResponse

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
    503: "service_unavailable",
}

RETRY_LATER = {"Retry-After": "5"}
"""For what the end of a load or a restart will change."""


class HttpError(Exception):
    """An answer other than the one that was asked for. `message` says what was wrong and what to do."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str | None = None,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type or _TYPES.get(status) or ("server_error" if status >= 500 else _TYPES[400])
        self.param = param
        self.code = code
        self.headers = headers

    @property
    def response(self) -> JSONResponse:
        body = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return JSONResponse({"error": body}, self.status, self.headers)
