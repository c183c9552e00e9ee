"""Merging adapters into the embedded model, by the real peft; the command line of adapters."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import psutil
import pytest
from safetensors import safe_open
from small_adapters import made_for_tests
from test_adapters import make_adapter, make_base
from typer.testing import CliRunner
from waiting import until

from core.adapters import merging
from core.adapters.merging import Merges
from core.adapters.registry import Adapters
from core.cli import adapters as cli_adapters
from core.errors import ModelError
from core.models.library import Library
from core.store import Store

ROOT = Path(__file__).parents[1]
Disk = namedtuple("Disk", "total used free")


@pytest.fixture(scope="module")
def made(embedded_model):
    return made_for_tests(embedded_model)


@pytest.fixture
def home(settings, embedded_model):
    """The workspace, with the embedded model in it."""
    (settings.models_dir / "SmolLM2-135M-Instruct").symlink_to(embedded_model)
    return settings


@pytest.fixture
def merges(home, store):
    merges = Merges(home, store)
    yield merges
    merges.close()


def left_over(settings):
    return [path for path in settings.models_dir.iterdir() if path.name.startswith(".")]


def test_the_merged_model_is_the_model_with_the_adapter_added(merges, home, store, made, embedded_model):
    import torch

    Adapters(home, store).add("pirate", made["pirate"])
    merge_id = merges.start("pirate", "Pirate-135M")
    view = merges.wait(merge_id, 120)
    assert (view.state, view.error) == ("done", "")
    assert view.path == home.models_dir / "Pirate-135M" and not left_over(home)
    config = json.loads((made["pirate"] / "adapter_config.json").read_text())
    with (
        safe_open(view.path / "model.safetensors", "pt") as merged,
        safe_open(embedded_model / "model.safetensors", "pt") as base,
        safe_open(made["pirate"] / "adapter_model.safetensors", "pt") as adapter,
    ):
        first, last = (f"model.layers.{layer}.mlp.down_proj" for layer in (0, 29))
        down, up = (adapter.get_tensor(f"base_model.model.{last}.lora_{half}.weight") for half in "AB")
        added = (config["lora_alpha"] / config["r"]) * (up.float() @ down.float())
        expected = base.get_tensor(f"{last}.weight").float() + added
        assert added.abs().max() > 0.01
        torch.testing.assert_close(
            merged.get_tensor(f"{last}.weight").float(), expected, atol=0.01, rtol=0.01
        )
        assert torch.equal(merged.get_tensor(f"{first}.weight"), base.get_tensor(f"{first}.weight"))
        assert merged.get_tensor(f"{last}.weight").dtype is torch.bfloat16
    found = Library(home, store).find("Pirate-135M")
    assert found.problem is None and found.path == view.path
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (view.path / name).read_bytes() == (embedded_model / name).read_bytes()
    assert "SmolLM2-135M-Instruct with the LoRA adapter pirate" in (view.path / "README.md").read_text()
    with pytest.raises(ModelError, match="is a model 'pirate-135M' already"):
        merges.start("pirate", "pirate-135M")


def test_a_merge_that_is_cancelled_leaves_nothing(merges, home, store, made):
    Adapters(home, store).add("pirate", made["pirate"])
    merge_id = merges.start("pirate", "Pirate")
    process = merges._merges[merge_id].process
    merges.cancel(merge_id)
    view = merges.wait(merge_id, 10)
    assert view.state == "cancelled" and process.poll() is not None
    assert not left_over(home) and not (home.models_dir / "Pirate").exists()
    merges.forget(merge_id)
    assert merges.list() == ()


def test_a_merge_whose_workbench_was_killed_ends_and_is_swept(merges, home, store, made):
    Adapters(home, store).add("pirate", made["pirate"])
    code = (
        "import time; from core.settings import load_settings; from core.store import Store; "
        "from core.adapters.merging import Merges; settings = load_settings(); "
        "merges = Merges(settings, Store(settings.catalogue_path)); "
        "merges.start('pirate', 'Pirate'); print('begun', flush=True); time.sleep(60)"
    )
    workbench = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT, text=True)
    assert workbench.stdout.readline() == "begun\n"
    (worker,) = psutil.Process(workbench.pid).children()
    workbench.kill()
    workbench.wait()
    workbench.stdout.close()
    until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE, timeout_s=10)
    assert len(left_over(home)) == 1
    merge_id = merges.start("pirate", "Pirate")
    assert len(left_over(home)) == 1  # its own
    merges.cancel(merge_id)
    merges.wait(merge_id, 10)
    assert not left_over(home)


def test_what_can_not_be_merged_is_said_before(merges, home, store, made, tmp_path, monkeypatch):
    adapters = Adapters(home, store)
    adapters.add("pirate", made["pirate"])
    adapters.add("tiny", make_adapter(tmp_path / "tiny", base="owner/Tiny"))
    for name in ("../up", "", "a/b", ".hidden", "embedded", "x" * 97):
        with pytest.raises(ModelError, match="can't be a model's name"):
            merges.start("pirate", name)
    with pytest.raises(ModelError, match="no adapter 'nobody'"):
        merges.start("nobody", "New")
    with pytest.raises(ModelError, match="owner/Tiny is not on this machine"):
        merges.start("tiny", "New")
    with pytest.raises(ModelError, match="does not fit embedded"):
        merges.start("tiny", "New", base="embedded")
    make_base(home.models_dir / "Tiny", quantization_config={"quant_method": "awq"})
    with pytest.raises(ModelError, match="is quantized"):
        merges.start("tiny", "New")
    with monkeypatch.context() as patch:
        patch.setattr(merging.shutil, "disk_usage", lambda _path: Disk(10**9, 10**9, 10**8))
        with pytest.raises(ModelError, match=r"needs 0\.5 GB of disk, and 0\.1 GB are free"):
            merges.start("pirate", "New")
    with monkeypatch.context() as patch:
        memory = psutil.virtual_memory()._replace(available=5 * 10**8)
        patch.setattr(merging.psutil, "virtual_memory", lambda: memory)
        with pytest.raises(ModelError, match=r"about 1\.4 GB of memory, and 0\.5 GB are free"):
            merges.start("pirate", "New")
    assert not left_over(home) and merges.list() == ()


def test_a_merge_that_fails_says_why_and_leaves_nothing(merges, home, store, made, monkeypatch):
    Adapters(home, store).add("pirate", made["pirate"])
    monkeypatch.setattr(merging, "find_base", lambda name, settings: made["pirate"].parent / "broken")
    broken = made["pirate"].parent / "broken"
    if not broken.exists():
        make_base(broken, model_type="no such model")
    monkeypatch.setattr(merging.checks, "check_base", lambda *_arguments: None)
    view = merges.wait(merges.start("pirate", "Broken"), 60)
    assert view.state == "failed" and "no such model" in view.error
    assert not left_over(home) and not (home.models_dir / "Broken").exists()


# -- the command line -------------------------------------------------------------


def run(*arguments):
    return CliRunner().invoke(cli_adapters.app, list(arguments))


def test_the_command_line_registers_lists_and_forgets(home, made):
    added = run("add", "pirate", str(made["pirate"]))
    assert added.exit_code == 0 and "pirate: rank 8, it fits HuggingFaceTB/SmolLM2" in added.stderr
    (line,) = run("list").stdout.splitlines()
    assert "pirate" in line and "rank   8" in line
    (told,) = map(json.loads, run("list", "--json").stdout.splitlines())
    assert (told["name"], told["rank"], told["problem"]) == ("pirate", 8, None)
    assert run("delete", "pirate").exit_code == 0
    assert run("list").stdout == ""
    refused = run("add", "x", "/no/such/folder")
    assert isinstance(refused.exception, ModelError) and "no folder" in str(refused.exception)


def test_the_command_line_can_be_interrupted_while_it_merges(home, store, made):
    Adapters(home, store).add("pirate", made["pirate"])
    command = [sys.executable, "-m", "core", "models", "adapters", "merge", "pirate", "Pirate"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ
    )
    assert process.stderr.readline()  # it has begun
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130 and "nothing is left of it" in err and out == ""
    assert not left_over(home)
    Store(home.catalogue_path).close()
