"""A result in words: the one figure that stands for it, and a line with what else decides.  (pure)"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_HEADLINES = {
    "output_throughput": ("Output tokens/s", "tokens/s"),
    "tokens_per_second": ("Total tokens/s", "tokens/s"),
    "avg_latency": ("Mean latency", "s"),
}


def headline(kind: str, result: Mapping[str, Any]) -> tuple[str, str, str, float | None]:
    """(field, title, unit, value) of the figure that stands for a result; None: not measured.

    Output tokens/s, of a latency benchmark the mean latency in seconds. A file of `vllm bench
    throughput` doesn't say how many tokens were generated: there it is all tokens, the prompts' too.
    """
    name = "avg_latency" if kind == "latency" else "output_throughput"
    if kind == "throughput" and result.get(name) is None and "tokens_per_second" in result:
        name = "tokens_per_second"
    return name, *_HEADLINES[name], result.get(name)


def number(value: float | None, unit: str = "") -> str:
    """A value with its unit, in as many digits as a reader needs: "1,234 tokens/s", "12.3 ms"."""
    if value is None:
        return "not measured"
    text = f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 100 else f"{value:,.3g}"
    return f"{text} {unit}".strip()


def summary_words(kind: str, result: Mapping[str, Any]) -> str:
    """A result in one line: "812 output tokens/s, 6.3 requests/s, median TTFT 41 ms, 2 failed"."""
    _name, title, unit, value = headline(kind, result)
    parts = [f"{title.lower()} {number(value, unit)}"]
    if value is not None and unit == "tokens/s":
        parts = [f"{number(value)} {title.lower()}"]
    for name in ("request_throughput", "requests_per_second"):
        if result.get(name) is not None:
            parts.append(number(result[name], "requests/s"))
    if result.get("request_goodput") is not None:
        parts.append(f"goodput {number(result['request_goodput'], 'requests/s')}")
    for metric in ("ttft", "tpot"):
        if (median := result.get(f"median_{metric}_ms")) is not None:
            parts.append(f"median {metric.upper()} {number(median, 'ms')}")
    if result.get("failed"):
        parts.append(f"{result['failed']:,} failed")
    return ", ".join(parts)
