"""Which processors compute: on machines made of files, and what vLLM is told of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.engines import cpu_threads, vllm_start
from core.engines.vllm_settings import DeviceFacts
from core.types import EngineSpec


@pytest.fixture
def two_nodes(tmp_path: Path) -> Path:
    """Two memory nodes of two cores with two threads each: as Linux numbers them, second threads last."""
    for cpu in range(8):
        core = cpu % 4
        topology = tmp_path / "cpu" / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "physical_package_id").write_text(f"{core // 2}\n")
        (topology / "core_id").write_text(f"{core % 2}\n")
        (topology.parent / f"node{core // 2}").mkdir()
    return tmp_path


EVERY = set(range(8))


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (1, (0,)),
        (2, (0, 1)),
        (3, (0, 1, 2)),
        (4, (0, 1, 2, 3)),
        (6, (0, 1, 2, 3, 4, 5)),
        (8, tuple(range(8))),
    ],
)
def test_cores_come_before_second_threads_and_the_first_node_before_others(two_nodes, wanted, found):
    assert cpu_threads.processors(wanted, EVERY, two_nodes) == found


def test_only_processors_that_may_be_used_are_taken(two_nodes):
    assert cpu_threads.processors(2, {2, 3, 6, 7}, two_nodes) == (2, 3)
    assert cpu_threads.processors(2, {0, 4}, two_nodes) == (0, 4)


def test_vllm_chooses_unless_a_control_group_gives_less_time(two_nodes):
    assert cpu_threads.processors(None, EVERY, two_nodes, share=8.0) == ()
    assert cpu_threads.processors(None, EVERY, two_nodes, share=2.0) == ()  # as many as its node has cores
    assert cpu_threads.processors(None, EVERY, two_nodes, share=1.5) == (0,)
    assert cpu_threads.processors(None, EVERY, two_nodes, share=0.5) == (0,)


@pytest.mark.parametrize(
    ("line", "files", "share"),
    [
        ("0::/box", {"box/cpu.max": "250000 100000\n", "cpu.max": "max 100000\n"}, 2.5),
        ("0::/box/inner", {"box/cpu.max": "100000 100000", "box/inner/cpu.max": "400000 100000"}, 1.0),
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("4:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3.0),
        ("4:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("7:memory:/box", {"cpu/box/cpu.cfs_quota_us": "100000"}, None),
    ],
)
def test_a_control_group_s_share_of_time_is_read(tmp_path, line, files, share):
    for name, text in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "membership").write_text(line + "\n")
    assert cpu_threads.time_share(tmp_path / "groups", tmp_path / "membership") == share


def test_without_control_groups_all_time_may_be_used(tmp_path):
    assert cpu_threads.time_share(tmp_path, tmp_path / "missing") is None


def test_vllm_is_told_which_processors_and_only_on_a_cpu():
    def told(kind: str, *processors: int) -> str | None:
        device = DeviceFacts(kind=kind, name="", memory_bytes=1, processors=processors)
        return vllm_start.child_environment(device).get(cpu_threads.BIND)

    assert told("cpu", 0, 2) == "0,2"
    assert told("cpu") is None
    assert told("cuda", 0, 2) is None


def test_the_user_s_own_binding_holds_unless_threads_are_asked_for(monkeypatch):
    monkeypatch.setenv(cpu_threads.BIND, "1")
    monkeypatch.setattr(vllm_start, "processors", lambda wanted: tuple(range(wanted or 3)))
    assert vllm_start._bound(EngineSpec()) == ()
    assert vllm_start._bound(EngineSpec(cpu_threads=2)) == (0, 1)
    monkeypatch.delenv(cpu_threads.BIND)
    assert vllm_start._bound(EngineSpec()) == (0, 1, 2)
    assert vllm_start._bound(EngineSpec(tensor_parallel_size=2)) == ()
