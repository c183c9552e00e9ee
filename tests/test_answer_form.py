"""The form for answers greys out what the loaded engine can't do, and lets what was asked be taken back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from core.run_spec import Instructions, OutputSpec
from core.settings import Settings
from core.types import EngineStatus
from pages.parts import session

HOME = Path(__file__).parents[1] / "Home.py"
STRUCTURES = "It holds no answer to a structure."


def open_batch(run_id: str) -> AppTest:
    app = AppTest.from_file(HOME, default_timeout=20).run()
    app.switch_page("pages/batch.py")
    app.query_params["run"] = run_id
    return app.run()


@pytest.fixture
def lacking(workspace: Settings, monkeypatch: pytest.MonkeyPatch) -> EngineStatus:
    """The scripted engine without structures, scores, log-probabilities and several answers."""
    runtime = session.runtime()
    runtime.load()
    runtime.wait_ready(20)
    status = runtime.status()
    cannot = {"structured_outputs": STRUCTURES, "score": "It scores nothing."}
    refused = {"n": "One at a time.", "logprobs": "It has none."}
    info = replace(status.info, cannot=cannot, cannot_params=refused)
    monkeypatch.setattr(runtime, "status", lambda: replace(status, info=info))
    return status


def stage(tmp_path: Path, instructions: Instructions | None = None) -> str:
    path = tmp_path / "table.csv"
    path.write_text("text\ngood film\n", encoding="utf-8")
    return session.jobs().stage(path, instructions=instructions).run_id


def test_what_the_engine_lacks_is_greyed_out_with_its_reason(lacking: EngineStatus, tmp_path: Path) -> None:
    run_id = stage(tmp_path)
    app = open_batch(run_id)
    key = f"answers-{run_id}"
    assert app.button_group(key=f"{key}:shape:kind").disabled
    assert STRUCTURES in [caption.value.replace("\\", "") for caption in app.caption]
    assert app.number_input(key=f"{key}:n").disabled
    assert app.number_input(key=f"{key}:n").help.replace("\\", "") == "One at a time."
    assert app.checkbox(key=f"{key}:logprobs").disabled
    assert not app.exception


def test_what_was_asked_of_another_engine_can_be_taken_back(lacking: EngineStatus, tmp_path: Path) -> None:
    asked = Instructions(
        template="{{ text }}",
        params={"structured_outputs": {"choice": ["yes", "no"]}, "n": 2, "logprobs": 0},
        output=OutputSpec(choice_probabilities=True, logprobs=True),
    )
    run_id = stage(tmp_path, asked)
    app = open_batch(run_id)
    key = f"answers-{run_id}"
    assert not app.button_group(key=f"{key}:shape:kind").disabled
    assert not app.checkbox(key=f"{key}:chances").disabled
    assert not app.number_input(key=f"{key}:n").disabled
    app.checkbox(key=f"{key}:logprobs").uncheck().run()
    assert app.checkbox(key=f"{key}:logprobs").disabled
    assert not app.exception
