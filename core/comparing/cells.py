"""Comparisons as the catalogue keeps them: the specification, a row for each answer, the votes."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
import sqlalchemy.dialects.sqlite

from core.catalogue_schema import compare_cells as _cells
from core.catalogue_schema import compare_votes as _votes
from core.catalogue_schema import comparisons as _comparisons
from core.comparing.cell import Cell, Place, Vote
from core.comparing.estimate import Measured
from core.comparing.spec import ComparisonSpec, read_spec
from core.store import Store, is_alive, new_id, this_process

_SEARCHED_CHARACTERS = 8_000
_SPECS_REMEMBERED = 16
# what is read often, without the specification, which may be long
_HEAD = (
    _comparisons.c.comparison_id,
    _comparisons.c.created_at,
    _comparisons.c.name,
    sa.func.json_extract(_comparisons.c.body, "$.owner_pid").label("owner_pid"),
    sa.func.json_extract(_comparisons.c.body, "$.owner_started").label("owner_started"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A comparison as it lies in the catalogue. `is_owned`: a process that lives works on it."""

    comparison_id: str
    created_at: dt.datetime
    name: str
    spec: ComparisonSpec
    is_owned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A line in a list of comparisons. `words` says how many prompts, sets and samples."""

    comparison_id: str
    created_at: dt.datetime
    name: str
    words: str
    answers: int
    complete: int
    is_live: bool


class CellStore:
    """The comparisons of one catalogue. Each method is one transaction; safe from any thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._specs: dict[tuple[str, str], ComparisonSpec] = {}

    # -- comparisons ----------------------------------------------------------

    def add(self, spec: ComparisonSpec) -> str:
        """Keep a new comparison, owned by this process. Returns its id."""
        comparison_id = new_id()
        self._store.execute(
            sa.insert(_comparisons).values(
                comparison_id=comparison_id,
                created_at=dt.datetime.now(dt.UTC),
                name=spec.title,
                body={**_body(spec, spec.title), **this_process()},
            )
        )
        return comparison_id

    def find(self, comparison_id: str) -> Kept | None:
        """None: there is none. One that an earlier version wrote is brought into today's form first."""
        query = sa.select(*_HEAD).where(_comparisons.c.comparison_id == comparison_id)
        row = self._store.first(query)
        if row is not None and not row["name"]:  # earlier versions had none
            self._upgrade_all()
            row = self._store.first(query)
        spec = self._spec(comparison_id, row["name"]) if row is not None else None
        if spec is None:
            return None
        return Kept(
            comparison_id=comparison_id,
            created_at=row["created_at"],
            name=row["name"],
            spec=spec,
            is_owned=_is_owned(row),
        )

    def _spec(self, comparison_id: str, name: str) -> ComparisonSpec | None:
        """Remembered, since pages ask for it again and again, and only its name changes."""
        spec = self._specs.get((comparison_id, name))
        if spec is None:
            query = sa.select(_comparisons.c.body).where(_comparisons.c.comparison_id == comparison_id)
            row = self._store.first(query)
            if row is None:  # deleted just now
                return None
            spec = read_spec(row["body"]["spec"])
            if len(self._specs) >= _SPECS_REMEMBERED:
                self._specs.clear()
            self._specs[comparison_id, name] = spec
        return spec

    def list(self, limit: int, search: str) -> list[Listed]:
        """The newest first, those whose name, prompts or sets have `search` in them."""
        self._upgrade_all()
        part = "".join(f"\\{sign}" if sign in "\\%_" else sign for sign in search.strip().casefold())
        query = (
            sa.select(*_HEAD, sa.func.json_extract(_comparisons.c.body, "$.summary").label("summary"))
            .where(
                sa.func.json_extract(_comparisons.c.body, "$.summary.searched").like(f"%{part}%", escape="\\")
            )
            .order_by(_comparisons.c.created_at.desc(), _comparisons.c.comparison_id.desc())
            .limit(limit)
        )
        rows = self._store.all(query)
        complete = self._complete([row["comparison_id"] for row in rows])
        listed = []
        for row in rows:
            summary = json.loads(row["summary"])
            listed.append(
                Listed(
                    comparison_id=row["comparison_id"],
                    created_at=row["created_at"],
                    name=row["name"],
                    words=summary["words"],
                    answers=summary["answers"],
                    complete=complete.get(row["comparison_id"], 0),
                    is_live=_is_owned(row),
                )
            )
        return listed

    def rename(self, comparison_id: str, name: str) -> None:
        with self._store.transaction() as connection:
            body = connection.scalar(
                sa.select(_comparisons.c.body).where(_comparisons.c.comparison_id == comparison_id)
            )
            spec = read_spec({**body["spec"], "name": name})
            connection.execute(
                sa.update(_comparisons)
                .where(_comparisons.c.comparison_id == comparison_id)
                .values(name=name, body={**body, **_body(spec, name)})
            )

    def delete(self, comparison_id: str) -> None:
        """Remove it with its answers and votes."""
        with self._store.transaction() as connection:
            for table in (_votes, _cells, _comparisons):
                connection.execute(sa.delete(table).where(table.c.comparison_id == comparison_id))

    def take(self, comparison_id: str) -> bool:
        """Make this process its owner, unless another one that lives is: then False."""
        with self._store.transaction() as connection:
            body = connection.scalar(
                sa.select(_comparisons.c.body).where(_comparisons.c.comparison_id == comparison_id)
            )
            if body is None or (_is_owned(body) and body["owner_pid"] != this_process()["owner_pid"]):
                return False
            _patch(connection, comparison_id, this_process())
        return True

    def release(self, comparison_id: str, measured: Measured | None) -> None:
        """Nobody works on it any more; `measured` says how fast it went, where something was generated."""
        patch: dict[str, Any] = {"owner_pid": None, "owner_started": None}
        if measured is not None:
            patch["measured"] = {name: getattr(measured, name) for name in Measured.__dataclass_fields__}
        with self._store.transaction() as connection:
            _patch(connection, comparison_id, patch)

    def measured(self, limit: int = 20) -> list[Measured]:
        """How fast the newest comparisons went, the newest first."""
        found = sa.func.json_extract(_comparisons.c.body, "$.measured").label("measured")
        query = sa.select(found).where(found.is_not(None)).order_by(_comparisons.c.created_at.desc())
        return [Measured(**json.loads(row["measured"])) for row in self._store.all(query.limit(limit))]

    # -- answers --------------------------------------------------------------

    def save(self, comparison_id: str, cells: Mapping[Place, Cell]) -> None:
        """Insert or replace all these answers, together; none if the comparison is deleted."""
        rows = [
            {
                "comparison_id": comparison_id,
                "prompt": place.prompt,
                "parameter_set": place.set,
                "sample": place.sample,
                "state": cell.state,
                "text": cell.text,
                "details": dict(cell.details),
            }
            for place, cell in cells.items()
        ]
        with self._store.transaction() as connection:
            if rows and _is_there(connection, comparison_id):
                _insert_cells(connection, rows)

    def cells(self, comparison_id: str) -> dict[Place, Cell]:
        """What there is, in no order. Unfinished answers are as they were last saved."""
        query = sa.select(_cells).where(_cells.c.comparison_id == comparison_id)
        return {
            Place(row["prompt"], row["parameter_set"], row["sample"]): Cell(
                row["text"], row["state"], row["details"]
            )
            for row in self._store.all(query)
        }

    def _complete(self, comparison_ids: Sequence[str]) -> dict[str, int]:
        query = (
            sa.select(_cells.c.comparison_id, sa.func.count().label("complete"))
            .where(_cells.c.comparison_id.in_(comparison_ids), _cells.c.state == "complete")
            .group_by(_cells.c.comparison_id)
        )
        return {row["comparison_id"]: row["complete"] for row in self._store.all(query)}

    # -- votes ----------------------------------------------------------------

    def add_votes(self, comparison_id: str, votes: Sequence[Mapping[str, Any]]) -> None:
        """Keep votes, each in place of what the same voter said before of the same two answers.

        None are kept of a comparison that is deleted.
        """
        now = dt.datetime.now(dt.UTC)
        with self._store.transaction() as connection:
            if not _is_there(connection, comparison_id):
                return
            for place, vote in enumerate(votes):
                pair = (vote["set_a"], vote["set_b"])
                connection.execute(
                    sa.delete(_votes).where(
                        _votes.c.comparison_id == comparison_id,
                        _votes.c.voter == vote["voter"],
                        _votes.c.prompt == vote["prompt"],
                        _votes.c.sample == vote["sample"],
                        _votes.c.set_a.in_(pair),
                        _votes.c.set_b.in_(pair),
                    )
                )
                connection.execute(
                    sa.insert(_votes).values(
                        vote_id=f"{new_id()}-{place}",
                        comparison_id=comparison_id,
                        created_at=now,
                        **vote,
                    )
                )

    def votes(self, comparison_id: str) -> list[Vote]:
        """Oldest first."""
        query = sa.select(_votes).where(_votes.c.comparison_id == comparison_id)
        rows = self._store.all(query.order_by(_votes.c.created_at, _votes.c.vote_id))
        return [
            Vote(**{name: value for name, value in row.items() if name != "comparison_id"}) for row in rows
        ]

    # -- what earlier versions wrote -------------------------------------------

    def _upgrade_all(self) -> None:
        query = sa.select(_comparisons.c.comparison_id, _comparisons.c.body).where(
            sa.func.json_extract(_comparisons.c.body, "$.summary").is_(None)
        )
        for row in self._store.all(query):
            self._upgrade(row["comparison_id"], row["body"])

    def _upgrade(self, comparison_id: str, body: Mapping[str, Any]) -> None:
        """One prompt, its system prompt and its answers in one body: give them their rows."""
        spec = _old_spec(body)
        rows = [
            {
                "comparison_id": comparison_id,
                "prompt": 0,
                "parameter_set": place,
                "sample": 0,
                "state": "interrupted" if cell["state"] == "generating" else cell["state"],
                "text": cell["text"],
                "details": cell["details"],
            }
            for place, cell in enumerate(body["cells"])
        ]
        with self._store.transaction() as connection:
            connection.execute(
                sa.update(_comparisons)
                .where(_comparisons.c.comparison_id == comparison_id)
                .values(name=spec.title, body=_body(spec, spec.title))
            )
            _insert_cells(connection, rows)


def _body(spec: ComparisonSpec, name: str) -> dict[str, Any]:
    """What is kept of a specification. The summary is for lists, which must not read all prompts."""
    searched = "\n".join([name, *(one.name for one in spec.sets), *(item.text for item in spec.prompts)])
    return {
        "summary": {
            "words": spec.words,
            "answers": spec.answers,
            "searched": searched[:_SEARCHED_CHARACTERS].casefold(),
        },
        "spec": spec.model_dump(mode="json"),
    }


def _old_spec(body: Mapping[str, Any]) -> ComparisonSpec:
    names: list[str] = []
    for place, cell in enumerate(body["cells"], start=1):
        name = cell["name"].strip() or f"Set {place}"
        names.append(f"{name} ({place})" if name in names else name)
    system = [{"role": "system", "content": body["system"]}] if body["system"].strip() else []
    return read_spec(
        {
            "prompts": [{"messages": [*system, {"role": "user", "content": body["prompt"]}]}],
            "sets": [
                {"name": name, "params": cell["params"]}
                for name, cell in zip(names, body["cells"], strict=True)
            ],
        }
    )


def _is_there(connection: sa.Connection, comparison_id: str) -> bool:
    """Whether it was not deleted meanwhile."""
    known = sa.select(_comparisons.c.comparison_id).where(_comparisons.c.comparison_id == comparison_id)
    return connection.scalar(known) is not None


def _insert_cells(connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    query = sa.dialects.sqlite.insert(_cells)
    connection.execute(
        query.on_conflict_do_update(
            index_elements=["comparison_id", "prompt", "parameter_set", "sample"],
            set_={name: query.excluded[name] for name in ("state", "text", "details")},
        ),
        rows,
    )


def _patch(connection: sa.Connection, comparison_id: str, patch: Mapping[str, Any]) -> None:
    """Change single fields of a body, which may be large, where it lies. None removes one."""
    connection.execute(
        sa.text("UPDATE comparisons SET body = json_patch(body, :patch) WHERE comparison_id = :id"),
        {"patch": json.dumps(patch), "id": comparison_id},
    )


def _is_owned(body: Mapping[str, Any]) -> bool:
    return is_alive(body.get("owner_pid"), body.get("owner_started"))
