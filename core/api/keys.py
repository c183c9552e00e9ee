"""Keys of the API: made once and shown once; what is kept is the SHA-256 of 256 random bits."""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import math
import secrets
import threading
import time
from typing import Any

import sqlalchemy as sa

from core.api.records import ApiKey, KeyLimits
from core.catalogue_schema import api_keys as _keys
from core.errors import ApiError
from core.store import Store

_PREFIX = "wb-"
_SHOWN = 8  # characters of a secret that are kept to know it by: 5 of its 43 random ones
_FRESH_S = 1.0
_WRITE_EVERY_S = 5.0  # each write waits for the disk
_LONGEST_NAME = 80
_LOWEST_PRIORITY = 9


class ApiKeys:
    """All keys of one workspace, from any thread. What other processes change is seen within a second
    of `refresh`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._valid: tuple[tuple[str, ApiKey], ...] | None = None
        self._read_at = 0.0
        self._wrote_at = -math.inf
        self._used: dict[str, dt.datetime] = {}

    def create(self, name: str, limits: KeyLimits = KeyLimits()) -> tuple[ApiKey, str]:  # noqa: B008
        """A new key and its secret, which nobody can find out later.

        Raises ApiError for a name that can't be used or is taken, and for limits that make no sense.
        """
        name = _checked_name(name)
        secret = _PREFIX + secrets.token_urlsafe(32)
        key = ApiKey(
            key_id=f"key-{secrets.token_hex(8)}",
            name=name,
            start=secret[:_SHOWN],
            created_at=dt.datetime.now(dt.UTC),
            limits=_checked_limits(limits),
        )
        values = {
            "key_id": key.key_id,
            "name": key.name,
            "start": key.start,
            "digest": _digest(secret),
            "created_at": key.created_at,
            "limits": _as_json(limits),
        }
        with self._store.transaction() as connection:
            same = sa.func.casefold(_keys.c.name) == name.casefold()
            taken = sa.select(_keys.c.key_id).where(same, _keys.c.revoked_at.is_(None))
            if connection.execute(taken).first() is not None:
                raise ApiError(f"There is a key {name!r} already.", hint="Choose another name.")
            connection.execute(sa.insert(_keys).values(values))
        self._forget()
        return key, secret

    def list(self, *, revoked: bool = False) -> tuple[ApiKey, ...]:
        """By name; those that were revoked only if asked for."""
        query = sa.select(_keys).order_by(sa.func.casefold(_keys.c.name), _keys.c.created_at)
        if not revoked:
            query = query.where(_keys.c.revoked_at.is_(None))
        return tuple(_key(row) for row in self._store.all(query))

    def revoke(self, key_id: str) -> None:
        """From now on it opens nothing. Raises ApiError when there is no such key."""
        self._change(key_id, revoked_at=dt.datetime.now(dt.UTC))

    def set_limits(self, key_id: str, limits: KeyLimits) -> None:
        """Raises ApiError when there is no such key, and for limits that make no sense."""
        self._change(key_id, limits=_as_json(_checked_limits(limits)))

    def check(self, header: str | None) -> ApiKey | None:
        """The key that an Authorization header ("Bearer wb-…") carries, or None. Answers from memory."""
        scheme, _, secret = (header or "").partition(" ")
        if scheme.lower() != "bearer" or not secret:
            return None
        digest = _digest(secret.strip())
        found = None
        for known, key in self._known():  # all of them: how long it takes tells nothing
            if hmac.compare_digest(known, digest):
                found = key
        if found is not None:
            self._used[found.key_id] = dt.datetime.now(dt.UTC)
        return found

    def refresh(self) -> None:
        """Read what other processes changed, and write when keys were used. Blocks: not on the loop."""
        now = time.monotonic()
        if self._used and now - self._wrote_at >= _WRITE_EVERY_S:
            used, self._used, self._wrote_at = self._used, {}, now
            with self._store.transaction() as connection:
                for key_id, at in used.items():
                    changed = sa.update(_keys).where(_keys.c.key_id == key_id)
                    connection.execute(changed.values(last_used_at=at))
        if now - self._read_at >= _FRESH_S:
            self._read()

    def _known(self) -> tuple[tuple[str, ApiKey], ...]:
        return self._read() if self._valid is None else self._valid

    def _read(self) -> tuple[tuple[str, ApiKey], ...]:
        with self._lock:
            rows = self._store.all(sa.select(_keys).where(_keys.c.revoked_at.is_(None)))
            self._valid = valid = tuple((row["digest"], _key(row)) for row in rows)
            self._read_at = time.monotonic()
            return valid

    def _forget(self) -> None:
        with self._lock:
            self._valid = None

    def _change(self, key_id: str, **values: Any) -> None:
        with self._store.transaction() as connection:
            changed = sa.update(_keys).where(_keys.c.key_id == key_id, _keys.c.revoked_at.is_(None))
            if not connection.execute(changed.values(values)).rowcount:
                raise ApiError("There is no such key.", hint="It was revoked already.")
        self._forget()


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _checked_name(name: str) -> str:
    name = name.strip()
    if not name or len(name) > _LONGEST_NAME or not name.isprintable():
        raise ApiError(
            f"A key can't be named {name[:_LONGEST_NAME]!r}.",
            hint=f"Give it a name on one line, of 1 to {_LONGEST_NAME} characters.",
        )
    return name


def _checked_limits(limits: KeyLimits) -> KeyLimits:
    if not 0 <= limits.priority <= _LOWEST_PRIORITY:
        raise ApiError(
            f"A key can't have the priority {limits.priority}.", hint=f"Give 0 (first) to {_LOWEST_PRIORITY}."
        )
    for name in ("requests_per_minute", "tokens_per_day"):
        value = getattr(limits, name)
        if value is not None and value < 1:
            raise ApiError(
                f"{name} = {value} makes no sense.", hint="Give 1 or more, or leave it out for no limit."
            )
    return limits


def _as_json(limits: KeyLimits) -> dict[str, int | None]:
    return {
        "requests_per_minute": limits.requests_per_minute,
        "tokens_per_day": limits.tokens_per_day,
        "priority": limits.priority,
    }


def _key(row: dict[str, Any]) -> ApiKey:
    fields = ("key_id", "name", "start", "created_at", "revoked_at", "last_used_at")
    return ApiKey(**{name: row[name] for name in fields}, limits=KeyLimits(**row["limits"]))
