"""`python -m core compare`: what is asked, compared and written. A skin over the library."""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from core import sampling, tables
from core.cli import presets as cli_presets
from core.cli.compare_work import WRITERS, Work
from core.cli.engine import EngineOptions
from core.cli.options import JsonOption, grouped
from core.comparing.judge import KEY_VARIABLE, RUBRIC, Judge
from core.comparing.rows import sample_file
from core.comparing.spec import ComparisonSpec, PromptItem, SetSpec, grid, read_spec
from core.errors import ParameterError
from core.run_spec import PromptSpec
from core.settings import load_settings
from core.types import Message

_TEXTS = ("system", "template", "style", "adapter")
_WITH_SPEC = frozenset({"input", "output", "engine", "model", "engine_arg", "judge", "judge_model", "rubric",
                        "as_json", "baseline", "name", "escape_formulas"})  # fmt: skip
_WITH_RESUME = _WITH_SPEC - {"input", "baseline", "name"} | {"resume"}


@grouped
def compare(
    context: typer.Context,
    *,
    input: Annotated[
        Path | None,
        typer.Argument(
            metavar="SPEC.json|TABLE",
            help="A specification, or a table whose rows make the prompts.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Where to write: .html (a page), .csv (a line an answer) or .json."
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="A prompt, in place of a table; repeatable.", show_default=False)
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(help="The prompt over the table's columns, such as 'Is it good? {{ text }}'."),
    ] = None,
    system: Annotated[str, typer.Option(help="System prompt of all sets.", show_default=False)] = "",
    rows: Annotated[int, typer.Option(min=1, help="How many rows of the table.")] = 8,
    row_seed: Annotated[int, typer.Option(help="Which rows are drawn; -1: the first ones.")] = 0,
    reference: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The column with the right answers.")
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A sampling parameter of all sets; repeatable."),
    ] = None,
    set: Annotated[
        list[str] | None,
        typer.Option(
            metavar="'NAME: PARAM=VALUE ...'",
            help="Such as 'cold: temperature=0'; style=, system=, template=, adapter= too; repeatable.",
        ),
    ] = None,
    grid_axis: Annotated[
        list[str] | None,
        typer.Option(
            "--grid", metavar="PARAM=A,B", help="Sets for each of these values; repeatable: all pairs."
        ),
    ] = None,
    preset: Annotated[list[str] | None, typer.Option(help="A preset as a set; repeatable.")] = None,
    seeds: Annotated[
        str | None,
        typer.Option(metavar="1,2", help="A sample of every cell for each seed. Without: one, unseeded."),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="NAME", help="The set to hold others against. Default: the first.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The comparison's name.")] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="engine|URL",
            help=f"Have the loaded model, or the one at an OpenAI-compatible URL, judge all pairs. "
            f"A key is read from {KEY_VARIABLE}.",
        ),
    ] = None,
    judge_model: Annotated[str, typer.Option(help="The model at the judge's URL.", show_default=False)] = "",
    rubric: Annotated[str, typer.Option(help="By what the judge judges.", show_default=False)] = RUBRIC,
    loaded: EngineOptions,
    escape_formulas: Annotated[
        bool, typer.Option(help="Guard texts that a spreadsheet would run as a formula (csv).")
    ] = True,
    resume: Annotated[str | None, typer.Option(metavar="ID", help="Go on with a comparison.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Ask prompts under several parameter sets, and write the answers with their scores.

    Every difference comes with its number of prompts and a 95% interval.
    """
    _check_output(output)
    engine_asked = loaded.asked()
    judged = _judge(judge, judge_model, rubric)
    if resume is not None:
        _refuse_others(context, _WITH_RESUME, "--resume takes {} from the comparison")
        spec = None
    elif input is not None and (text := _spec_text(input)) is not None:
        _refuse_others(context, _WITH_SPEC, "the specification says {} itself")
        spec = read_spec(text)
    else:
        spec = ComparisonSpec(
            prompts=_prompts(input, prompt, template, system, rows, row_seed, reference),
            sets=_sets(param or [], set or [], grid_axis or [], preset or []),
            seeds=_seeds(seeds),
        )
    if spec is not None:
        spec = _named(spec, name, baseline)
    with Work(load_settings(), engine_asked) as work:
        comparison_id = work.start(spec) if spec is not None else work.resume(resume)
        summary = work.finish(comparison_id, output, judged, escape_formulas)
    if as_json:
        print(json.dumps(summary, ensure_ascii=False), flush=True)


def _check_output(output: Path | None) -> None:
    if output is None:
        raise typer.BadParameter("-o OUTPUT is missing: where shall the answers go?")
    if output.suffix.lower() not in WRITERS:
        raise typer.BadParameter(f"{output.name} must end in one of {', '.join(WRITERS)}.")
    if not output.absolute().parent.is_dir():
        raise typer.BadParameter(f"the folder {output.absolute().parent} does not exist.")


def _refuse_others(context: typer.Context, allowed: frozenset[str], why: str) -> None:
    """Refuse what would be taken and dropped."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE" and name not in allowed:
            said = {"grid_axis": "--grid"}.get(name, f"--{name.replace('_', '-')}")
            raise typer.BadParameter(f"{why.format(said)}: leave it out.")


def _spec_text(path: Path) -> str | None:
    """The specification in the file, or in a result written as .json. None: it is a table."""
    if path.suffix.lower() != ".json":
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, ValueError):  # as a table it gets the reader's own, better message
        return None
    except OSError as error:
        raise typer.BadParameter(f"{path} can't be read: {error}.") from error
    if not isinstance(found, dict):
        return None
    if isinstance(found.get("spec"), dict):
        found = found["spec"]
    return json.dumps(found) if "prompts" in found or "sets" in found else None


def _prompts(
    table: Path | None,
    prompts: list[str] | None,
    template: str | None,
    system: str,
    rows: int,
    row_seed: int,
    reference: str | None,
) -> tuple[PromptItem, ...]:
    if (table is None) == (not prompts):
        raise typer.BadParameter("give one of SPEC.json, TABLE and --prompt.")
    if table is None:
        if template is not None or reference is not None:
            raise typer.BadParameter("--template and --reference go with a table.")
        opening = (Message("system", system),) if system.strip() else ()
        return tuple(PromptItem(messages=(*opening, Message("user", text))) for text in prompts or ())
    if template is None:
        columns = ", ".join(column.name for column in tables.preview(table, rows=1).columns[:30])
        raise typer.BadParameter(f"--template is missing. The table's columns: {columns}.")
    return sample_file(
        table,
        PromptSpec(template=template, system=system),
        rows,
        seed=None if row_seed < 0 else row_seed,
        reference_column=reference,
    )


def _sets(
    params: Sequence[str], written: Sequence[str], axes: Sequence[str], presets: Sequence[str]
) -> tuple[SetSpec, ...]:
    base = sampling.parse_assignments(params)
    sets = [_set(text, base) for text in written]
    if presets:
        with cli_presets.opened() as kept:
            sets += [SetSpec(name=one, params={**base, **kept.find(one).params}) for one in presets]
    if axes:
        sets += grid(SetSpec(name="grid", params=base), dict(map(_axis, axes)))
    return tuple(sets) or (SetSpec(name="set 1", params=base),)


def _set(text: str, base: dict[str, Any]) -> SetSpec:
    """ "cold: temperature=0 stop='the end'"."""
    name, colon, rest = text.partition(":")
    if not colon or not name.strip():
        raise ParameterError(f"--set {text!r} has no name.", hint="Write 'cold: temperature=0'.")
    try:
        parts = shlex.split(rest)
    except ValueError as error:
        raise ParameterError(f"--set {text!r} can't be read: {error}.", hint="Close the quotes.") from error
    assignments = [part.removesuffix(",") for part in parts]
    texts = dict(
        part.split("=", 1) for part in assignments if part.partition("=")[0] in _TEXTS and "=" in part
    )
    params = sampling.parse_assignments([part for part in assignments if part.partition("=")[0] not in texts])
    return SetSpec(name=name.strip(), params={**base, **params}, **texts)


def _axis(text: str) -> tuple[str, list[Any]]:
    """ "temperature=0,0.7". A value with a comma stands in double quotes."""
    name, equals, rest = text.partition("=")
    if not equals or not name.strip():
        raise ParameterError(f"--grid {text!r} is not of the form PARAM=A,B.", hint="temperature=0,0.7, say.")
    (values,) = csv.reader([rest], skipinitialspace=True)
    return name.strip(), values


def _seeds(text: str | None) -> tuple[int | None, ...]:
    if text is None:
        return (None,)
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ParameterError(f"--seeds {text!r} is no list of whole numbers.", hint="1,2,3, say.") from error


def _named(spec: ComparisonSpec, name: str | None, baseline: str | None) -> ComparisonSpec:
    changes: dict[str, Any] = {} if name is None else {"name": name}
    if baseline is not None:
        names = [one.name for one in spec.sets]
        if baseline not in names:
            raise ParameterError(f"There is no set {baseline!r}.", hint=f"Sets: {', '.join(names)}.")
        changes["baseline"] = names.index(baseline)
    return spec.model_copy(update=changes)


def _judge(judge: str | None, model: str, rubric: str) -> Judge | None:
    if judge is None:
        if model:
            raise typer.BadParameter("--judge-model goes with --judge URL.")
        return None
    if judge == "engine":
        return replace(Judge(), rubric=rubric)
    return Judge(kind="remote", base_url=judge, model=model, rubric=rubric)
