"""`python -m core batch`: what is asked on the command line, done and written. A skin over the library."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from core import few_shot, openai_batch, sampling, tables
from core.cli import presets as cli_presets
from core.cli.engine import EngineOptions
from core.cli.options import JsonOption, grouped, pairs
from core.cli.session import Session
from core.errors import ParameterError, WorkbenchError
from core.run_spec import EvaluationSpec, Instructions, OutputSpec, OverflowSpec, PlanSpec
from core.runs import prompt_of
from core.settings import load_settings
from core.tables.writers import OPENAI_BATCH

_WITH_RESUME = frozenset({"output", "format", "escape_formulas", "model", "engine", "engine_arg", "resume",
                          "retry_failed", "redo_truncated", "as_json"})  # fmt: skip


@grouped
def batch(
    context: typer.Context,
    *,
    input: Annotated[
        Path | None,
        typer.Argument(
            metavar="INPUT",
            help="The table: CSV, TSV, JSONL, Parquet, XLSX, or an OpenAI Batch file.",
            show_default=False,
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
    fields: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,C",
            help="Columns that the model sees as JSON after --instruction; "
            "the planner chooses their order for speed.",
        ),
    ] = None,
    instruction: Annotated[str, typer.Option(help="What to do with the --fields.", show_default=False)] = "",
    messages_column: Annotated[
        str | None, typer.Option(help="The column that holds chats: a JSON list of role and content.")
    ] = None,
    system: Annotated[str, typer.Option(help="System prompt; may use columns too.", show_default=False)] = "",
    turn: Annotated[
        list[str] | None,
        typer.Option(help="A further user message, asked after the answer; may use columns; repeatable."),
    ] = None,
    turns_column: Annotated[
        str | None, typer.Option(help="The column that holds further user messages: a JSON list of texts.")
    ] = None,
    examples: Annotated[
        Path | None, typer.Option(help="A table of few-shot examples with the columns of the prompt.")
    ] = None,
    examples_answer: Annotated[
        str, typer.Option(help="The column of --examples that holds the answers.")
    ] = "answer",
    examples_count: Annotated[int, typer.Option(min=1, help="How many of the examples to show.")] = 3,
    param: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="A sampling parameter; repeatable. `python -m core params` lists them."
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Saved parameters; --param and the like go before them."),
    ] = None,
    param_column: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=COLUMN", help="A column that gives a parameter's value; repeatable."),
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(metavar="NAME", help="The LoRA adapter that answers, of `models adapters`.")
    ] = None,
    adapter_column: Annotated[
        str | None,
        typer.Option(help="A column that names each row's adapter; empty: --adapter, base: the model."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same as --param seed=N.")] = None,
    choice: Annotated[
        list[str] | None, typer.Option(help="An allowed answer; repeatable: the answer is one of them.")
    ] = None,
    schema: Annotated[
        str | None, typer.Option(help="A JSON schema, or a file with one: the answer is such an object.")
    ] = None,
    regex: Annotated[str | None, typer.Option(help="A regular expression that the answer matches.")] = None,
    grammar: Annotated[Path | None, typer.Option(help="A file with a grammar (EBNF) of the answer.")] = None,
    samples: Annotated[str, typer.Option(help="How n > 1 answers are written: columns or rows.")] = "columns",
    logprobs: Annotated[
        bool, typer.Option("--logprobs", help="Columns with the answer's log-probability.")
    ] = False,
    choice_probabilities: Annotated[
        bool, typer.Option("--choice-probabilities", help="A column with the probability of each choice.")
    ] = False,
    truncate: Annotated[
        str | None, typer.Option(help="Cut prompts that are too long at the left or right; else: an error.")
    ] = None,
    truncate_prompt_tokens: Annotated[
        int | None, typer.Option(min=1, help="The most tokens of a prompt; default: what the context holds.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="The column with the right answers, to evaluate against.")
    ] = None,
    tolerance: Annotated[float, typer.Option(min=0, help="For numbers: how far off is still right.")] = 1e-6,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N rows.")] = None,
    reorder: Annotated[
        bool, typer.Option(help="Run rows in the order that shares prefixes; the output keeps the file's.")
    ] = True,
    dedupe: Annotated[
        bool, typer.Option(help="Ask equal deterministic requests once, for all their rows.")
    ] = True,
    loaded: EngineOptions,
    answer_column: Annotated[str, typer.Option(help="Name, and prefix, of the new columns.")] = "answer",
    encoding: Annotated[str | None, typer.Option(help="Encoding, if detected wrongly.")] = None,
    delimiter: Annotated[str | None, typer.Option(help="Delimiter, if detected wrongly.")] = None,
    sheet: Annotated[str | None, typer.Option(help="Sheet of a workbook; default: the first.")] = None,
    format: Annotated[
        str | None, typer.Option(help=f"Format of the output, if not its ending's; {OPENAI_BATCH} too.")
    ] = None,
    escape_formulas: Annotated[
        bool, typer.Option(help="Guard answers that a spreadsheet would run as a formula (csv, tsv, xlsx).")
    ] = True,
    resume: Annotated[str | None, typer.Option(metavar="RUN_ID", help="Go on with a run.")] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="With --resume: do the rows again that ended in an error.")
    ] = False,
    redo_truncated: Annotated[
        int | None,
        typer.Option(metavar="MAX_TOKENS", min=1, help="With --resume: do cut answers again, with more."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a model over every row of a table and write the table with the answers.

    Rows that fail are marked, not dropped. A run that is cut off goes on with --resume.
    """
    if output is None:
        raise typer.BadParameter("-o OUTPUT is missing: where shall the answers go?")
    _check_format(output, format)
    engine_asked = loaded.asked()
    if resume is None:
        if retry_failed or redo_truncated:
            raise typer.BadParameter("--retry-failed and --redo-truncated go with --resume RUN_ID.")
        if input is None:
            raise typer.BadParameter("INPUT is missing: which table?")
        options = tables.ReadOptions(encoding=encoding, delimiter=_delimiter(delimiter), sheet=sheet)
        instructions = Instructions(
            mode=_mode(template, prompt_column, fields, messages_column),
            template=template or "",
            prompt_column=prompt_column,
            fields=_listed(fields),
            instruction=instruction,
            messages_column=messages_column,
            system=system,
            turns=tuple(turn or ()),
            turns_column=turns_column,
            params=_params(preset, param or [], seed, _structure(choice, schema, regex, grammar), logprobs),
            param_columns=pairs(param_column or []),
            adapter=adapter,
            adapter_column=adapter_column,
            answer_column=answer_column,
            overflow=_overflow(truncate, truncate_prompt_tokens),
            output=OutputSpec(
                samples=_samples(samples), logprobs=logprobs, choice_probabilities=choice_probabilities
            ),
            evaluation=_evaluation(reference, tolerance),
            plan=PlanSpec(reorder=reorder, dedupe=dedupe),
        )
        if instructions.mode == "openai":
            _check_openai(input, options)
        if examples is not None:
            shown = few_shot.load_examples(
                examples, prompt_of(instructions), examples_answer, count=examples_count
            )
            instructions = instructions.model_copy(update={"examples": shown})
    else:
        _check_resume(context)
    with Session(load_settings()) as session:
        if resume is None:
            spec = session.engine_spec(engine_asked)
            spec = session.adapters.needed(spec, [adapter], by_row=adapter_column is not None)
            instructions = instructions.model_copy(update={"engine": spec})
            run = session.stage(input, instructions, options, limit)
        else:
            run = session.reopen(resume, engine_asked, retry_failed=retry_failed, max_tokens=redo_truncated)
        summary = session.finish(run, output, escape_formulas, format)
    if as_json:
        print(json.dumps(summary), flush=True)


def _mode(template: str | None, prompt_column: str | None, fields: str | None, messages: str | None) -> Any:
    given = [
        name
        for name, value in (
            ("template", template),
            ("prompt-column", prompt_column),
            ("fields", fields),
            ("messages-column", messages),
        )
        if value is not None
    ]
    if len(given) > 1:
        raise typer.BadParameter(f"give one of --{given[0]} and --{given[1]}, not both.")
    if not given:
        return "openai"
    return {"fields": "fields", "messages-column": "messages"}.get(given[0], "template")


def _check_openai(input: Path, options: tables.ReadOptions) -> None:
    """Without a prompt, the table must say itself what is asked."""
    if not openai_batch.is_batch(tables.preview(input, options=options, rows=5).columns):
        raise typer.BadParameter("give --template, --prompt-column, --fields or --messages-column.")


def _structure(
    choice: list[str] | None, schema: str | None, regex: str | None, grammar: Path | None
) -> dict[str, Any] | None:
    given: dict[str, Any] = {}
    if choice:
        given["choice"] = choice
    if schema is not None:
        text = schema if schema.lstrip().startswith("{") else _text_of(Path(schema), "--schema")
        try:
            given["json"] = json.loads(text)
        except json.JSONDecodeError as error:
            raise ParameterError(f"--schema is not JSON: {error}.", hint="Give a JSON schema.") from error
    if regex is not None:
        given["regex"] = regex
    if grammar is not None:
        given["grammar"] = _text_of(grammar, "--grammar")
    if len(given) > 1:
        raise typer.BadParameter("give one of --choice, --schema, --regex and --grammar.")
    return given or None


def _text_of(path: Path, option: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{option}: {path} can't be read: {error}.") from error


def _overflow(side: str | None, prompt_tokens: int | None) -> OverflowSpec:
    if side not in (None, "left", "right"):
        raise typer.BadParameter(f"--truncate is left or right, not {side!r}.")
    return OverflowSpec(action=side or "error", prompt_tokens=prompt_tokens)


def _evaluation(reference: str | None, tolerance: float) -> EvaluationSpec | None:
    if reference is None:
        return None
    return EvaluationSpec(reference_column=reference, tolerance=tolerance)


def _samples(word: str) -> Any:
    if word not in ("columns", "rows"):
        raise typer.BadParameter(f"--samples is columns or rows, not {word!r}.")
    return word


def _listed(names: str | None) -> tuple[str, ...]:
    """Column names between commas; one that has a comma itself stands in double quotes, as in CSV."""
    (row,) = csv.reader([names or ""], skipinitialspace=True)
    return tuple(name.strip() for name in row if name.strip())


def _check_resume(context: typer.Context) -> None:
    """Refuse what a resumed run has already; to take it and drop it would be worse."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE" and name not in _WITH_RESUME:
            raise typer.BadParameter(
                f"--resume takes {name.replace('_', '-')} from the run: start a new run to change it."
            )


def _check_format(output: Path, format: str | None) -> None:
    try:
        if format != OPENAI_BATCH:
            tables.export_format(output, format)
    except WorkbenchError as error:
        raise typer.BadParameter(str(error)) from error
    if not output.absolute().parent.is_dir():
        raise typer.BadParameter(f"the folder {output.absolute().parent} does not exist.")


def _params(
    preset: str | None,
    assignments: list[str],
    seed: int | None,
    structure: dict[str, Any] | None,
    logprobs: bool,
) -> dict[str, Any]:
    params = sampling.parse_assignments(assignments)
    if seed is not None:
        if params.get("seed", seed) != seed:
            raise ParameterError("--seed and --param seed= differ.", hint="Give one of them.")
        params["seed"] = seed
    if structure is not None:
        params["structured_outputs"] = structure
    if preset is not None:
        with cli_presets.opened() as presets:
            params = {**presets.find(preset).params, **params}
    if logprobs:
        params.setdefault("logprobs", 0)
    return sampling.validate(params)


def _delimiter(text: str | None) -> str | None:
    return {"tab": "\t", "\\t": "\t"}.get(text or "", text)
