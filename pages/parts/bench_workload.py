"""What is asked in a benchmark: random prompts, a table, conversations, prompts that begin alike."""

from __future__ import annotations

import streamlit as st

from core.bench.spec import (
    MAX_PROMPTS,
    BenchSpec,
    ConversationWorkload,
    RandomWorkload,
    SharedPrefixWorkload,
    Workload,
)
from pages.parts import bench_files, bench_table

_WORKLOADS = {
    "random": "Random tokens",
    "table": "My table",
    "sharegpt": "Conversations",
    "prefix_repetition": "Shared prefixes",
}
_ABOUT = {
    "random": "Prompts of random tokens, of the lengths you say: comparable everywhere, and no cache helps.",
    "table": "Rows of your own table under a template: the lengths that your work has.",
    "sharegpt": "A file of conversations: the first question of each, as long an answer as it had.",
    "prefix_repetition": "Groups of prompts that begin alike, as with long instructions: the prefix cache "
    "helps.",
}
_FIELD_PIXELS = 170


def workload_form(key: str, initial: BenchSpec | None, kind: str) -> Workload | None:
    """Draw the choice and its fields; None while it is not complete, which is then said."""
    given = initial.workload if initial else RandomWorkload()
    if kind == "latency":
        return _batch(f"{key}:batch", given)
    chosen = st.segmented_control(
        "What is asked", list(_WORKLOADS), format_func=_WORKLOADS.get, default=given.kind, required=True,
        key=f"{key}:workload", persist_state="session",
    )  # fmt: skip
    st.caption(_ABOUT[chosen])
    if chosen == "random":
        return _random(f"{key}:random", given if isinstance(given, RandomWorkload) else RandomWorkload())
    if chosen == "table":
        return bench_table.table_form(f"{key}:table", given)
    if chosen == "sharegpt":
        return _conversations(f"{key}:sharegpt", given)
    same = isinstance(given, SharedPrefixWorkload)
    return _shared_prefix(f"{key}:prefix", given if same else SharedPrefixWorkload())


def number(
    key: str, label: str, value: float | None, low: float, high: float | None = None, help: str | None = None,
    **more: object,
) -> int | float | None:  # fmt: skip
    """A number field of this form; its type is that of `low`."""
    return st.number_input(
        label, low, high, value, key=key, help=help, width=_FIELD_PIXELS, persist_state="session", **more
    )


def _random(key: str, given: RandomWorkload) -> RandomWorkload:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        prompts = number(f"{key}:n", "Prompts", given.num_prompts, 1, MAX_PROMPTS)
        input_len = number(f"{key}:in", "Tokens in", given.input_len, 1)
        output_len = number(f"{key}:out", "Tokens out", given.output_len, 1, help=_EXACT)
        ratio = number(
            f"{key}:ratio", "Lengths vary by (%)", round(given.range_ratio * 100), 0, 99,
            "Lengths are drawn evenly around these: 50 makes 256 tokens 128 to 384.",
        )  # fmt: skip
        prefix = number(
            f"{key}:prefix", "Common prefix", given.prefix_len, 0, None,
            "Tokens that come before each prompt and are the same in all.",
        )  # fmt: skip
    return RandomWorkload(
        num_prompts=prompts, input_len=input_len, output_len=output_len, range_ratio=ratio / 100,
        prefix_len=prefix,
    )  # fmt: skip


_EXACT = "Every answer gets exactly so long: where the model would end, it goes on."


def _batch(key: str, given: Workload) -> RandomWorkload:
    """Equal prompts of a latency benchmark, of which the batch size says how many."""
    start = given if isinstance(given, RandomWorkload) else RandomWorkload()
    with st.container(horizontal=True, vertical_alignment="bottom"):
        input_len = number(f"{key}:in", "Tokens in", start.input_len, 1)
        output_len = number(f"{key}:out", "Tokens out", start.output_len, 1, help=_EXACT)
    return RandomWorkload(input_len=input_len, output_len=output_len)


def _shared_prefix(key: str, given: SharedPrefixWorkload) -> SharedPrefixWorkload:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        prompts = number(f"{key}:n", "Prompts", given.num_prompts, 1, MAX_PROMPTS)
        groups = number(
            f"{key}:groups", "Prefixes", given.num_prefixes, 1, None, "The prompts are dealt out among them."
        )
        prefix = number(f"{key}:prefix", "Tokens of a prefix", given.prefix_len, 1)
        suffix = number(f"{key}:suffix", "Tokens after it", given.suffix_len, 1)
        output_len = number(f"{key}:out", "Tokens out", given.output_len, 1, help=_EXACT)
    return SharedPrefixWorkload(
        num_prompts=prompts, num_prefixes=groups, prefix_len=prefix, suffix_len=suffix, output_len=output_len
    )


def _conversations(key: str, given: Workload) -> ConversationWorkload | None:
    start = given if isinstance(given, ConversationWorkload) else None
    path = bench_files.kept_file(
        f"{key}:file", "A file of conversations", ["json", "jsonl"], start.path if start else None,
        "ShareGPT's form: a JSON list, or lines, of objects with conversations: from and value.",
    )  # fmt: skip
    with st.container(horizontal=True, vertical_alignment="bottom"):
        prompts = number(f"{key}:n", "Prompts", start.num_prompts if start else 200, 1, MAX_PROMPTS)
        output_len = number(
            f"{key}:out", "Tokens out", start.output_len if start else None, 1, None,
            "Empty: as long as the answer in the file.", placeholder="as in file",
        )  # fmt: skip
    if path is None:
        return None
    return ConversationWorkload(path=str(path), num_prompts=prompts, output_len=output_len)


def workload_words(workload: Workload) -> str:
    """200 random prompts, 256 tokens in, 64 out. Plain text: it may name a file from outside."""
    if isinstance(workload, RandomWorkload):
        vary = f" (±{workload.range_ratio:.0%})" if workload.range_ratio else ""
        prefix = f" after {workload.prefix_len:,} common ones" if workload.prefix_len else ""
        return (
            f"{workload.num_prompts:,} random prompts, {workload.input_len:,} tokens in{prefix}, "
            f"{workload.output_len:,} out{vary}"
        )
    if isinstance(workload, SharedPrefixWorkload):
        return (
            f"{workload.num_prompts:,} prompts with {workload.num_prefixes:,} prefixes, "
            f"{workload.prefix_len:,} + {workload.suffix_len:,} tokens in, {workload.output_len:,} out"
        )
    rows = "all" if workload.num_prompts is None else f"up to {workload.num_prompts:,}"
    out = "" if workload.output_len is None else f", {workload.output_len:,} tokens out"
    if isinstance(workload, ConversationWorkload):
        return f"{rows} conversations of {bench_files.files().name_of(workload.path)}{out}"
    return f"{rows} rows of {bench_files.files().name_of(workload.path)}{out}"
