"""Scripted engines whose speed is made up by their width, so that a search is the same on any machine."""

from collections.abc import Mapping

from core.bench import figures, tuning_work
from core.bench.records import Point, RequestRecord
from core.bench.runner import Benchmarks
from core.engines import scripted
from core.engines.scripted import ScriptedEngine
from core.errors import EngineLoadError


def by_width(monkeypatch, speeds: Mapping[int, float], loaded: list[int] | None = None) -> None:
    """Engines load with the widths (max_num_seqs) in `speeds`, and are measured to make so many tokens/s.

    Repeats differ by a hundredth. `speeds` may be changed later; widths are noted in `loaded`.
    """

    def load(spec, settings, **_runtime):
        width = spec.max_num_seqs or 256
        if loaded is not None:
            loaded.append(width)
        if width not in speeds:
            raise EngineLoadError(f"No memory for {width} slots.")
        return ScriptedEngine(spec, tokens_per_s=settings.scripted_tokens_per_s)

    def measured(benchmarks: Benchmarks, benchmark_id: str, metric: str) -> figures.Figure | None:
        view = benchmarks.view(benchmark_id)
        speed = speeds[view.environment["max_num_seqs"]]
        points = [_point(one.repeat, speed * (1 + one.repeat / 100)) for one in view.points]
        return figures.figure(metric, points)

    monkeypatch.setattr(scripted, "load", load)
    monkeypatch.setattr(tuning_work, "measured", measured)


def _point(repeat: int, speed: float) -> Point:
    result = {"total_output_tokens": speed, "duration": 1.0, "completed": 1}
    record = RequestRecord(
        input_len=1, output_len=2, start_s=0.0, ttft_s=0.5 / speed, e2el_s=1 / speed, itls_s=(0.5 / speed,)
    )
    return Point(number=repeat, repeat=repeat, load=None, result=result, records=(record,))
