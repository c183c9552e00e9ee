"""Workloads into requests: token ids and the length wanted of each answer, the same for the same seed.

All prompts are made before anything is measured, and sent as token ids: their lengths are exact, and
no tokenizer works while an engine is measured.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import duckdb
import numpy as np

from core import results, sampling, tables
from core.adapters.registry import named
from core.asks import encodable
from core.bench.records import PlannedRequest
from core.bench.spec import (
    MAX_PROMPTS,
    BenchSpec,
    ConversationWorkload,
    RandomWorkload,
    SharedPrefixWorkload,
    TableWorkload,
)
from core.engines.base import Engine
from core.errors import ParameterError
from core.recipes import Recipe
from core.requests import Item, Preparer
from core.run_spec import OverflowSpec, PromptSpec
from core.types import EngineInfo, LoraAdapter

_AT_ONCE = 256
_BOUNDS = {"memory_limit": "512MB", "threads": "2"}
_POOL = 8192
_TEXTS, _WORDS = 100, 200
_LETTERS = list("abcdefghijklmnopqrstuvwxyz")
# what `vllm bench` leaves out of a ShareGPT file (`is_valid_sequence`), in tokens
_LEAST_TOKENS, _MOST_PROMPT, _MOST_TOTAL = 4, 1024, 2048
_MOST_CHARACTERS = 1 << 17  # longer texts are surely too many tokens: they aren't even counted
_USERS = ("human", "user")


def plan(
    spec: BenchSpec,
    engine: Engine,
    seed: int | None = None,
    adapters: Mapping[str, LoraAdapter] = MappingProxyType({}),
) -> list[PlannedRequest]:
    """The requests of one measurement, in the order they are sent. `seed` None: the specification's.

    `adapters`: as `core.adapters.registry.registered` gives them, for a table that names some.

    Reads and tokenizes: to be called from a thread, never from the loop. Raises ParameterError for
    what the engine can't do or what doesn't fit its context, TableError or TemplateError for a file or
    template that can't be used.
    """
    if "tokens" in engine.info.cannot:
        raise ParameterError(
            f"A benchmark needs prompts of exact lengths: {engine.info.cannot['tokens']}",
            hint="Load the model with another engine.",
        )
    rng = np.random.default_rng(spec.seed if seed is None else seed)
    workload = spec.workload
    if spec.kind == "latency":
        workload = _one_batch(spec)
    match workload:
        case RandomWorkload():
            planned = _random(workload, engine, rng)
        case SharedPrefixWorkload():
            planned = _shared_prefix(workload, engine, rng)
        case TableWorkload():
            planned = _table(workload, spec.params, engine, rng, adapters)
        case ConversationWorkload():
            planned = _conversations(workload, engine, rng)
    _check_fit(planned, engine.info)
    return planned


def warmups(
    spec: BenchSpec, engine: Engine, planned: Sequence[PlannedRequest], seed: int | None = None
) -> list[PlannedRequest]:
    """`num_warmups` requests of random tokens, as long as those `planned`; they share no prefix with them.

    Those with different adapters come first: an adapter is loaded at its first request.
    """
    if not spec.num_warmups:
        return []
    # a stream of its own: the measured requests' tokens can't be drawn again
    rng = np.random.default_rng([spec.seed if seed is None else seed, 1])
    pool = token_pool(engine)
    first_of: dict[Any, int] = {}
    for at, request in enumerate(planned):
        first_of.setdefault(request.adapter and request.adapter.number, at)
    firsts = set(first_of.values())
    order = sorted(range(len(planned)), key=lambda at: at not in firsts)
    like = [planned[at] for at in itertools.islice(itertools.cycle(order), spec.num_warmups)]
    return [
        PlannedRequest(
            token_ids=_draw(pool, len(request.token_ids), rng),
            output_len=request.output_len or _free_length(spec),
            adapter=request.adapter,
        )
        for request in like
    ]


def token_pool(engine: Engine) -> np.ndarray:
    """Ids of ordinary tokens, ascending: none that is special, such as the end of a text.

    Up to 8,192 from all over the vocabulary, always the same for the same model. Of a server that
    doesn't say how large its vocabulary is, the tokens of made-up words.
    """
    size = engine.info.vocabulary_size
    rng = np.random.default_rng(0)
    if size is None:
        lengths = rng.integers(1, 6, size=(_TEXTS, _WORDS))
        words = [["".join(rng.choice(_LETTERS, size=length)) for length in row] for row in lengths]
        found = engine.encode([" ".join(row) for row in words])  # letters alone: none of them is special
        return np.array(sorted(set().union(*found)), dtype=object)
    candidates = sorted(rng.choice(size, min(size, _POOL), replace=False).tolist())
    pieces = engine.pieces(candidates)
    ordinary = [token for token, piece in zip(candidates, pieces, strict=True) if not piece.special]
    return np.array(ordinary, dtype=object)


def _one_batch(spec: BenchSpec) -> RandomWorkload:
    """The one batch of a latency benchmark. Its prompts must be equally long."""
    workload = spec.workload
    if not isinstance(workload, RandomWorkload) or workload.range_ratio:
        raise ParameterError(
            "A latency benchmark sends prompts of one length.",
            hint="Choose random prompts, all of the same length.",
        )
    return workload.model_copy(update={"num_prompts": spec.batch_size})


def _random(workload: RandomWorkload, engine: Engine, rng: np.random.Generator) -> list[PlannedRequest]:
    """As vLLM's RandomDataset, but each token is drawn by itself.

    There a prompt is a run of consecutive ids from a random one on: two that begin at the same id
    share their prefix, and its tokens then come from the prefix cache.
    """
    _check_room(workload.prefix_len, 1, engine.info)  # before it is drawn: somebody may have slipped a zero
    pool = token_pool(engine)
    prefix = _draw(pool, workload.prefix_len, rng)
    inputs = _lengths(workload.input_len, workload.range_ratio, workload.num_prompts, rng)
    outputs = _lengths(workload.output_len, workload.range_ratio, workload.num_prompts, rng)
    longest, output = max(zip(inputs, outputs, strict=True), key=sum)
    _check_room(len(prefix) + longest, output, engine.info)
    group = 0 if prefix else None
    return [
        PlannedRequest(token_ids=prefix + _draw(pool, length, rng), output_len=output, group=group)
        for length, output in zip(inputs, outputs, strict=True)
    ]


def _shared_prefix(
    workload: SharedPrefixWorkload, engine: Engine, rng: np.random.Generator
) -> list[PlannedRequest]:
    """As vLLM's PrefixRepetitionRandomDataset: groups of equal size, in random order."""
    if workload.num_prefixes > workload.num_prompts:
        raise ParameterError(
            f"{workload.num_prefixes:,} prefixes can't be shared by {workload.num_prompts:,} prompts.",
            hint="Ask for more prompts, or fewer prefixes.",
        )
    _check_room(workload.prefix_len + workload.suffix_len, workload.output_len, engine.info)
    pool = token_pool(engine)
    prefixes = [_draw(pool, workload.prefix_len, rng) for _ in range(workload.num_prefixes)]
    groups = rng.permutation(np.arange(workload.num_prompts) % workload.num_prefixes)
    return [
        PlannedRequest(
            token_ids=prefixes[group] + _draw(pool, workload.suffix_len, rng),
            output_len=workload.output_len,
            group=int(group),
        )
        for group in groups
    ]


def _lengths(mean: int, ratio: float, count: int, rng: np.random.Generator) -> list[int]:
    """Whole numbers, evenly from mean x (1 - ratio) to mean x (1 + ratio), never below 1."""
    low, high = max(1, math.floor(mean * (1 - ratio))), max(1, math.ceil(mean * (1 + ratio)))
    return rng.integers(low, high + 1, size=count).tolist()


def _draw(pool: np.ndarray, length: int, rng: np.random.Generator) -> tuple[int, ...]:
    return tuple(pool[rng.integers(0, len(pool), size=length)].tolist())


def _table(
    workload: TableWorkload,
    params: Mapping[str, Any],
    engine: Engine,
    rng: np.random.Generator,
    adapters: Mapping[str, LoraAdapter],
) -> list[PlannedRequest]:
    """Rows of a table, as a batch run would send them; those that a batch would not send are left out.

    Where the table has fewer rows than asked for, all there are.
    """
    _check_prompt(workload.prompt)
    named(workload.prompt.adapter, adapters)  # else it would be wrong in each row
    name = Path(workload.path).name
    planned: list[PlannedRequest] = []
    reason = "It has no rows."
    with _staged(workload.path) as (connection, staged):
        wanted = MAX_PROMPTS if workload.num_prompts is None else workload.num_prompts
        if workload.num_prompts is None and staged.rows > MAX_PROMPTS:
            raise ParameterError(
                f"{name} has {staged.rows:,} rows; a benchmark asks at most {MAX_PROMPTS:,}.",
                hint="Say how many of them to draw.",
            )
        order = np.arange(staged.rows) if workload.num_prompts is None else rng.permutation(staged.rows)
        recipe = Recipe(workload.prompt, staged.columns)
        preparer = Preparer(recipe, staged.columns, engine, params, OverflowSpec(), adapters=adapters)
        for rows in _in_order(connection, staged.columns, order, recipe.variables):
            for outcome in preparer.prepare([(row, None) for row in rows]):
                if isinstance(outcome, Item):
                    planned.append(_planned(outcome, workload.output_len, params))
                elif outcome.prompt_tokens is not None:  # without it, the lengths would not be the table's
                    raise ParameterError(
                        f"Row {outcome.row + 1:,} of {name} does not fit. {outcome.error}",
                        hint="Load the model with a longer context, or shorten the prompts.",
                    )
                else:
                    reason = outcome.error or reason
            if len(planned) >= wanted:
                break
    if not planned:
        raise ParameterError(f"No row of {name} makes a prompt. {reason}", hint="Look at the template.")
    return planned[:wanted]


@contextlib.contextmanager
def _staged(path: str) -> Iterator[tuple[duckdb.DuckDBPyConnection, tables.TableInfo]]:
    """A file in a database that is gone afterwards: however large it is, memory stays as it was."""
    with (
        tempfile.TemporaryDirectory(prefix="benchmark-") as folder,
        duckdb.connect(Path(folder) / "rows.duckdb", config=_BOUNDS) as connection,
    ):
        yield connection, tables.stage(Path(path), connection)


def _planned(item: Item, output_len: int | None, params: Mapping[str, Any]) -> PlannedRequest:
    """A row as a request: what differs from the benchmark's own `params` is the row's own."""
    own = {name: value for name, value in item.params.items() if name not in params or params[name] != value}
    return PlannedRequest(
        token_ids=tuple(item.token_ids), output_len=output_len, params=own, adapter=item.adapter
    )


def _check_prompt(prompt: PromptSpec) -> None:
    """Raise for further turns: their prompts are made of answers, while the engine would be measured."""
    if prompt.turns or prompt.turns_column:
        raise ParameterError(
            "A benchmark sends one prompt a row: it knows no later turns.", hint="Leave them out."
        )


def _in_order(
    connection: duckdb.DuckDBPyConnection,
    columns: Sequence[tables.Column],
    order: np.ndarray,
    only: Sequence[str],
) -> Iterator[list[results.InputRow]]:
    """The rows numbered `order`, in that order, some at a time."""
    for start in range(0, len(order), _AT_ONCE):
        wanted = order[start : start + _AT_ONCE].tolist()
        found = {row.row: row for row in results.read_rows(connection, columns, wanted, only=only)}
        yield [found[number] for number in wanted]


def _conversations(
    workload: ConversationWorkload, engine: Engine, rng: np.random.Generator
) -> list[PlannedRequest]:
    """As vLLM's ShareGPTDataset: the first prompt as plain text, without a chat template.

    What is shorter than 4 tokens or longer than 1,024 (with its answer 2,048, or the context) is left
    out. Where the file has fewer than asked for, all there are: to ask one twice would measure the
    prefix cache.
    """
    name = Path(workload.path).name
    room = min(_MOST_TOTAL, engine.info.max_model_len)
    planned: list[PlannedRequest] = []
    talks = 0
    with _staged(workload.path) as (connection, staged):
        if not any(column.name == "conversations" for column in staged.columns):
            raise ParameterError(
                f"{name} holds no conversations: its entries have no key 'conversations'.",
                hint='A file of ShareGPT form is a list of {"conversations": [{"from": ..., "value": ...}]}.',
            )
        order = rng.permutation(staged.rows)
        for rows in _in_order(connection, staged.columns, order, ("conversations",)):
            pairs = [pair for row in rows if not row.problem and (pair := _pair(row.values["conversations"]))]
            talks += len(pairs)
            prompts = engine.encode([prompt for prompt, _answer in pairs], add_special_tokens=True)
            answers = engine.encode([answer for _prompt, answer in pairs])
            for prompt, answer in zip(prompts, answers, strict=True):
                output = workload.output_len or len(answer)
                shortest = len(prompt) if workload.output_len else min(len(prompt), output)
                fits = len(prompt) <= _MOST_PROMPT and len(prompt) + output <= room
                if fits and shortest >= _LEAST_TOKENS:
                    planned.append(PlannedRequest(token_ids=tuple(prompt), output_len=output))
            if len(planned) >= workload.num_prompts:
                break
    if not planned:
        raise ParameterError(
            f"None of the {talks:,} conversations in {name} can be used.",
            hint=f"Prompts have {_LEAST_TOKENS} to {_MOST_PROMPT:,} tokens, {room:,} with the answer.",
        )
    return planned[: workload.num_prompts]


def _pair(talk: Any) -> tuple[str, str] | None:
    """The first thing the user says, and what is answered; None where there is no such pair."""
    turns = [turn for turn in talk if isinstance(turn, dict)] if isinstance(talk, list) else []
    for asked, answered in itertools.pairwise(turns):
        texts = asked.get("value"), answered.get("value")
        is_pair = asked.get("from") in _USERS and answered.get("from") not in _USERS
        if is_pair and all(isinstance(text, str) and 0 < len(text) <= _MOST_CHARACTERS for text in texts):
            return encodable(texts[0]), encodable(texts[1])
    return None


def _free_length(spec: BenchSpec) -> int:
    return int(spec.params.get("max_tokens") or sampling.BY_NAME["max_tokens"].default)


def _check_fit(planned: Sequence[PlannedRequest], info: EngineInfo) -> None:
    """Raise ParameterError where a prompt and its answer are longer than the context."""
    longest = max(planned, key=lambda request: len(request.token_ids) + (request.output_len or 1))
    _check_room(len(longest.token_ids), longest.output_len or 1, info)


def _check_room(tokens: int, output: int, info: EngineInfo) -> None:
    if tokens + output > info.max_model_len:
        raise ParameterError(
            f"{tokens:,} prompt tokens and {output:,} output tokens don't fit: the context holds "
            f"{info.max_model_len:,}.",
            hint="Ask for less, or load the model with a longer context.",
        )
