"""Files of `vllm bench` 0.26 to 0.32, read strictly: from outside, so nothing in them is believed.

serve        --save-result, with or without --save-detailed; --append-result makes one JSON a line
throughput   --output-json
latency      --output-json
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from core.bench.records import EngineSample, Point, RequestRecord
from core.bench.spec import BenchSpec, Load
from core.errors import BenchError

MAX_BYTES = 512 << 20
_MAX_POINTS = 1000
_MAX_FIELDS = 500
_MAX_TEXT = 1000
_MAX_NUMBER = 1e18
_MAX_ENVIRONMENT = 64 << 10
_REQUIRED = {
    "serve": ("duration", "completed", "total_input_tokens", "total_output_tokens", "output_throughput"),
    "throughput": ("elapsed_time", "num_requests", "tokens_per_second"),
    "latency": ("avg_latency",),
}
_FIGURE = re.compile(
    r"(mean|median|std|p[\d.]+)_\w+_ms|\w+_throughput|total_\w+_tokens|\w+_per_(s|second)|request_goodput"
    r"|duration|completed|failed|elapsed_time|num_requests|total_num_tokens|max_concurrent_requests|rtfx"
    r"|avg_latency|num_prompts"
)
_MOST_S = 30 * 86_400.0
"""A request that takes longer is none; charts by the second stay drawable."""
_HINT = "Choose a file by `vllm bench serve --save-result`, or by `throughput` or `latency --output-json`."
_LISTS = ("input_lens", "output_lens", "ttfts", "itls", "start_times", "errors")
_COUNTS = ("output_tokens", "prompt_tokens", "running", "waiting", "prefix_queries", "prefix_hits")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a file holds. `spec` is there in files of ours only; `environment` says little in vLLM's."""

    kind: str
    points: tuple[Point, ...]
    environment: Mapping[str, Any]
    spec: BenchSpec | None = None


def load(data: bytes) -> Contents:
    """Read a file by `vllm bench` or by `core.bench.files.to_json`, one result or one a line.

    Raises BenchError, which says what is wrong, for anything else.
    """
    if len(data) > MAX_BYTES:
        raise BenchError(
            f"The file has {len(data) >> 20:,} MB; results are read up to {MAX_BYTES >> 20:,} MB.",
            hint="Save it without --save-detailed.",
        )
    documents = _documents(data)
    kinds = [_kind(document) for document in documents]
    if len(set(kinds)) > 1:
        raise BenchError(
            f"The file holds results of different kinds: {', '.join(sorted(set(kinds)))}.",
            hint="Put each kind into a file of its own.",
        )
    kind = kinds[0]
    points = tuple(_point(number, document, kind) for number, document in enumerate(documents))
    ours = _ours(documents[0])
    return Contents(
        kind=kind,
        points=points,
        environment=_environment(documents[0]),
        spec=None if ours.get("spec") is None else _validated(BenchSpec, ours["spec"], "specification"),
    )


def _documents(data: bytes) -> list[dict[str, Any]]:
    """The JSON objects of a file: one, or one a line."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BenchError("The file is no text in UTF-8, so no result of a benchmark.", hint=_HINT) from error
    if not text.strip():
        raise BenchError("The file is empty.", hint=_HINT)
    try:
        found = [_parse(text)]
    except ValueError as whole:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) > _MAX_POINTS:
            raise BenchError(
                f"The file has {len(lines):,} lines; results are read up to {_MAX_POINTS:,}.", hint=_HINT
            ) from whole
        found = []
        for number, line in enumerate(lines, 1):
            try:
                found.append(_parse(line))
            except ValueError as error:
                problem = whole if len(lines) == 1 or number == 1 else error
                where = "The file" if number == 1 else f"Line {number}"
                raise BenchError(f"{where} is no JSON: {_short(str(problem))}", hint=_HINT) from error
    for document in found:
        if not isinstance(document, dict):
            raise BenchError("The file holds JSON, but no result of a benchmark.", hint=_HINT)
    return found


def _parse(text: str) -> Any:
    """Raises ValueError. Infinity (vLLM writes it for a burstiness) is read as "inf", NaN as null."""
    words = {"Infinity": "inf", "-Infinity": None, "NaN": None}
    try:
        return json.loads(text, parse_constant=words.get)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _kind(document: Mapping[str, Any]) -> str:
    if "total_input_sequences" in document:
        raise BenchError("This result measures embeddings, not generation.", hint=_HINT)
    for kind, fields in _REQUIRED.items():
        if all(name in document for name in fields):
            for name in fields:
                if not _is_amount(document[name]) and not (document[name] is None and _ours(document)):
                    raise BenchError(f"The field {name} of the result is no number from 0 up.", hint=_HINT)
            return kind
    raise BenchError("The file holds JSON, but no result of `vllm bench`.", hint=_HINT)


def _point(number: int, document: Mapping[str, Any], kind: str) -> Point:
    ours = _ours(document)
    result = _result(document, kind, ours)
    lists = document if kind == "serve" else ours.get("records", {})
    return Point(
        number=number,
        repeat=_count(ours.get("repeat", 0), "repeat"),
        load=_load(document, kind, ours),
        result=result,
        records=_records(lists, ours),
        samples=_samples(ours.get("samples", {})),
        is_whole=ours.get("is_whole", True) is True,
    )


def _ours(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Our own key, {} in files of vLLM's."""
    ours = document.get("workbench", {})
    if not isinstance(ours, dict):
        raise BenchError('The field "workbench" of the result is no object.', hint=_HINT)
    return ours


def _result(document: Mapping[str, Any], kind: str, ours: Mapping[str, Any]) -> dict[str, Any]:
    """The single values of a result; of a latency benchmark its lists too."""
    added = ours.get("result", {})
    if not isinstance(added, dict):
        raise BenchError('The field "result" under "workbench" is no object.', hint=_HINT)
    fields = {**document, **added}
    if len(fields) > _MAX_FIELDS:
        raise BenchError(
            f"The result has {len(fields):,} fields; at most {_MAX_FIELDS} are read.", hint=_HINT
        )
    for name, value in fields.items():
        if _FIGURE.fullmatch(name) and value is not None and not _is_amount(value):
            said = f"The field {_short(name)} of the result is no number from 0 up."
            raise BenchError(said, hint=_HINT)
    result = {_short(name): _single(value) for name, value in fields.items() if _is_single(value)}
    if kind == "latency":
        result["latencies"] = _gaps(document.get("latencies", []), "latencies")
        shares = document.get("percentiles", {})
        if not isinstance(shares, dict):
            raise BenchError("The field percentiles of the result is no object.", hint=_HINT)
        result["percentiles"] = {
            _short(share): value for share, value in shares.items() if value is None or _is_number(value)
        }
    return result


def _load(document: Mapping[str, Any], kind: str, ours: Mapping[str, Any]) -> Load | None:
    """How requests arrived; None where that is no Load: another kind, or a rate that changed on the way."""
    if ours.get("load") is not None:
        return _validated(Load, ours["load"], "load")
    if kind != "serve" or ours or "ramp_up_strategy" in document or "request_rate" not in document:
        return None
    rate, burstiness = document["request_rate"], document.get("burstiness", 1.0)
    even = {"arrivals": "constant"}
    shape = {"arrivals": "gamma", "burstiness": burstiness}
    values = {
        "request_rate": None if rate == "inf" else rate,
        "max_concurrency": document.get("max_concurrency"),
        **({} if burstiness == 1 or rate == "inf" else even if burstiness == "inf" else shape),
    }
    return _validated(Load, values, "load")


def _records(lists: Any, ours: Mapping[str, Any]) -> tuple[RequestRecord, ...]:
    """The requests of a detailed result; () where there are no details.

    vLLM writes 0 for what was not measured, and times of its own clock: the first request's is 0 here.
    """
    if not isinstance(lists, dict) or not all(isinstance(lists.get(name), list) for name in _LISTS):
        return ()
    columns = {name: lists[name] for name in _LISTS}
    count = len(columns["start_times"])
    for name, missing in (("latencies", None), ("queue_times", 0.0)):
        columns[name] = lists.get(name) or [missing] * count
    for name in ("cached_tokens", "finish_reasons"):
        columns[name] = ours.get(name) or [None] * count
    for name, column in columns.items():
        if not isinstance(column, list) or len(column) != count:
            raise BenchError(f"The lists of the result differ in length: {name} and start_times.", hint=_HINT)
    for name in ("start_times", "queue_times"):  # below 0 or 0 where a failed request was never sent
        _numbers(columns[name], name)
    began = 0.0
    if not ours and count:
        began = min((at for at in columns["start_times"] if at > 0), default=0.0)
    rows = zip(*columns.values(), strict=True)
    return tuple(_record(dict(zip(columns, row, strict=True)), began, bool(ours)) for row in rows)


def _record(row: Mapping[str, Any], began: float, is_ours: bool) -> RequestRecord:
    error = row["errors"] or None
    if error is not None and not isinstance(error, str):
        raise BenchError("An entry of errors in the result is no text.", hint=_HINT)
    ttft, e2el = _seconds(row["ttfts"], "ttfts"), _seconds(row["latencies"], "latencies")
    gaps = tuple(_gaps(row["itls"], "itls"))
    if not is_ours:
        ttft = ttft or None
        e2el = e2el or (None if ttft is None else ttft + math.fsum(gaps))
    reason, cached = row["finish_reasons"], row["cached_tokens"]
    return RequestRecord(
        input_len=_count(row["input_lens"], "input_lens"),
        output_len=_count(row["output_lens"], "output_lens"),
        start_s=_seconds(max(0.0, row["start_times"] - began), "start_times"),
        ttft_s=None if error else ttft,
        itls_s=() if error else gaps,
        e2el_s=None if error else e2el,
        queue_s=_seconds(max(0.0, row["queue_times"]), "queue_times"),
        cached_tokens=None if cached is None else _count(cached, "cached_tokens"),
        finish_reason=_short(reason) if isinstance(reason, str) else None,
        error=None if error is None else _short(error),
    )


def _samples(columns: Any) -> tuple[EngineSample, ...]:
    """The engine and device over time, from a file of ours."""
    if not columns:
        return ()
    names = EngineSample.__slots__
    if not isinstance(columns, dict) or set(columns) != set(names):
        raise BenchError('The field "samples" under "workbench" is not as it is written.', hint=_HINT)
    lengths = {len(column) if isinstance(column, list) else -1 for column in columns.values()}
    if len(lengths) > 1 or -1 in lengths:
        raise BenchError('The lists of "samples" differ in length.', hint=_HINT)
    for name, column in columns.items():
        for value in column:
            may_lack = name not in (*_COUNTS, "at_s")
            is_right = value <= _MOST_S if name == "at_s" and _is_amount(value) else _is_amount(value)
            if not is_right and not (value is None and may_lack):
                raise BenchError(f"An entry of {name} in the samples is not as it is written.", hint=_HINT)
    rows = zip(*(columns[name] for name in names), strict=True)
    return tuple(EngineSample(**dict(zip(names, row, strict=True))) for row in rows)


def _environment(document: Mapping[str, Any]) -> dict[str, Any]:
    """What the file says about where it was measured."""
    ours = _ours(document).get("environment")
    if ours is not None:
        text = json.dumps(ours, ensure_ascii=False).encode("utf-8", "replace")
        if not isinstance(ours, dict) or len(text) > _MAX_ENVIRONMENT:
            raise BenchError('The field "environment" under "workbench" is not as it is written.', hint=_HINT)
        return json.loads(text)
    names = {"model": "model_id", "engine": "backend", "tokenizer": "tokenizer_id", "label": "label"}
    names |= {"date": "date"}
    found = {ours: document.get(theirs) for ours, theirs in names.items()}
    return {name: _short(value) for name, value in found.items() if isinstance(value, str) and value}


def _validated(model: Any, values: Any, what: str) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        said = _short(f"{where}: {problem['msg']}")
        raise BenchError(f"The {what} in the result is not valid: {said}", hint=_HINT) from error


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < _MAX_NUMBER  # neither for NaN nor for infinity


def _is_amount(value: Any) -> bool:
    return _is_number(value) and value >= 0


def _is_single(value: Any) -> bool:
    return value is None or isinstance(value, bool | str) or _is_number(value)


def _single(value: Any) -> Any:
    return _short(value) if isinstance(value, str) else value


def _short(text: str) -> str:
    """At most 1,000 characters; half a character (JSON can name one) is a question mark."""
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 1]}…"


def _numbers(values: Any, name: str) -> list[float]:
    if not isinstance(values, list) or not all(map(_is_number, values)):
        raise BenchError(f"The field {name} of the result is no list of numbers.", hint=_HINT)
    return [float(value) for value in values]


def _gaps(values: Any, name: str) -> list[float]:
    """Times one after the other, of one request or one benchmark."""
    gaps = _numbers(values, name)
    if gaps and not (min(gaps) >= 0 and math.fsum(gaps) <= _MOST_S):
        raise BenchError(f"The times in {name} of the result are below 0, or over 30 days.", hint=_HINT)
    return gaps


def _seconds(value: Any, name: str) -> float | None:
    if value is not None and not (_is_number(value) and 0 <= value <= _MOST_S):
        raise BenchError(f"An entry of {name} in the result is no time from 0 s to 30 days.", hint=_HINT)
    return None if value is None else float(value)


def _count(value: Any, name: str) -> int:
    if not _is_number(value) or value != int(value) or value < 0:
        raise BenchError(f"An entry of {name} in the result is no count.", hint=_HINT)
    return int(value)
