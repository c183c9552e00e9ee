"""A run's answers against the right ones: figures, confusion matrix, the worst rows first."""

from __future__ import annotations

import html

import duckdb
import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from core import evals, evaluation, tables
from core.errors import RunBusy, WorkbenchError
from core.evaluation import EvaluationSummary, Score
from core.references import Confusion
from core.run_spec import EvaluationSpec
from core.runs import Run
from pages.parts.charts import counted, duration, metric_cells
from pages.parts.markdown import plain_text

ASK_ROWS = 50_000  # more are not scored before somebody says so: it takes a while
_PAGE_ROWS = 50
_CELL_CHARACTERS = 2_000
_LABEL_CHARACTERS = 24
# the accent, on whatever the background is
_SHADES = [[0, "rgba(23, 138, 126, 0.03)"], [1, "rgba(23, 138, 126, 0.7)"]]
_TEXT = {"light": "#1B2430", "dark": "#E4E9ED"}  # the themes' own; a chart's would be grey
_OTHER = "other"


@st.fragment
def draw(run: Run) -> None:
    """The evaluation of a run at rest; before a reference column is named, the way to name one."""
    spec = run.spec.evaluation
    if spec is None:
        with st.expander("Compare the answers with the right ones", icon=":material/fact_check:"):
            _choice(run, None)
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.subheader("Evaluation", anchor=False, width="stretch")
        with st.popover("Reference column", icon=":material/tune:"):
            _choice(run, spec)
    try:
        with run.connect() as connection:
            summary = _summary(run, connection, spec)
            if summary is not None:
                _figures(summary)
                if summary.confusion is not None:
                    _labels(summary.confusion, key=_key(run, "confusion"))
                if summary.scores:
                    _worst(run, connection, summary.scores)
    except RunBusy as error:
        st.info(plain_text(str(error)))
    except WorkbenchError as error:
        st.error(plain_text(str(error)))


def _key(run: Run, name: str) -> str:
    return f"evaluation:{run.run_id}:{name}"


def _choice(run: Run, spec: EvaluationSpec | None) -> None:
    """Name the column and the tolerance."""
    columns = run.spec.input.columns
    named = columns.index(spec.reference_column) if spec and spec.reference_column in columns else None
    with st.form(_key(run, "form"), border=False):
        column = st.selectbox(
            "Column with the right answers", columns, named, placeholder="Choose a column",
            key=_key(run, "column"),
        )  # fmt: skip
        tolerance = st.number_input(
            "Tolerance for numbers", 0.0, value=spec.tolerance if spec else 1e-6, format="%g",
            help="Absolute: 0.5 takes 41.5 to 42.5 for 42.", key=_key(run, "tolerance"),
        )  # fmt: skip
        if st.form_submit_button("Compare", type="primary") and column is not None:
            run.update(evaluation=EvaluationSpec(reference_column=column, tolerance=tolerance))
            st.rerun()


def _summary(
    run: Run, connection: duckdb.DuckDBPyConnection, spec: EvaluationSpec
) -> EvaluationSummary | None:
    """The summary kept, or made now; None while somebody has yet to say that it shall be made."""
    summary = evaluation.kept(connection, spec)
    if summary is not None:
        return summary
    columns = tables.info(connection).columns
    place = st.empty()
    rows = run.spec.input.rows
    if rows > ASK_ROWS:
        seconds = evaluation.estimate_s(connection, spec, columns)
        label = f"Score the answers to {counted(rows, 'row')}"
        if not place.button(label, key=_key(run, "score"), help=f"Takes about {duration(seconds)}."):
            return None
    bar = place.progress(0.0, "Scoring the answers")
    summary = evaluation.evaluate(
        connection,
        spec,
        columns,
        on_progress=lambda done, total: bar.progress(
            done / total, f"Scoring the answers: {done:,} of {total:,}"
        ),
    )
    place.empty()
    return summary


# -- the figures --------------------------------------------------------------------


def _figures(summary: EvaluationSummary) -> None:
    left_out = {
        "failed": summary.errors,
        "skipped": summary.skipped,
        "without a reference": summary.without_reference,
        "without an answer yet": summary.unanswered,
    }
    parts = [f"{counted(summary.scored, 'answer')} scored against {summary.source.reference_column}"]
    parts += [f"{number:,} {what}" for what, number in left_out.items() if number]
    st.caption(plain_text(" · ".join(parts)))
    if not summary.scores:
        st.info("No row has both an answer and a reference.")
        return
    for cell, score in zip(metric_cells(len(summary.scores), 160), summary.scores, strict=True):
        metric = evals.METRICS[score.metric]
        cell.metric(metric.title, f"{score.mean:.1%}", help=metric.help)
        cell.caption(_interval(score))


def _interval(score: Score) -> str:
    rows = f"n = {score.n:,}" + (", a sample" if score.sampled else "")
    if score.low == score.high:
        return f"all alike, no interval  \n{rows}"
    return f"95%: {score.low:.1%} to {score.high:.1%}  \n{rows}"


# -- labels -------------------------------------------------------------------------


def _labels(confusion: Confusion, key: str) -> None:
    matrix, by_label = st.columns([11, 9])
    with matrix:
        st.caption(f"Accuracy {confusion.accuracy:.1%} · macro F1 {confusion.macro_f1:.3f}")
        theme = st.context.theme.type or "light"
        st.plotly_chart(confusion_chart(confusion, _TEXT[theme]), key=key, config={"displayModeBar": False})
    frame = pd.DataFrame(
        [
            (score.label, score.precision, score.recall, score.f1, score.support)
            for score in confusion.scores()
        ],
        columns=["Label", "Precision", "Recall", "F1", "Rows"],
    )
    share = st.column_config.NumberColumn(format="%.3f", width=68)
    rows = st.column_config.NumberColumn(format="localized", width=64)
    by_label.caption("Of each label")
    by_label.dataframe(
        frame, hide_index=True, column_config={"Precision": share, "Recall": share, "F1": share, "Rows": rows}
    )


def confusion_chart(confusion: Confusion, text_color: str) -> go.Figure:
    """Rows are references, columns answers, shaded by the share of the row.

    Placed by number and named apart: Plotly would take the labels "1" and "2" for numbers.
    """
    rows, columns = len(confusion.labels), len(confusion.labels) + 1
    names = [*map(_label, confusion.labels), f"<i>{_OTHER}</i>"]
    shares = [[count / sum(row) for count in row] for row in confusion.counts]
    hover = [
        [f"{names[i]} answered as {names[j]}: {counted(count, 'row')}, {share:.1%}"
         for j, (count, share) in enumerate(zip(confusion.counts[i], shares[i], strict=True))]
        for i in range(rows)
    ]  # fmt: skip
    cells = [(i, j) for i in range(rows) for j in range(columns) if confusion.counts[i][j]]
    figure = go.Figure(
        [
            go.Heatmap(
                z=shares, zmin=0, zmax=1, colorscale=_SHADES, showscale=False, xgap=2, ygap=2,
                text=hover, hovertemplate="%{text}<extra></extra>",
            ),
            # a trace of its own: a heatmap chooses its text's colour as if the page were white
            go.Scatter(
                x=[j for _i, j in cells], y=[i for i, _j in cells], mode="text", hoverinfo="skip",
                textfont={"color": text_color}, text=[f"{confusion.counts[i][j]:,}" for i, j in cells],
            ),
        ]
    )  # fmt: skip
    figure.update_layout(
        height=110 + 34 * rows, margin={"l": 10, "r": 10, "t": 10, "b": 10}, showlegend=False
    )
    figure.update_xaxes(
        title="Answer", tickvals=list(range(columns)), ticktext=names, range=[-0.5, columns - 0.5],
        showgrid=False, zeroline=False, automargin=True,
    )  # fmt: skip
    return figure.update_yaxes(
        title="Reference", tickvals=list(range(rows)), ticktext=names[:-1], range=[rows - 0.5, -0.5],
        showgrid=False, zeroline=False, automargin=True,
    )  # fmt: skip


def _label(text: str) -> str:
    """Letter by letter: Plotly reads some HTML."""
    line = " ".join(text.split())
    return html.escape(line if len(line) <= _LABEL_CHARACTERS else f"{line[: _LABEL_CHARACTERS - 1]}…")


# -- the worst rows -----------------------------------------------------------------


def _worst(run: Run, connection: duckdb.DuckDBPyConnection, scores: tuple[Score, ...]) -> None:
    rows = {score.metric: score.n for score in scores}
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption("The worst rows first", width="stretch")
        metric = st.selectbox(
            "By", list(rows), format_func=lambda name: evals.METRICS[name].title, key=_key(run, "metric"),
            label_visibility="collapsed", width=200,
        )  # fmt: skip
    table = st.container()
    pages, page = -(-rows[metric] // _PAGE_ROWS), 1
    if pages > 1:
        with st.container(horizontal=True, horizontal_alignment="right"):
            page = st.pagination(pages, key=_key(run, f"page:{metric}"), max_visible_pages=5)
    found = evaluation.worst(connection, metric, _PAGE_ROWS, (page - 1) * _PAGE_ROWS)
    frame = pd.DataFrame(
        [
            (row.row + 1, row.score, row.answer[:_CELL_CHARACTERS], row.reference[:_CELL_CHARACTERS])
            for row in found
        ],
        columns=["Row", "Score", "Answer", "Reference"],
    )
    table.dataframe(
        frame,
        hide_index=True,
        key=_key(run, f"worst:{metric}:{page}"),
        column_config={
            "Row": st.column_config.NumberColumn(format="localized", width=70),
            "Score": st.column_config.NumberColumn(evals.METRICS[metric].title, format="%.3f", width=120),
            "Answer": st.column_config.TextColumn(width="medium"),
            "Reference": st.column_config.TextColumn(width="medium"),
        },
    )
