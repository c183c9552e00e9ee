"""The tables of the catalogue, and how a file of an earlier version gets what came since."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import sqlalchemy as sa

_metadata = sa.MetaData()


class _Json(sa.types.TypeDecorator[Any]):
    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> str | None:
        return None if value is None else json.dumps(value, ensure_ascii=False)

    def process_result_value(self, value: str | None, dialect: Any) -> Any:
        return None if value is None else json.loads(value)


class _Utc(sa.types.TypeDecorator[dt.datetime]):
    """SQLite keeps no time zone: store UTC, give UTC back."""

    impl = sa.DateTime
    cache_ok = True

    def process_bind_param(self, value: dt.datetime | None, dialect: Any) -> dt.datetime | None:
        return None if value is None else value.astimezone(dt.UTC).replace(tzinfo=None)

    def process_result_value(self, value: dt.datetime | None, dialect: Any) -> dt.datetime | None:
        return None if value is None else value.replace(tzinfo=dt.UTC)


def _table(name: str, *columns: sa.Column[Any] | sa.Constraint, **options: Any) -> sa.Table:
    return sa.Table(name, _metadata, *columns, **options)


# columns that are never NULL; sa.Column says the others


def _key(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, primary_key=True)


def _text(name: str, **options: Any) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False, **options)


def _integer(name: str, **options: Any) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, nullable=False, **options)


def _json(name: str, **options: Any) -> sa.Column[Any]:
    return sa.Column(name, _Json, nullable=False, **options)


def _time(name: str, **options: Any) -> sa.Column[dt.datetime]:
    return sa.Column(name, _Utc, nullable=False, **options)


def _process(name: str) -> tuple[sa.Column[int], sa.Column[float]]:
    """A process that works on the row. Its id alone could be a later process with the same number."""
    return sa.Column(f"{name}_pid", sa.Integer), sa.Column(f"{name}_started", sa.Float)


runs = _table(
    "runs",
    _key("run_id"),
    _time("created_at", index=True),
    _text("name"),
    _text("state"),
    _text("message", default=""),
    _text("model", default=""),
    _integer("rows", default=0),
    _integer("ok", default=0),
    _integer("errors", default=0),
    _integer("skipped", default=0),
    _integer("prompt_tokens", default=0),
    _integer("output_tokens", default=0),
    sa.Column("wall_s", sa.Float, nullable=False, default=0.0),
    *_process("owner"),
    # columns that came later need a server_default: catalogues of before get them when they are opened
    _integer("priority", server_default="0"),
    _integer("shared", server_default="0"),
)
conversations = _table(
    "conversations",
    _key("conversation_id"),
    _time("created_at"),
    _time("updated_at", index=True),
    _text("title", default=""),
    _text("system", default=""),
    _json("params", default=dict),
    _json("options", server_default="{}"),
    # the newest message of the branch that is shown; NULL: the one with the highest position
    sa.Column("head_id", sa.Text),
)
messages = _table(
    "messages",
    _key("message_id"),
    _text("conversation_id", index=True),
    _integer("position"),
    _text("role"),
    _text("content", default=""),
    _text("state", default="complete"),
    _json("details", default=dict),
    # the message it follows; NULL: the first of its branch. `position` counts in the order of making
    sa.Column("parent_id", sa.Text),
    sa.UniqueConstraint("conversation_id", "position"),
)
presets = _table(
    "presets",
    _key("name"),
    _time("updated_at"),
    _json("params"),
    _text("about", server_default=""),
)
wrappers = _table(
    "wrappers",
    _key("name"),
    _time("updated_at"),
    _json("body"),
)
comparisons = _table(
    "comparisons",
    _key("comparison_id"),
    _time("created_at", index=True),
    _json("body"),
    _text("name", server_default=""),
)
# one answer of a comparison: prompt, parameter set and sample are places in its specification
compare_cells = _table(
    "compare_cells",
    _key("comparison_id"),
    sa.Column("prompt", sa.Integer, primary_key=True),
    sa.Column("parameter_set", sa.Integer, primary_key=True),
    sa.Column("sample", sa.Integer, primary_key=True),
    _text("state"),
    _text("text"),
    _json("details"),
)
# which of two answers to the same prompt somebody found better; `winner` is "a", "b" or "tie"
compare_votes = _table(
    "compare_votes",
    _key("vote_id"),
    _text("comparison_id", index=True),
    _time("created_at"),
    _text("voter"),
    _integer("prompt"),
    _integer("sample"),
    _integer("set_a"),
    _integer("set_b"),
    _text("winner"),
    _json("details"),
)

# servers with OpenAI's API; their keys are in `core.secrets`
endpoints = _table(
    "endpoints",
    _key("base_url"),
    _text("name"),
    _time("updated_at"),
)
# LoRA adapters; a number is never used again, as an engine may still know it
adapters = _table(
    "adapters",
    sa.Column("number", sa.Integer, primary_key=True),
    _text("name", unique=True),
    _text("folder"),
    _text("base"),
    _integer("rank"),
    _json("target_modules"),
    _integer("size_bytes"),
    _time("added_at"),
    _text("source"),
    sa.Column("checked_with", sa.Text),
    sqlite_autoincrement=True,
)

# a model that comes from a hub; `body` holds its files with sizes and checksums, `received` bytes of each
downloads = _table(
    "downloads",
    _key("download_id"),
    _time("created_at", index=True),
    _text("hub"),
    _text("repo"),
    sa.Column("revision", sa.Text),
    _json("body"),
    _text("state"),
    _text("stage", default=""),
    _json("received", default=dict),
    sa.Column("bytes_per_s", sa.Float),
    _text("message", default=""),
    _text("hint", default=""),
    sa.Column("kind", sa.Text),
    sa.Column("path", sa.Text),
    *_process("worker"),
)
# what somebody allowed for one model: "pickle", "code"
model_permissions = _table(
    "model_permissions",
    _key("model"),
    _key("permission"),
    _time("granted_at"),
)
# when a model's folder or GGUF file was last loaded
model_uses = _table(
    "model_uses",
    _key("path"),
    _time("used_at"),
)
# folders and GGUF files that were imported and stay where they are
imported_models = _table(
    "imported_models",
    _key("name"),
    _text("path"),
    _time("imported_at"),
)
# with which settings a model was loaded the last time that somebody kept them
engine_settings = _table(
    "engine_settings",
    _key("model"),
    _time("updated_at"),
    _text("engine"),
    _json("body"),
)

# benchmarks; a point's details (each request, each second) are a file of its folder
benchmarks = _table(
    "benchmarks",
    _key("benchmark_id"),
    _time("created_at", index=True),
    _text("name"),
    _text("kind"),
    _text("state"),
    _text("message", default=""),
    sa.Column("spec", _Json),
    _json("environment", default=dict),
    sa.Column("is_baseline", sa.Boolean, nullable=False, default=False),
    sa.Column("source", sa.Text),
    *_process("owner"),
)
benchmark_points = _table(
    "benchmark_points",
    _key("benchmark_id"),
    sa.Column("number", sa.Integer, primary_key=True),
    _integer("repeat"),
    sa.Column("load", _Json),
    _json("result"),
    sa.Column("is_whole", sa.Boolean, nullable=False),
)

# keys of the API, hashed; what was asked with which
api_keys = _table(
    "api_keys",
    _key("key_id"),
    _text("name"),
    _text("start"),
    _text("digest", unique=True),
    _time("created_at"),
    sa.Column("revoked_at", _Utc),
    sa.Column("last_used_at", _Utc),
    _json("limits", default=dict),
)
# one answered or refused request; key_id is NULL without a key
api_requests = _table(
    "api_requests",
    sa.Column("number", sa.Integer, primary_key=True),
    _time("at", index=True),
    sa.Column("key_id", sa.Text, index=True),
    _text("endpoint"),
    _text("model", default=""),
    _integer("status"),
    sa.Column("duration_s", sa.Float, nullable=False),
    sa.Column("ttft_s", sa.Float),
    _integer("prompt_tokens", default=0),
    _integer("output_tokens", default=0),
    sqlite_autoincrement=True,
)
# /v1/files: what was uploaded for a batch, and what batches gave back; bytes lie in the workspace
api_files = _table(
    "api_files",
    _key("file_id"),
    _time("created_at", index=True),
    sa.Column("key_id", sa.Text),
    _text("filename"),
    _text("purpose"),
    _integer("size_bytes"),
    _json("details", default=dict),
)
# /v1/batches: each is a run
api_batches = _table(
    "api_batches",
    _key("batch_id"),
    _time("created_at", index=True),
    sa.Column("key_id", sa.Text),
    sa.Column("run_id", sa.Text),
    _json("body"),
)


def create(connection: sa.Connection) -> None:
    """Make the tables, indexes and columns that are not there yet."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")  # two processes may be the first at once
    for table in _metadata.sorted_tables:
        connection.execute(sa.schema.CreateTable(table, if_not_exists=True))
        _add_new_columns(connection, table)
        for index in table.indexes:
            connection.execute(sa.schema.CreateIndex(index, if_not_exists=True))


def _add_new_columns(connection: sa.Connection, table: sa.Table) -> None:
    there = {column["name"] for column in sa.inspect(connection).get_columns(table.name)}
    for column in table.columns:
        if column.name not in there:
            words = sa.schema.CreateColumn(column).compile(dialect=connection.dialect)
            connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {words}")
            if column is messages.c.parent_id:
                _follow_one_another(connection)


def _follow_one_another(connection: sa.Connection) -> None:
    """Messages of before, when a conversation was one line: each follows the one at the position before."""
    earlier = messages.alias()
    before = (
        sa.select(earlier.c.message_id)
        .where(
            earlier.c.conversation_id == messages.c.conversation_id, earlier.c.position < messages.c.position
        )
        .order_by(earlier.c.position.desc())
        .limit(1)
        .scalar_subquery()
    )
    connection.execute(sa.update(messages).values(parent_id=before))
