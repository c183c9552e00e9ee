"""Servers with OpenAI's API that were saved: their addresses here, their keys in `core.secrets`."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from urllib.parse import urlsplit

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from core.catalogue_schema import endpoints as _endpoints
from core.errors import ParameterError
from core.secrets import Secrets
from core.store import Store

DEFAULT_SLOTS = 64
"""Requests that a batch keeps in flight at a server, where nothing else is said."""
_LONGEST = 500


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`base_url` ends like "/v1", without a slash behind it. `has_key`: one is saved for it."""

    base_url: str
    name: str
    has_key: bool


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A model that a server offers. `max_model_len` in tokens, None where the server doesn't say.

    `parent`: the model that this one is a LoRA adapter of.
    """

    name: str
    max_model_len: int | None = None
    parent: str | None = None


class Endpoints:
    """From any thread, and with several processes."""

    def __init__(self, store: Store, secrets: Secrets) -> None:
        self._store = store
        self._secrets = secrets

    def save(self, base_url: str, name: str = "", key: str | None = None) -> Endpoint:
        """Keep it, in place of the one at this address; a `key` of None leaves the key that is there.

        Raises ParameterError for an address or key that can't be one.
        """
        base_url = checked_url(base_url)
        name = " ".join(name.split())[:_LONGEST] or urlsplit(base_url).netloc
        if key is not None:
            self._secrets.save(secret_name(base_url), key)
        values = {"name": name, "updated_at": dt.datetime.now(dt.UTC)}
        query = sqlite.insert(_endpoints).values(base_url=base_url, **values)
        self._store.execute(query.on_conflict_do_update(index_elements=["base_url"], set_=values))
        return Endpoint(base_url, name, self._secrets.find(secret_name(base_url)) is not None)

    def list(self) -> list[Endpoint]:
        """By name."""
        query = sa.select(_endpoints).order_by(sa.func.casefold(_endpoints.c.name), _endpoints.c.base_url)
        return [
            Endpoint(
                row["base_url"], row["name"], self._secrets.find(secret_name(row["base_url"])) is not None
            )
            for row in self._store.all(query)
        ]

    def delete(self, base_url: str) -> None:
        """Forget it and its key. Nothing happens where there is none."""
        self._secrets.forget(secret_name(base_url))
        self._store.execute(sa.delete(_endpoints).where(_endpoints.c.base_url == base_url))

    def models(self, base_url: str) -> tuple[RemoteModel, ...]:
        """Ask the server which models it has; blocks for some seconds at most. Raises EngineLoadError."""
        from core.engines import openai_client

        base_url = checked_url(base_url)
        return openai_client.list_models(base_url, self._secrets.find(secret_name(base_url)))


def secret_name(base_url: str) -> str:
    """Where `core.secrets` has the key of the server at this address."""
    return f"endpoint:{base_url}"


def checked_url(text: str) -> str:
    """The address as it is used: http(s), no slash at the end, "/v1" where it has no path.

    Raises ParameterError.
    """
    hint = "Write it as http://server:8000/v1."
    try:
        parts = urlsplit(text.strip())
        port = parts.port
    except ValueError as error:
        raise ParameterError("This is no address of a server.", hint=hint) from error
    wrong = parts.scheme not in ("http", "https") or not parts.hostname or port == 0
    if wrong or any(letter.isspace() or not letter.isprintable() for letter in text.strip()):
        raise ParameterError("This is no address of a server.", hint=hint)
    if parts.username or parts.password:
        raise ParameterError("The address has a user name or password in it.", hint="Give the key by itself.")
    if parts.query or parts.fragment or len(text) > _LONGEST:
        raise ParameterError("The address goes on behind its path, or is too long.", hint=hint)
    path = parts.path.rstrip("/") or "/v1"
    return f"{parts.scheme}://{parts.netloc.lower()}{path}"
