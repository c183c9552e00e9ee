"""A table's rows laid on disk in another order, in bounded memory however long the rows are.

DuckDB's own sort of whole rows runs out of its memory limit when the texts are long (4,000
characters a row at 512 MB), so: one pass deals the rows out to files, each for a stretch of
the new order, and each file then fits into memory to be sorted.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

_FILE_BYTES = 12 << 20
_BATCH_BYTES = 4 << 20
_MAX_FILES = 200


def copy_sorted(
    connection: duckdb.DuckDBPyConnection,
    columns: Sequence[str],
    position_of: np.ndarray,
    row_bytes: float,
) -> None:
    """Make the table `planned` from the `columns` of `input` in the order of the rows' positions.

    `position_of`: int64, one entry a row of `input`, -1 for a row that is left out; `row_bytes`: a
    row's mean size. `planned` begins with the columns position and _row.
    """
    names = ", ".join(["_row", *columns])
    # from the input's own types: some come back from Arrow as others
    connection.execute(f"CREATE TABLE planned AS SELECT 0::BIGINT AS position, {names} FROM input LIMIT 0")
    rows = int((position_of >= 0).sum())
    files = int(np.clip(np.ceil(rows * row_bytes / _FILE_BYTES), 1, _MAX_FILES))
    bounds = np.linspace(0, rows, files + 1).astype(np.int64)
    batch_rows = int(np.clip(_BATCH_BYTES / max(row_bytes, 1), 256, 65_536))
    # by a cursor: a connection does nothing else while it has an open result
    reader = connection.cursor().sql(f"SELECT {names} FROM input").to_arrow_reader(batch_rows)
    with _folder(connection) as folder:
        paths = [folder / f"{number}.arrow" for number in range(files)]
        schema = reader.schema.insert(0, pa.field("position", pa.int64()))
        _deal_out(reader, schema, position_of, bounds, paths)
        for path in paths:
            with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as stream:
                stretch = stream.read_all().combine_chunks()
            path.unlink()
            stretch = stretch.take(np.argsort(stretch["position"].to_numpy()))
            connection.execute("INSERT INTO planned SELECT * FROM stretch")  # DuckDB finds the variable


def _deal_out(
    reader: pa.RecordBatchReader,
    schema: pa.Schema,
    position_of: np.ndarray,
    bounds: np.ndarray,
    paths: Sequence[Path],
) -> None:
    """Write each row to the file whose stretch of positions it belongs to."""
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(pa.ipc.new_stream(str(path), schema)) for path in paths]
        for batch in reader:
            positions = position_of[batch["_row"].to_numpy()]
            sorted_rows = np.argsort(positions)
            sorted_rows = sorted_rows[positions[sorted_rows] >= 0]
            positions = positions[sorted_rows]
            taken = batch.take(pa.array(sorted_rows))
            whole = pa.RecordBatch.from_arrays([pa.array(positions), *taken.columns], schema=schema)
            cuts = np.searchsorted(positions, bounds)
            for writer, start, end in zip(writers, cuts[:-1], cuts[1:], strict=True):
                if end > start:
                    writer.write_batch(whole.slice(start, end - start))


@contextlib.contextmanager
def _folder(connection: duckdb.DuckDBPyConnection) -> Iterator[Path]:
    """A folder beside the database, where there is room for it if anywhere; what a kill left there goes."""
    [(database,)] = connection.execute(
        "SELECT path FROM duckdb_databases() WHERE database_name = current_database()"
    ).fetchall()
    if database is None:  # it lives in memory
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        return
    folder = Path(f"{database}.sorting")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
