"""What a run will take, before it is started: tokens, shared prompts, time.

A sample of the plan's requests is rendered and tokenized as the run itself does it, in
stretches of neighbours, so that what they share shows. The time comes from what this
model really did here in earlier runs.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb
import numpy as np

from core import sampling, tables
from core.adapters.registry import registered
from core.batch import plan_run
from core.engines.base import Engine
from core.errors import RunError
from core.planning import plans
from core.planning.plans import PlanInfo
from core.recipes import Recipe
from core.requests import Item, Preparer
from core.run_spec import ForecastSpec, RunSpec, SessionSpec
from core.runs import Run
from core.store import Store
from core.types import LoraAdapter

EXACT_ROWS = 2_000
"""Up to so many requests all are looked at; of more, as many."""
_STRETCHES = 20
_SAMPLE_TOKENS = 2_000_000
_BINS = 30
_BLOCK_TOKENS = 16
_SESSIONS, _SESSION_S = 5, 5.0
_EARLIER_RUNS = 200
NO_RATE = "No rate measured yet with this model here: try a few rows first."


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What is expected of the whole run; estimates from `sampled` requests unless `exact`.

    requests: rows without duplicates, rows that can't be used included. Prompt tokens and what hangs
    on them are None, 0 or empty where the engine has no "tokens" to count. prompt_tokens: of all
    requests that will be sent, cached ones included (of a talk of several turns the earlier
    answers are left out). prompt_bins: n + 1 edges in tokens, prompt_counts: requests in each of
    the n bins. over_limit: requests that don't fit `max_model_len` (or the most tokens asked for).
    unusable: requests that end without the engine. cached_share: share of the prompt tokens that
    repeat what the request before began with, in whole KV-cache blocks. output_basis,
    seconds_basis: sentences that say where the figures come from; output_is_bound: `output_tokens` is
    the most there can be.
    """

    rows: int
    requests: int
    duplicates: int
    sampled: int
    exact: bool
    prompt_tokens: int | None
    prompt_tokens_mean: float | None
    prompt_bins: tuple[int, ...]
    prompt_counts: tuple[int, ...]
    max_model_len: int
    over_limit: int
    unusable: int
    cached_share: float | None
    output_tokens: int
    output_is_bound: bool
    output_basis: str
    seconds: float | None
    seconds_basis: str
    plan: PlanInfo

    def spec(self) -> ForecastSpec:
        """What run.json keeps, to be held against what came; a mere bound is not kept."""
        return ForecastSpec(
            requests=self.requests,
            prompt_tokens=self.prompt_tokens,
            output_tokens=None if self.output_is_bound else self.output_tokens,
            cached_share=self.cached_share,
            seconds=None if self.output_is_bound else self.seconds,
        )


@dataclass(slots=True)
class _Sample:
    """What was found in the requests looked at."""

    looked_at: int = 0
    usable: int = 0
    lengths: list[int] = field(default_factory=list)  # of all prompts that could be rendered
    sent: int = 0
    turns: int = 0
    sent_tokens: int = 0
    answer_tokens: int = 0  # at most
    over_limit: int = 0
    compared_tokens: int = 0
    cached_tokens: int = 0


def forecast(run: Run, engine: Engine, store: Store) -> Forecast:
    """Plan the run and say what it will take with the engine that is loaded.

    The plan is kept: a start of the run finds it. Raises RunError while nothing is asked.
    """
    spec = run.spec
    if spec.prompt is None:
        raise RunError(f"Run {run.run_id} has no prompt yet.", hint="Write a template first.")
    params = sampling.validate({**sampling.defaults(engine.info.generation_config), **spec.params})
    with run.connect() as connection:
        plan = plan_run(connection, spec, params, engine)
        sample = _look(connection, spec, params, engine, plan, registered(store))
        own_mean = _own_output(connection)
    earlier = list(_earlier_runs(run, engine, store))
    scale = plan.requests / max(sample.looked_at, 1)
    mean, is_bound, basis = _output_tokens(own_mean, earlier, params, sample)
    counts = "tokens" not in engine.info.cannot
    prompt_tokens, output_tokens = round(sample.sent_tokens * scale), round(sample.sent * scale * mean)
    cached = sample.cached_tokens / sample.compared_tokens if sample.compared_tokens else None
    if counts:
        seconds, seconds_basis = _seconds(
            prompt_tokens * (1 - (cached or 0.0)) + output_tokens, [spec, *earlier], engine, is_bound
        )
    else:
        seconds, seconds_basis = _seconds_of_requests(round(sample.sent * scale), spec)
    bins, counts = _histogram(sample.lengths, scale)
    return Forecast(
        rows=plan.rows,
        requests=plan.requests,
        duplicates=plan.duplicates,
        sampled=sample.looked_at,
        exact=sample.looked_at == plan.requests,
        prompt_tokens=prompt_tokens if counts else None,
        prompt_tokens_mean=(float(np.mean(sample.lengths)) if sample.lengths else 0.0) if counts else None,
        prompt_bins=bins,
        prompt_counts=counts,
        max_model_len=engine.info.max_model_len,
        over_limit=round(sample.over_limit * scale),
        unusable=round((sample.looked_at - sample.usable) * scale),
        cached_share=cached,
        output_tokens=output_tokens,
        output_is_bound=is_bound,
        output_basis=basis,
        seconds=seconds,
        seconds_basis=seconds_basis,
        plan=plan,
    )


# -- the prompts ---------------------------------------------------------------


def _look(
    connection: duckdb.DuckDBPyConnection,
    spec: RunSpec,
    params: Mapping[str, Any],
    engine: Engine,
    plan: PlanInfo,
    adapters: Mapping[str, LoraAdapter],
) -> _Sample:
    columns = tables.info(connection).columns
    recipe = Recipe(spec.prompt, columns)
    preparer = Preparer(recipe, columns, engine, params, spec.overflow, plan.field_orders, adapters)
    block = int(engine.info.settings.get("block_size") or _BLOCK_TOKENS)
    sample = _Sample()
    for stretch in _stretches(plan.requests):
        rows = plans.read(connection, columns, stretch, recipe.variables)
        before: Sequence[int] | None = () if stretch.start == 0 else None
        adapter = None
        for item in preparer.prepare(rows):
            sample.looked_at += 1
            if isinstance(item, Item):
                if item.adapter != adapter and before is not None:
                    before = ()  # what another adapter made of a prompt is no use
                adapter = item.adapter
                before = _add(sample, item, before, block)
            elif item.prompt_tokens is not None:  # refused for its length
                sample.usable += 1
                sample.lengths.append(item.prompt_tokens)
                sample.over_limit += 1
        if sum(sample.lengths) > _SAMPLE_TOKENS:
            break
    return sample


def _stretches(requests: int) -> list[range]:
    """Positions to look at: all, or stretches evenly over the plan, in no order of their own."""
    if requests <= EXACT_ROWS:
        return [range(start, min(start + 256, requests)) for start in range(0, requests, 256)]
    length = EXACT_ROWS // _STRETCHES
    starts = np.linspace(0, requests - length, _STRETCHES).astype(int).tolist()
    random.Random(0).shuffle(starts)  # long prompts end the look early: what was seen is spread even so
    return [range(start, start + length) for start in starts]


def _add(sample: _Sample, item: Item, before: Sequence[int] | None, block: int) -> Sequence[int] | None:
    turns = 1 + len(item.turns)
    sample.usable += 1
    sample.sent += 1
    sample.turns += turns
    sample.answer_tokens += turns * int(item.params["max_tokens"]) * int(item.params.get("n") or 1)
    if item.token_ids is None:
        return None
    tokens = len(item.token_ids)
    sample.lengths.append(tokens + (item.truncated_tokens or 0))
    sample.over_limit += item.truncated_tokens is not None
    sample.sent_tokens += tokens * turns
    if before is not None:
        sample.compared_tokens += tokens
        sample.cached_tokens += _shared(item.token_ids, before, block)
    return item.token_ids


def _shared(tokens: Sequence[int], before: Sequence[int], block: int) -> int:
    """Tokens of the whole blocks that both begin with. The last token is computed in any case."""
    most = min(len(tokens) - 1, len(before)) // block * block
    for start in range(0, most, block):
        if tokens[start : start + block] != before[start : start + block]:
            return start
    return max(most, 0)


def _histogram(lengths: Sequence[int], scale: float) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Edges and counts of bins whose width is a whole number of tokens."""
    if not lengths:
        return (), ()
    low, high = min(lengths), max(lengths) + 1
    width = -(-(high - low) // _BINS)
    edges = np.arange(low, high + width, width)
    counts, _edges = np.histogram(lengths, edges)
    return tuple(edges.tolist()), tuple(round(count * scale) for count in counts.tolist())


# -- what was measured before --------------------------------------------------


def _own_output(connection: duckdb.DuckDBPyConnection) -> tuple[int, float] | None:
    """(answers, mean output tokens) of this run's fresh answers, None while there are none."""
    [(answers, mean)] = connection.execute(
        "SELECT count(*), avg(output_tokens) FROM results "
        "WHERE status = 'ok' AND same_as IS NULL AND stale IS NOT TRUE AND output_tokens IS NOT NULL"
    ).fetchall()
    return (answers, mean) if answers else None


def _earlier_runs(run: Run, engine: Engine, store: Store) -> Iterator[RunSpec]:
    """What other runs with this model say of themselves, newest first."""
    for record in store.runs(_EARLIER_RUNS):
        if record.run_id != run.run_id and record.model == engine.info.model:
            with contextlib.suppress(RunError):  # a folder that is gone or damaged tells nothing
                yield Run(run.folder.parent / record.run_id).spec


def _output_tokens(
    own: tuple[int, float] | None, earlier: Sequence[RunSpec], params: Mapping[str, Any], sample: _Sample
) -> tuple[float, bool, str]:
    """(output tokens of a row that is asked, whether that is only the most, where it comes from)."""
    if own is not None:
        return own[1], False, f"The mean of this run's {own[0]:,} answers so far."
    rows = max(sample.sent, 1)
    if params.get("ignore_eos"):
        return sample.answer_tokens / rows, False, "Every answer goes on to max_tokens (ignore_eos)."
    most = int(params["max_tokens"])
    alike = [spec for spec in earlier if spec.params.get("max_tokens") == most]
    sessions = [session for spec in alike for session in spec.sessions]
    requests = sum(session.generated for session in sessions)
    if requests:
        mean = sum(session.output_tokens for session in sessions) / requests
        basis = f"The mean of {requests:,} answers of earlier runs with max_tokens {most:,}."
        return mean * sample.turns / rows, False, basis
    basis = "At most max_tokens each: no answers with this model and max_tokens yet."
    return sample.answer_tokens / rows, True, basis


def _seconds(
    tokens: float, specs: Sequence[RunSpec], engine: Engine, is_bound: bool
) -> tuple[float | None, str]:
    """(expected seconds, how they were computed), from the latest stretches of work with this model."""
    sessions: list[SessionSpec] = sorted(
        (
            session
            for spec in specs
            if spec.model is not None and spec.model.name == engine.info.model
            for session in spec.sessions
            if session.wall_s and session.generated
        ),
        key=lambda session: session.started_at,
        reverse=True,
    )
    # a few rows tried are short and leave the engine half empty: they count only where nothing else does
    long = [session for session in sessions if session.wall_s >= _SESSION_S]
    full = [session for session in long if session.generated >= engine.info.batch_slots]
    used = (full or long or sessions)[:_SESSIONS]
    done = sum(_worked(session) for session in used)
    if not done:
        return None, NO_RATE
    rate = done / sum(session.wall_s for session in used)
    most = "At most: " if is_bound else ""
    last = "the last stretch" if len(used) == 1 else f"the last {len(used)} stretches"
    doubt = "did not fill the engine" if long else f"took under {_SESSION_S:.0f} s"
    few = "" if full else f", which {doubt}"
    return tokens / rate, (
        f"{most}{tokens:,.0f} tokens (prompts beyond their shared beginnings, and answers) "
        f"at {rate:,.0f} tokens/s, as in {last} of work with this model here{few}."
    )


def _seconds_of_requests(requests: int, spec: RunSpec) -> tuple[float | None, str]:
    """As `_seconds`, where no prompt can be counted: from what this very run took so far."""
    sessions = [session for session in spec.sessions if session.wall_s and session.generated]
    generated = sum(session.generated for session in sessions)
    if not generated:
        return None, "The engine tells no prompt tokens beforehand: try a few rows, for a rate."
    rate = generated / sum(session.wall_s for session in sessions)
    return requests / rate, f"{requests:,} requests at {rate:,.1f} a second, as in this run so far."


def _worked(session: SessionSpec) -> int:
    """Tokens the engine computed: prompts but for what the prefix cache held, and answers."""
    return session.prompt_tokens - session.cached_tokens + session.output_tokens
