"""Whether a model fits: a bar of what it takes, how long a context, how many requests, what would help."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
import streamlit as st

from core import machine
from core.engines import choice
from core.errors import WorkbenchError
from core.hub.repositories import RepoFile
from core.models import fit, fit_compare, remote_facts
from core.models.facts import ModelFacts
from core.models.fit import Fit
from core.models.library import LibraryModel
from core.types import EngineSpec, Hub
from pages.parts import session
from pages.parts.charts import gibibytes
from pages.parts.markdown import plain_text

_KEPT = "models_fit:estimates"
# as Markdown names them, and as they are drawn: readable on the light and on the dark background
_COLOURS = {
    "Weights": ("blue", "#3B82C4"),
    "KV cache": ("green", "#2E9E6B"),
    "Overhead": ("orange", "#C77A1E"),
    "Free": ("gray", "rgba(128,128,128,0.25)"),
}
_SIGNS = {
    "fits": ":green[:material/check_circle:]",
    "shorter": ":orange[:material/adjust:]",
    "too large": ":red[:material/cancel:]",
    "elsewhere": ":material/cloud:",
}
_MOST_OPTIONS = 4


def fit_card(
    model: LibraryModel | ModelFacts,
    spec: EngineSpec,
    use: Callable[[Mapping[str, Any]], None] | None = None,
) -> bool:
    """Draw it for a model of this machine; False when it doesn't seem to fit, to be loaded all the same.

    With `use`, settings that would fit have a button that passes them to it.
    """
    facts = model.facts if isinstance(model, LibraryModel) else model
    if spec.engine == "scripted":
        st.caption("Scripted answers take no memory.")
        return True
    if facts is None:
        st.caption("How much memory this model takes can't be told from its files.")
        return True
    status = session.runtime().status()
    here = fit.device_of(machine.describe(), status.info)
    estimate = fit.estimate(facts, here, spec)
    _card(estimate, fit.options(facts, here, spec), f"{spec.engine}:{spec.model}", use)
    loaded = status.spec if status.phase == "ready" else None
    kept: dict[str, Fit] = st.session_state.setdefault(_KEPT, {})
    if loaded is None or (loaded.engine, loaded.model) != (spec.engine, spec.model):
        kept[spec.model] = estimate
    elif status.info is not None:  # memory is another now: what was estimated before is better
        before = kept.get(spec.model)
        if before is None or before.spec != loaded:
            before = fit.estimate(facts, here, loaded)
        _differences(fit_compare.compare(before, status.info))
    return estimate.verdict != "too large"


def remote_fit(hub: Hub, repo: str, revision: str | None, files: Sequence[RepoFile]) -> None:
    """Draw it for a model that still lies on a hub. `files`: those that would be downloaded."""
    try:
        facts = _remote_facts(hub, repo, revision, tuple(files))
    except WorkbenchError as error:
        st.caption(f"Whether it fits can't be told yet. {plain_text(str(error))}")
        return
    name = "x.gguf" if facts.format == "gguf" else repo
    spec = EngineSpec(engine=choice.suggest(name), model=repo, hub=hub, revision=revision)
    here = fit.device_of(machine.describe(), session.runtime().status().info)
    _card(fit.estimate(facts, here, spec), fit.options(facts, here, spec), f"{hub}:{repo}")


@st.cache_data(ttl=600, max_entries=64, show_spinner="Reading the headers of its weights")
def _remote_facts(hub: Hub, repo: str, revision: str | None, files: tuple[RepoFile, ...]) -> ModelFacts:
    return remote_facts.read(hub, repo, revision, files, session.runtime().settings)


def _card(
    estimate: Fit,
    options: Sequence[fit.Option],
    key: str,
    use: Callable[[Mapping[str, Any]], None] | None = None,
) -> None:
    with st.container(border=True):
        st.markdown(f"{_SIGNS[estimate.verdict]} **{plain_text(estimate.advice)}**")
        if estimate.verdict == "elsewhere":
            return
        shown = _shares(estimate)
        words = ", ".join(f"{name} {gibibytes(size)}" for name, size in shown.items())
        st.plotly_chart(
            memory_bar(shown), key=f"models_fit:bar:{key}", config={"displayModeBar": False}, alt=words
        )
        _figures(estimate, shown)
        for note in estimate.notes:
            st.caption(plain_text(note))
        if options:
            st.markdown(
                "**What would fit**" if estimate.verdict == "too large" else "**For a longer context**"
            )
            for number, option in enumerate(options[:_MOST_OPTIONS]):
                with st.container(horizontal=True, vertical_alignment="center"):
                    st.markdown(_option_line(option), width="stretch")
                    if use is not None:
                        name = f"models_fit:use:{key}:{number}"
                        st.button("Use", key=name, type="tertiary", on_click=use, args=(option.changes,))
        elif estimate.verdict == "too large":
            st.caption(fit.NOTHING_HELPS)
        with st.expander("Where the figures come from"):
            _sources(estimate)


def _shares(estimate: Fit) -> dict[str, int]:
    """Bytes of one device by part, what is left included."""
    parts = {
        "Weights": estimate.weights_bytes,
        "KV cache": estimate.kv_cache_bytes,
        "Overhead": estimate.overhead_bytes,
    }
    free = estimate.device.memory_bytes - estimate.used_bytes
    parts |= {"Free": free} if free > 0 else {}
    return {name: size for name, size in parts.items() if size}


def memory_bar(parts: Mapping[str, int]) -> go.Figure:
    """One bar, a piece for each part."""
    pieces = [
        go.Bar(
            x=[size / 2**30],
            y=[""],
            orientation="h",
            name=name,
            marker={"color": _COLOURS[name][1]},
            hovertemplate=f"{name}: {gibibytes(size)}<extra></extra>",
        )
        for name, size in parts.items()
    ]
    return go.Figure(pieces).update_layout(
        barmode="stack",
        height=36,
        margin={"l": 0, "r": 0, "t": 4, "b": 4},
        showlegend=False,
        xaxis={"visible": False, "fixedrange": True, "range": [0, sum(parts.values()) / 2**30]},
        yaxis={"visible": False, "fixedrange": True},
    )


def _figures(estimate: Fit, shown: Mapping[str, int]) -> None:
    """Short lines instead of large figures: the card stands beside a form."""
    lines = [f":{_COLOURS[name][0]}[■] {name}: {gibibytes(size)}" for name, size in shown.items()]
    memory = gibibytes(estimate.device.memory_bytes)
    if "Free" in shown:
        lines[-1] += f" of {memory}"
    else:
        lines.append(f"Memory of one GPU: {memory}" if estimate.device.kind == "cuda" else f"Free: {memory}")
    if estimate.verdict != "too large":
        many = f"{estimate.full_length_requests:,.1f}".removesuffix(".0")
        noun = "request" if many == "1" else "requests"
        model = estimate.model_context_tokens
        of_model = f" of {model:,}" if estimate.largest_context < model else ""
        lines += [
            f"Longest context: {estimate.largest_context:,}{of_model} tokens",
            f"At once: {many} {noun} of {estimate.context_tokens:,}",
            f"Each token: {estimate.kv_bytes_per_token:,} bytes of KV cache",
        ]
    st.markdown("  \n".join(lines))


def _option_line(option: fit.Option) -> str:
    settings = " ".join(
        f"`{name}={'automatic' if value is None else value}`" for name, value in option.changes.items()
    )
    result = (
        f"{option.fit.context_tokens:,} tokens, {option.fit.full_length_requests:,.1f} such requests at once"
    )
    return f"- {plain_text(option.title.split(',')[0])} ({settings}): {result}"


def _sources(estimate: Fit) -> None:
    lines = ["Weights: the headers of its files, or the config's sizes, in the number format asked for."]
    lines += [f"{part.name}, {gibibytes(part.size_bytes)}: {part.source}" for part in estimate.overhead]
    lines.append("KV cache: what is left, in blocks as vLLM shares them among layers.")
    for line in lines:
        st.caption(plain_text(line))


def _differences(differences: Sequence[fit_compare.Difference]) -> None:
    """What was estimated before the load beside what the engine says now."""
    if not differences:
        return
    with st.container(border=True):
        st.markdown("**Estimated, and as loaded**")
        lines = [
            f"{each.part}: {_amount(each.estimated, each.unit)} estimated, "
            f"{_amount(each.reported, each.unit)} loaded, {100 * each.share:+.1f}%"
            for each in differences
        ]
        st.markdown("  \n".join(lines))


def _amount(value: int, unit: str) -> str:
    return gibibytes(value) if unit == "bytes" else f"{value:,} tokens"
