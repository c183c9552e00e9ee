"""llama.cpp, built from source for `make llamacpp` and `make test`. Standard library only."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from core.diagnosis import explain_build_failure
from core.steps import ROOT, SetupError, call, say, step

REQUIREMENTS = ROOT / "requirements-llamacpp.txt"
_READY = "import importlib.metadata as m, llama_cpp as l; print(m.version('llama-cpp-python'), l.{})"


def has_compiler() -> bool:
    """Whether C and C++ can be compiled here, as far as names tell."""
    wanted = ((os.environ.get("CC"), "cc"), (os.environ.get("CXX"), "c++"))
    return all(shutil.which((given or usual).split()[0]) for given, usual in wanted)


def is_ready(python: Path, *, for_gpu: bool = False) -> bool:
    """Whether the pinned one is installed and starts: one built for another processor dies of it."""
    pinned = re.search(r"^llama-cpp-python==(\S+)", REQUIREMENTS.read_text(), re.MULTILINE)
    question = _READY.format("llama_supports_gpu_offload()" if for_gpu else "llama_backend_init() is None")
    done = subprocess.run([python, "-c", question], capture_output=True, text=True, check=False)
    return done.returncode == 0 and done.stdout.split() == [pinned[1], "True"]


def ensure(python: Path, device: str) -> None:
    """Build and install llama.cpp; for the GPU where CUDA's compiler is there. Raises SetupError."""
    for_gpu = device == "gpu" and shutil.which("nvcc") is not None
    if is_ready(python, for_gpu=for_gpu):
        say("llama.cpp: up to date")
        return
    if not has_compiler():
        raise SetupError(
            "llama.cpp is built from source, and there is no C++ compiler.",
            "Install one: apt install build-essential (Debian, Ubuntu), or dnf install gcc-c++ (Fedora).",
        )
    pip = [str(python), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    command = [*pip, "-r", str(REQUIREMENTS), "-c", str(ROOT / "requirements-base.txt")]
    if for_gpu:
        os.environ.setdefault("CMAKE_ARGS", "-DGGML_CUDA=on")
    where = "the GPU" if for_gpu else "this processor"
    for again in (False, True):
        # what pip kept may have been built elsewhere: the second try builds here
        fresh = ["--force-reinstall", "--no-cache-dir", "--no-deps"] if for_gpu or again else []
        with step(f"Building llama.cpp for {where} (some minutes, once)"):
            call([*command, *fresh], failure="llama.cpp could not be built", explain=explain_build_failure)
        if is_ready(python, for_gpu=for_gpu):
            return
    raise SetupError("llama.cpp was built and does not start here.", "build/setup.log holds what was built.")


def ensure_for_tests(python: Path) -> None:
    """For the processor alone, which builds in minutes; without it, its own tests are skipped."""
    try:
        ensure(python, "cpu")
    except SetupError as error:
        say(f"The tests of llama.cpp will be skipped: {error.message}")
