"""`python -m core`: the workbench without a browser. A skin over the library; logs go to stderr."""

from __future__ import annotations

import json
import signal
import tempfile
import traceback
from typing import Annotated, Any, NoReturn

import typer

from core import engine_settings, sampling
from core.cli import batch as cli_batch
from core.cli import bench as cli_bench
from core.cli import bench_compare as cli_bench_compare
from core.cli import bench_tune as cli_bench_tune
from core.cli import compare as cli_compare
from core.cli import models as cli_models
from core.cli import presets as cli_presets
from core.cli import serve as cli_serve
from core.cli.options import JsonLinesOption, NewestOption
from core.cli.session import say
from core.errors import ParameterError, WorkbenchError
from core.settings import load_settings
from core.store import Store

app = typer.Typer(
    name="core",
    help="vLLM Workbench on the command line: run a model over every row of a table.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(cli_models.app, name="models")
app.add_typer(cli_presets.app, name="presets")
cli_bench_compare.add_to(cli_bench.app)
cli_bench_tune.add_to(cli_bench.app)
app.add_typer(cli_bench.app, name="bench")
app.command(short_help="Run a model over every row of a table.")(cli_batch.batch)
app.command(short_help="Ask prompts under several parameter sets, and score the answers.")(
    cli_compare.compare
)
app.command(short_help="Answer OpenAI's API with one model.")(cli_serve.serve)


def main() -> None:
    """Run the command line; a WorkbenchError ends it with one line on stderr and exit code 1."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app()
    except ParameterError as error:
        _fail(error, code=2)
    except WorkbenchError as error:
        _fail(error, code=1)
    except OSError as error:
        _fail(error, code=1)
    except Exception:
        with tempfile.NamedTemporaryFile("w", prefix="workbench-error-", suffix=".log", delete=False) as file:
            traceback.print_exc(file=file)
        _fail(WorkbenchError("An unexpected error.", hint=f"Please report it, with {file.name}."), code=1)


def _terminate(signum: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt  # the same quiet end as Ctrl-C


def _fail(error: Exception, *, code: int) -> NoReturn:
    say(f"error: {' '.join(str(error).split())}")
    raise SystemExit(code)


@app.command()
def runs(
    as_json: JsonLinesOption = False,
    limit: NewestOption = 20,
) -> None:
    """List batch runs: id, state, rows done, file."""
    settings = load_settings()
    for record in Store(settings.catalogue_path).runs(limit):
        if as_json:
            print(json.dumps({"run_id": record.run_id, "state": record.state, "rows": record.rows,
                              "done": record.done, "name": record.name}))  # fmt: skip
        else:
            print(f"{record.run_id}  {record.state:<11}  {record.done:>9,} of {record.rows:,}  {record.name}")


@app.command()
def params(
    engine: Annotated[bool, typer.Option("--engine", help="Engine settings instead.")] = False,
    markdown: Annotated[
        bool, typer.Option(help="As Markdown: docs/sampling.md, the tables of docs/settings.md.")
    ] = False,
) -> None:
    """List the sampling parameters: name, range, default, what it does."""
    table = engine_settings if engine else sampling
    print(table.as_markdown() if markdown else table.as_text())
