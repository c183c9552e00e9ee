"""Times and ends of API requests as pages write them."""

from __future__ import annotations

import datetime as dt
import zoneinfo

import streamlit as st

_ENDS = {
    200: "answered",
    400: "bad request, or aborted",
    401: "no valid key",
    404: "no such model or address",
    413: "too large",
    421: "wrong host",
    429: "over a limit",
    499: "client went away",
    500: "failed",
    501: "engine can't",
    503: "no engine",
}


def end_words(status: int) -> str:
    """200 answered, 429 over a limit."""
    otherwise = "answered" if status < 400 else "refused" if status < 500 else "failed"
    return f"{status} {_ENDS.get(status, otherwise)}"


def ago(when: dt.datetime) -> str:
    """just now, 5 min ago, 3 h ago, on 2026-11-02."""
    seconds = (dt.datetime.now(dt.UTC) - when).total_seconds()
    if seconds < 60:
        return "just now"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min ago"
    if seconds < 24 * 3600:
        return f"{seconds // 3600:.0f} h ago"
    return f"on {local(when):%Y-%m-%d}"


def local(when: dt.datetime) -> dt.datetime:
    """In the time zone of the browser; the server's where it doesn't tell."""
    name = st.context.timezone
    try:
        return when.astimezone(zoneinfo.ZoneInfo(name) if name else None)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError):  # what a browser says comes from outside
        return when.astimezone()
