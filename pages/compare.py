"""Prompts under parameter sets: set up, look, judge, promote. `?x=ID` shows one comparison."""

from __future__ import annotations

from pages.parts import (
    compare_answers,
    compare_header,
    compare_microscope,
    compare_scores,
    compare_setup,
    compare_votes,
)

_TABS = {
    "answers": ("Answers", compare_answers.draw_matrix),
    "pair": ("Side by side", compare_answers.draw_pair),
    "scores": ("Scores", compare_scores.draw),
    "votes": ("Vote", compare_votes.draw),
    "microscope": ("Microscope", compare_microscope.draw),
}

view = compare_header.current()
compare_header.draw(view)
if view is None:
    compare_setup.draw()
else:
    chosen = compare_header.tabs(view, {name: title for name, (title, _draw) in _TABS.items()})
    _TABS[chosen][1](view)
