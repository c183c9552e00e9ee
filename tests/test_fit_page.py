"""The fit card, run as Streamlit runs it; facts of a hub's models by ranges; `models fit`."""

from __future__ import annotations

import html
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save
from streamlit.testing.v1 import AppTest
from typer.testing import CliRunner

from core import machine
from core.cli import app as cli
from core.errors import ModelError
from core.hub import repositories
from core.hub.repositories import RepoFile
from core.machine import Gpu
from core.models import fit, remote_facts

CONFIGS = Path(__file__).parent / "model_configs"
GIB = 1 << 30


def card(name: str, options: dict[str, object]) -> AppTest:
    """A page with the card of a public model."""

    def page(name: str, options: dict[str, object]) -> None:
        import json
        from pathlib import Path

        import streamlit as st

        from core.models import facts
        from core.types import EngineSpec
        from pages.parts import models_fit

        known = facts.from_config(json.loads(Path(name).read_text()))
        st.caption(f"fits={models_fit.fit_card(known, EngineSpec(**options))}")

    app = AppTest.from_function(page, args=(str(CONFIGS / f"{name}.json"), options), default_timeout=20)
    app.run()
    assert not app.exception
    return app


def words(app: AppTest) -> str:
    return html.unescape("\n".join(one.value for one in (*app.markdown, *app.caption))).replace("\\", "")


@pytest.fixture
def gpus(workspace, monkeypatch):
    """A machine with so many GPUs of so many GiB."""

    def have(count: int, gib: int) -> None:
        gpu = Gpu("Some GPU", gib * GIB, gib * GIB)
        monkeypatch.setattr(machine, "_gpus", lambda: (gpu,) * count)

    return have


def test_a_model_that_fits(gpus) -> None:
    gpus(1, 80)
    app = card("llama-3.1-8b", {})
    assert "It fits, with" in words(app) and "Weights: 15.0 GiB" in words(app)
    assert "of KV cache" in words(app) and "fits=True" in words(app)
    assert "What would fit" not in words(app)


def test_a_model_that_fits_with_less_context_says_what_gives_more(gpus) -> None:
    gpus(1, 24)
    text = words(card("llama-3.1-8b", {}))
    assert "It fits with a context of" in text and "For a longer context" in text
    assert "`kv_cache_dtype=fp8`" in text and "fits=True" in text


def test_a_model_that_does_not_fit_says_what_is_missing_and_what_would(gpus) -> None:
    gpus(4, 80)
    text = words(card("llama-3.3-70b", {}))
    assert "It does not fit: about" in text and "What would fit" in text
    assert "`tensor_parallel_size=2`" in text and "fits=False" in text


def test_a_remote_model_and_a_scripted_one_take_nothing(gpus) -> None:
    gpus(1, 24)
    text = words(card("deepseek-v3", {"engine": "openai", "model": "big", "base_url": "http://gpu/v1"}))
    assert "runs on another machine" in text and "Weights" not in text
    assert "take no memory" in words(card("deepseek-v3", {"engine": "scripted"}))


class Repository:
    """Files by ranges, as `repositories.read_range` gives them, and how much was asked for."""

    def __init__(self, **files: bytes) -> None:
        self.files = {name.replace("__", "."): data for name, data in files.items()}
        self.asked = 0

    def listing(self) -> tuple[RepoFile, ...]:
        return tuple(RepoFile(path=name, size_bytes=len(data)) for name, data in self.files.items())

    def read_range(self, hub, repo, revision, file, start, end, *, settings=None) -> bytes:
        assert 0 <= start < end <= len(self.files[file]), "a range outside of the file"
        self.asked += end - start
        return self.files[file][start:end]


def remote(monkeypatch, **files: bytes) -> tuple[Repository, list[RepoFile]]:
    repository = Repository(**files)
    monkeypatch.setattr(repositories, "read_range", repository.read_range)
    return repository, list(repository.listing())


def test_a_model_on_a_hub_is_known_by_small_ranges(monkeypatch) -> None:
    config = (CONFIGS / "smollm2-135m.json").read_bytes()
    weights = save({"a": np.zeros((1000, 1000), np.float16)})
    repository, files = remote(monkeypatch, config__json=config, model__safetensors=weights)
    known = remote_facts.read("huggingface", "a/b", "main", files)
    assert (known.layers, known.parameters, known.weights_bytes) == (30, 1_000_000, 2_000_000)
    assert repository.asked < 3000


def test_of_many_files_the_sizes_do(monkeypatch) -> None:
    config = (CONFIGS / "gemma-2-9b.json").read_bytes()  # kept in float32, loaded in half of that
    shards = {f"model{number}__safetensors": b"x" * 4000 for number in range(5)}
    repository, files = remote(monkeypatch, config__json=config, **shards)
    known = remote_facts.read("modelscope", "a/b", None, files)
    assert known.weights_bytes == 20_000 and repository.asked <= len(config)
    device = fit.Device(kind="cuda", name="GPU", memory_bytes=24 * GIB)
    assert fit.estimate(known, device, fit.EngineSpec()).weights_bytes == 10_000


def test_a_repository_without_a_config_says_so(monkeypatch) -> None:
    _, files = remote(monkeypatch, README__md=b"hello")
    with pytest.raises(ModelError, match="no config"):
        remote_facts.read("huggingface", "a/b", None, files)


def run(*arguments: str):
    return CliRunner().invoke(cli.app, ["models", "fit", *arguments])


def test_the_command_says_whether_it_fits(settings) -> None:
    config = ("--config", str(CONFIGS / "llama-3.1-8b.json"))
    shown = run(*config, "--memory", "24GiB")
    assert shown.exit_code == 0
    assert "8.03 billion parameters" in shown.output and "shorter: It fits with a context" in shown.output
    assert "kv_cache_dtype=fp8" in shown.output
    short = json.loads(run(*config, "--memory", "24 GB", "--max-model-len", "4096", "--json").output)
    assert (short["verdict"], short["context_tokens"], short["options"]) == ("fits", 4096, [])
    large = run(*config, "--memory", "8g", "--gpus", "0", "--engine-arg", "dtype=float32")
    assert "too large" in large.output and "dtype=bfloat16" not in large.output
    assert fit.NOTHING_HELPS in large.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Give a model"), (("x", "--config", "y"), "Give a model"),
        (("--config", "nowhere"), "can't be read"), (("nothing-there",), "no model"),
        (("--config", str(CONFIGS / "phi-4.json"), "--memory", "lots"), "no memory size"),
        (("--config", str(CONFIGS / "phi-4.json"), "--engine-arg", "dtyp=x"), "dtyp"),
    ],
)  # fmt: skip
def test_the_command_refuses_what_it_cannot_tell(settings, arguments: tuple[str, ...], said: str) -> None:
    shown = run(*arguments)
    assert shown.exit_code != 0
    assert said in str(shown.exception)
