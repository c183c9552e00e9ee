"""Options that the commands of `python -m core bench` share. Names and forms are those of `vllm bench`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from core.cli.options import JsonOption

DATASETS = ("random", "table", "sharegpt", "prefix_repetition")

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="As `bench list` shows it.")]
WarmupsOption = Annotated[
    int, typer.Option("--num-warmups", min=0, help="Requests before each point that count nowhere.")
]
RepeatsOption = Annotated[
    int, typer.Option(min=1, max=100, help="Measure every point so often, with other seeds.")
]
SeedOption = Annotated[int, typer.Option(help="What random prompts and arrivals are drawn with.")]
OutputOption = Annotated[
    Path | None,
    typer.Option("-o", "--output", "--output-json",
                 help="Write the result as `vllm bench` does; several points: one JSON a line."),
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class WorkloadOptions:
    """What is asked. Lengths and numbers are None where nothing was said."""

    dataset_name: Annotated[str, typer.Option(help=f"Where prompts come from: {', '.join(DATASETS)}.")] = (
        "random"
    )
    dataset_path: Annotated[
        Path | None, typer.Option(help="The file of the datasets table and sharegpt.")
    ] = None
    template: Annotated[
        str | None,
        typer.Option(help="The prompt over a table's columns, such as 'Is it good? {{ text }}'."),
    ] = None
    system: Annotated[
        str, typer.Option(help="A table's system prompt; may use columns too.", show_default=False)
    ] = ""
    param_column: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=COLUMN", help="A column of the table that gives a parameter; repeatable."),
    ] = None
    adapter: Annotated[
        str | None, typer.Option(metavar="NAME", help="The LoRA adapter that answers a table's rows.")
    ] = None
    adapter_column: Annotated[
        str | None,
        typer.Option(help="A column that names each row's adapter; empty: --adapter, base: the model."),
    ] = None
    num_prompts: Annotated[int | None, typer.Option(min=1, help="Requests of each point. Default: 200.")] = (
        None
    )
    input_len: Annotated[
        int | None,
        typer.Option(
            "--input-len", "--random-input-len", min=1, help="Tokens of a random prompt. Default: 256."
        ),
    ] = None
    output_len: Annotated[
        int | None,
        typer.Option(
            "--output-len",
            "--random-output-len",
            "--sharegpt-output-len",
            "--prefix-repetition-output-len",
            min=1,
            help="Tokens of every answer. Default: 64; as in the file; of a table where the model ends it.",
        ),
    ] = None
    range_ratio: Annotated[
        float | None,
        typer.Option(
            "--range-ratio",
            "--random-range-ratio",
            min=0,
            max=0.999,
            help="Random lengths lie this share around the given.",
        ),
    ] = None
    prefix_len: Annotated[
        int | None,
        typer.Option(
            "--prefix-len",
            "--random-prefix-len",
            "--prefix-repetition-prefix-len",
            min=0,
            help="Tokens with which random prompts begin alike.",
        ),
    ] = None
    suffix_len: Annotated[
        int | None,
        typer.Option(
            "--suffix-len", "--prefix-repetition-suffix-len", min=1, help="Tokens after a shared prefix."
        ),
    ] = None
    num_prefixes: Annotated[
        int | None,
        typer.Option("--num-prefixes", "--prefix-repetition-num-prefixes", min=1, help="Different prefixes."),
    ] = None


@dataclass(frozen=True, slots=True)
class PointOptions:
    """How each point is measured; the fields are those of a BenchSpec, but for `param`."""

    repeats: RepeatsOption = 1
    seed: SeedOption = 0
    param: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A sampling parameter; repeatable. Default: temperature=1."),
    ] = None
    ignore_eos: Annotated[
        bool, typer.Option(help="Go on past the model's end, so that answers have exactly their length.")
    ] = True


@dataclass(frozen=True, slots=True)
class ResultOptions:
    """What becomes of the figures."""

    name: Annotated[str, typer.Option(help="A name to find it by.", show_default=False)] = ""
    output: OutputOption = None
    as_json: JsonOption = False
