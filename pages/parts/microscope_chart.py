"""The microscope's picture: bars of tokens, before and after the sampling parameters. Pure."""

from __future__ import annotations

import html
from collections.abc import Sequence

import plotly.graph_objects as go

from core.microscope import Row
from core.types import TokenPiece
from pages.parts.run_charts import ACCENT

_OWN = "rgba(125, 140, 155, 0.38)"  # pale on the light and on the dark background
_MODEL, _NOW = "The model's own", "With these parameters"
_SIGNS = str.maketrans({"\n": "⏎", "\r": "␍", "\t": "⇥"})
_LABEL_CHARACTERS = 24
_ROW_PIXELS = 24


def bars(
    rows: Sequence[Row],
    pieces: Sequence[TokenPiece],
    rest: tuple[int, float, float],
    written: int | None = None,
) -> go.Figure:
    """Horizontal bars, the likeliest token on top: pale the model's own probability, strong the chance now.

    `rest`: number, own probability and chance of all tokens that have no bar of their own.
    """
    count, rest_own, rest_chance = rest
    names = [_name(piece, piece.token_id == written) for piece in pieces]
    own, chance = [row.own for row in rows], [row.chance for row in rows]
    ends = [_end(row) for row in rows]
    hover = [f"{name}, token {row.token_id}" for name, row in zip(names, rows, strict=True)]
    if count:
        names.append(f"<i>{count:,} others</i>")
        own.append(rest_own)
        chance.append(rest_chance)
        ends.append(f"{percent(rest_own)} → {percent(rest_chance)}")
        hover.append(f"{count:,} other tokens together")
    places = list(range(len(names)))
    pale = go.Bar(
        x=own, y=places, orientation="h", width=0.82, marker={"color": _OWN}, name=_MODEL,
        customdata=hover, hovertemplate="%{customdata}: own probability %{x:.2%}<extra></extra>",
    )  # fmt: skip
    strong = go.Bar(
        x=chance, y=places, orientation="h", width=0.42, marker={"color": ACCENT}, name=_NOW,
        customdata=hover, hovertemplate="%{customdata}: chance now %{x:.2%}<extra></extra>",
    )  # fmt: skip
    longest = [max(pair) for pair in zip(own, chance, strict=True)]
    texts = go.Bar(
        x=longest, y=places, orientation="h", width=0.82, marker={"color": "rgba(0, 0, 0, 0)"}, text=ends,
        textposition="outside", cliponaxis=False, hoverinfo="skip", showlegend=False,
    )  # fmt: skip
    figure = go.Figure([pale, strong, texts])
    figure.update_layout(
        barmode="overlay",
        height=90 + _ROW_PIXELS * len(names),
        margin={"l": 10, "r": 10, "t": 34, "b": 10},
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "itemclick": False},
        uirevision="same",
    )
    figure.update_xaxes(
        tickformat=".0%", range=[0, max(longest, default=1) * 1.45], nticks=6, tickangle=0, rangemode="tozero"
    )
    return figure.update_yaxes(
        tickvals=places, ticktext=names, range=[len(names) - 0.5, -0.5], automargin=True, showgrid=False
    )


def visible(piece: TokenPiece) -> str:
    """A token with its white space as signs: " the" as ␣the."""
    text = piece.text
    inner = text.strip(" ")
    spaces = len(text) - len(text.lstrip(" "))
    shown = "␣" * spaces + inner + "␣" * (len(text) - spaces - len(inner))
    shown = "".join(sign if sign.isprintable() else "�" for sign in shown.translate(_SIGNS))
    return shown or "(no text)"


def percent(share: float) -> str:
    """62%, 4.8%, 0.31%, <0.01%, and never 0% or 100% for what is not quite that."""
    if share <= 0:
        return "0%"
    if share < 0.0001:
        return "<0.01%"
    if 0.9995 <= share < 1:
        return ">99.9%"
    return f"{share:.0%}" if share >= 0.995 else f"{share:.1%}" if share >= 0.01 else f"{share:.2%}"


def _end(row: Row) -> str:
    if row.cut_by:
        return f"{percent(row.own)} → <b>cut by {row.cut_by}</b>"
    return f"{percent(row.own)} → {percent(row.chance)}"


def _name(piece: TokenPiece, is_written: bool) -> str:
    """The token as Plotly's labels take it: they read some HTML."""
    text = visible(piece)
    text = text if len(text) <= _LABEL_CHARACTERS else f"{text[: _LABEL_CHARACTERS - 1]}…"
    shown = html.escape(text)
    if piece.special:
        shown = f"<i>{shown}</i>"
    return f"<b>▸ {shown}</b>" if is_written else shown
