"""Benchmarks made by hand, whose figures can be told in the head."""

import datetime as dt

from core.bench import files, metrics
from core.bench.differences import Subject
from core.bench.records import BenchView, Point, PointSummary, RequestRecord
from core.bench.spec import BenchSpec, Load, RandomWorkload
from core.bench.store import BenchStore, to_text

WORKLOAD = RandomWorkload(num_prompts=10, input_len=64, output_len=11)


def record(ttft_s=0.1, gap_s=0.01, *, start_s=0.0, output_len=11, error=None, cached_tokens=0):
    """A request of 64 tokens, whose tokens come one by one."""
    if error is not None:
        return RequestRecord(input_len=64, output_len=0, start_s=start_s, error=error)
    gaps = (gap_s,) * (output_len - 1)
    return RequestRecord(
        input_len=64,
        output_len=output_len,
        start_s=start_s,
        ttft_s=ttft_s,
        itls_s=gaps,
        e2el_s=ttft_s + sum(gaps),
        cached_tokens=cached_tokens,
        finish_reason="length",
    )


def point(records, duration_s=1.0, *, number=0, repeat=0, load=None, is_whole=True, goodput=None):
    result = metrics.serve_result(records, duration_s, goodput=goodput)
    return Point(
        number=number, repeat=repeat, load=load, result=result, records=tuple(records), is_whole=is_whole
    )


def repeats(durations_s, load=None, *, ttft_s=0.1, start=0, requests=10):
    """A point of ten equal requests for each duration, which alone makes the repeats differ."""
    return [
        point([record(ttft_s) for _ in range(requests)], seconds, number=start + n, repeat=n, load=load)
        for n, seconds in enumerate(durations_s)
    ]


def view(points, name="bench", *, kind="serve", environment=None, day=1, **values):
    spec = values.pop("spec", None) or BenchSpec(
        kind=kind,
        name=name,
        workload=WORKLOAD,
        loads=tuple({p.load: 0 for p in points if p.load}) or (Load(),),
    )
    return BenchView(
        benchmark_id=name,
        name=name,
        created_at=dt.datetime(2026, 11, day, tzinfo=dt.UTC),
        state="complete",
        message="",
        kind=kind,
        spec=None if values.get("source") else spec,
        environment={"model": "tiny", "engine": "vllm"} if environment is None else environment,
        points=tuple(map(summary, points)),
        **values,
    )


def subject(points, name="bench", **values):
    return Subject(view(points, name, **values), tuple(points))


def summary(one):
    return PointSummary(
        number=one.number, repeat=one.repeat, load=one.load, result=one.result, is_whole=one.is_whole
    )


def kept(store, settings, one):
    """Put a subject into the catalogue as a finished benchmark; gives its id."""
    found = one.view
    at = BenchStore(store, settings)
    benchmark_id = at.add(
        name=found.name, kind=found.kind, spec=found.spec, environment=found.environment, source=found.source
    )
    for each in one.points:
        text = to_text(files.to_json(each, found.spec, found.environment))
        at.add_point(benchmark_id, summary(each), text)
    at.end(benchmark_id, "complete")
    return benchmark_id
