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


runs = sa.Table(
    "runs",
    _metadata,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("created_at", _Utc, nullable=False, index=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False, default=""),
    sa.Column("model", sa.Text, nullable=False, default=""),
    sa.Column("rows", sa.Integer, nullable=False, default=0),
    sa.Column("ok", sa.Integer, nullable=False, default=0),
    sa.Column("errors", sa.Integer, nullable=False, default=0),
    sa.Column("skipped", sa.Integer, nullable=False, default=0),
    sa.Column("prompt_tokens", sa.Integer, nullable=False, default=0),
    sa.Column("output_tokens", sa.Integer, nullable=False, default=0),
    sa.Column("wall_s", sa.Float, nullable=False, default=0.0),
    # who works on it: a process id alone could be a later process with the same number
    sa.Column("owner_pid", sa.Integer),
    sa.Column("owner_started", sa.Float),
    # columns that came later need a server_default: catalogues of before get them when they are opened
    sa.Column("priority", sa.Integer, nullable=False, server_default="0"),
    sa.Column("shared", sa.Integer, nullable=False, server_default="0"),
)
conversations = sa.Table(
    "conversations",
    _metadata,
    sa.Column("conversation_id", sa.Text, primary_key=True),
    sa.Column("created_at", _Utc, nullable=False),
    sa.Column("updated_at", _Utc, nullable=False, index=True),
    sa.Column("title", sa.Text, nullable=False, default=""),
    sa.Column("system", sa.Text, nullable=False, default=""),
    sa.Column("params", _Json, nullable=False, default=dict),
    sa.Column("options", _Json, nullable=False, server_default="{}"),
    # the newest message of the branch that is shown; NULL: the one with the highest position
    sa.Column("head_id", sa.Text),
)
messages = sa.Table(
    "messages",
    _metadata,
    sa.Column("message_id", sa.Text, primary_key=True),
    sa.Column("conversation_id", sa.Text, nullable=False, index=True),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("content", sa.Text, nullable=False, default=""),
    sa.Column("state", sa.Text, nullable=False, default="complete"),
    sa.Column("details", _Json, nullable=False, default=dict),
    # the message it follows; NULL: the first of its branch. `position` counts in the order of making
    sa.Column("parent_id", sa.Text),
    sa.UniqueConstraint("conversation_id", "position"),
)
presets = sa.Table(
    "presets",
    _metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("updated_at", _Utc, nullable=False),
    sa.Column("params", _Json, nullable=False),
    sa.Column("about", sa.Text, nullable=False, server_default=""),
)
wrappers = sa.Table(
    "wrappers",
    _metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("updated_at", _Utc, nullable=False),
    sa.Column("body", _Json, nullable=False),
)
comparisons = sa.Table(
    "comparisons",
    _metadata,
    sa.Column("comparison_id", sa.Text, primary_key=True),
    sa.Column("created_at", _Utc, nullable=False, index=True),
    sa.Column("body", _Json, nullable=False),
    sa.Column("name", sa.Text, nullable=False, server_default=""),
)
# one answer of a comparison: prompt, parameter set and sample are places in its specification
compare_cells = sa.Table(
    "compare_cells",
    _metadata,
    sa.Column("comparison_id", sa.Text, primary_key=True),
    sa.Column("prompt", sa.Integer, primary_key=True),
    sa.Column("parameter_set", sa.Integer, primary_key=True),
    sa.Column("sample", sa.Integer, primary_key=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("details", _Json, nullable=False),
)
# which of two answers to the same prompt somebody found better; `winner` is "a", "b" or "tie"
compare_votes = sa.Table(
    "compare_votes",
    _metadata,
    sa.Column("vote_id", sa.Text, primary_key=True),
    sa.Column("comparison_id", sa.Text, nullable=False, index=True),
    sa.Column("created_at", _Utc, nullable=False),
    sa.Column("voter", sa.Text, nullable=False),
    sa.Column("prompt", sa.Integer, nullable=False),
    sa.Column("sample", sa.Integer, nullable=False),
    sa.Column("set_a", sa.Integer, nullable=False),
    sa.Column("set_b", sa.Integer, nullable=False),
    sa.Column("winner", sa.Text, nullable=False),
    sa.Column("details", _Json, nullable=False),
)

# servers with OpenAI's API; their keys are in `core.secrets`
endpoints = sa.Table(
    "endpoints",
    _metadata,
    sa.Column("base_url", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("updated_at", _Utc, nullable=False),
)
# LoRA adapters; a number is never used again, as an engine may still know it
adapters = sa.Table(
    "adapters",
    _metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("folder", sa.Text, nullable=False),
    sa.Column("base", sa.Text, nullable=False),
    sa.Column("rank", sa.Integer, nullable=False),
    sa.Column("target_modules", _Json, nullable=False),
    sa.Column("size_bytes", sa.Integer, nullable=False),
    sa.Column("added_at", _Utc, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("checked_with", sa.Text),
    sqlite_autoincrement=True,
)

# a model that comes from a hub; `body` holds its files with sizes and checksums, `received` bytes of each
downloads = sa.Table(
    "downloads",
    _metadata,
    sa.Column("download_id", sa.Text, primary_key=True),
    sa.Column("created_at", _Utc, nullable=False, index=True),
    sa.Column("hub", sa.Text, nullable=False),
    sa.Column("repo", sa.Text, nullable=False),
    sa.Column("revision", sa.Text),
    sa.Column("body", _Json, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("stage", sa.Text, nullable=False, default=""),
    sa.Column("received", _Json, nullable=False, default=dict),
    sa.Column("bytes_per_s", sa.Float),
    sa.Column("message", sa.Text, nullable=False, default=""),
    sa.Column("hint", sa.Text, nullable=False, default=""),
    sa.Column("kind", sa.Text),
    sa.Column("path", sa.Text),
    # the process that fetches it: a process id alone could be a later process with the same number
    sa.Column("worker_pid", sa.Integer),
    sa.Column("worker_started", sa.Float),
)
# what somebody allowed for one model: "pickle", "code"
model_permissions = sa.Table(
    "model_permissions",
    _metadata,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("permission", sa.Text, primary_key=True),
    sa.Column("granted_at", _Utc, nullable=False),
)
# when a model's folder or GGUF file was last loaded
model_uses = sa.Table(
    "model_uses",
    _metadata,
    sa.Column("path", sa.Text, primary_key=True),
    sa.Column("used_at", _Utc, nullable=False),
)
# folders and GGUF files that were imported and stay where they are
imported_models = sa.Table(
    "imported_models",
    _metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("imported_at", _Utc, nullable=False),
)
# with which settings a model was loaded the last time that somebody kept them
engine_settings = sa.Table(
    "engine_settings",
    _metadata,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("updated_at", _Utc, nullable=False),
    sa.Column("engine", sa.Text, nullable=False),
    sa.Column("body", _Json, nullable=False),
)

# benchmarks; a point's details (each request, each second) are a file of its folder
benchmarks = sa.Table(
    "benchmarks",
    _metadata,
    sa.Column("benchmark_id", sa.Text, primary_key=True),
    sa.Column("created_at", _Utc, nullable=False, index=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False, default=""),
    sa.Column("spec", _Json),
    sa.Column("environment", _Json, nullable=False, default=dict),
    sa.Column("is_baseline", sa.Boolean, nullable=False, default=False),
    sa.Column("source", sa.Text),
    sa.Column("owner_pid", sa.Integer),
    sa.Column("owner_started", sa.Float),
)
benchmark_points = sa.Table(
    "benchmark_points",
    _metadata,
    sa.Column("benchmark_id", sa.Text, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("repeat", sa.Integer, nullable=False),
    sa.Column("load", _Json),
    sa.Column("result", _Json, nullable=False),
    sa.Column("is_whole", sa.Boolean, nullable=False),
)

# keys of the API, hashed; what was asked with which
api_keys = sa.Table(
    "api_keys",
    _metadata,
    sa.Column("key_id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("start", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False, unique=True),
    sa.Column("created_at", _Utc, nullable=False),
    sa.Column("revoked_at", _Utc),
    sa.Column("last_used_at", _Utc),
    sa.Column("limits", _Json, nullable=False, default=dict),
)
# one answered or refused request; key_id is NULL without a key
api_requests = sa.Table(
    "api_requests",
    _metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("at", _Utc, nullable=False, index=True),
    sa.Column("key_id", sa.Text, index=True),
    sa.Column("endpoint", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False, default=""),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("duration_s", sa.Float, nullable=False),
    sa.Column("ttft_s", sa.Float),
    sa.Column("prompt_tokens", sa.Integer, nullable=False, default=0),
    sa.Column("output_tokens", sa.Integer, nullable=False, default=0),
    sqlite_autoincrement=True,
)
# /v1/files: what was uploaded for a batch, and what batches gave back; bytes lie in the workspace
api_files = sa.Table(
    "api_files",
    _metadata,
    sa.Column("file_id", sa.Text, primary_key=True),
    sa.Column("created_at", _Utc, nullable=False, index=True),
    sa.Column("key_id", sa.Text),
    sa.Column("filename", sa.Text, nullable=False),
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("size_bytes", sa.Integer, nullable=False),
    sa.Column("details", _Json, nullable=False, default=dict),
)
# /v1/batches: each is a run
api_batches = sa.Table(
    "api_batches",
    _metadata,
    sa.Column("batch_id", sa.Text, primary_key=True),
    sa.Column("created_at", _Utc, nullable=False, index=True),
    sa.Column("key_id", sa.Text),
    sa.Column("run_id", sa.Text),
    sa.Column("body", _Json, nullable=False),
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
