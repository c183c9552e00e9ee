"""Which processors an engine on a CPU computes with.

One thread for each core, all on one memory node: two threads of a core share its arithmetic and its way to
memory, and only get in each other's way. vLLM does that by itself, but takes no notice of a control
group's share of time (`docker run --cpus 4`): sixteen threads that may use four cores' time wait for each
other at the end of every layer. Figures: docs/performance.md.
"""

from __future__ import annotations

import os
from pathlib import Path

BIND = "VLLM_CPU_OMP_THREADS_BIND"
"""vLLM's variable for it. Set by the user, it holds unless a number of threads is asked for."""
_SYSTEM = Path("/sys/devices/system")
_GROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def processors(
    wanted: int | None,
    affinity: set[int] | None = None,
    system: Path = _SYSTEM,
    share: float | None = None,
) -> tuple[int, ...]:
    """The logical processors of `wanted` threads; empty where vLLM's own choice is right.

    `affinity`: those that may be used, `share`: how many processors' time may be; None: as it is here.
    """
    affinity = allowed() if affinity is None else affinity
    share = time_share() if share is None else share
    ordered, own = _in_order(affinity, system)
    if wanted is None:
        if share is None or share >= own:
            return ()
        wanted = max(1, int(share))
    return tuple(sorted(ordered[:wanted]))


def default_threads() -> int:
    """How many threads an engine gets that is told nothing: the cores of a memory node that may be used."""
    return len(processors(None)) or _in_order(allowed(), _SYSTEM)[1]


def allowed() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def time_share(root: Path = _GROUPS, membership: Path = _MEMBERSHIP) -> float | None:
    """How many processors' time the tightest control group of this process allows; None without a limit.

    `root` is where control groups are mounted, `membership` lists this process's own.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # not Linux, or no control groups
        return None
    shares = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        inner = Path(path.strip("/"))
        for part in (inner, *inner.parents):
            if controllers == "":
                shares.append(_quota(root / part / "cpu.max"))
            elif "cpu" in controllers.split(","):
                folder = root / "cpu" / part
                shares.append(_quota(folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us"))
    return min((share for share in shares if share is not None), default=None)


def _quota(*files: Path) -> float | None:
    """Of "QUOTA PERIOD", in one file or two; a quota of "max" or -1 is none."""
    try:
        quota, period = " ".join(file.read_text() for file in files).split()
    except (OSError, ValueError):
        return None
    return int(quota) / int(period) if quota.isdigit() else None


def _in_order(affinity: set[int], system: Path) -> tuple[list[int], int]:
    """The processors as threads should take them, and how many cores the first one's memory node has.

    The cores of the first memory node, then those of the others, then second threads of the cores.
    """
    seen: dict[tuple[int, int], int] = {}
    ranked = []
    for cpu in sorted(affinity):
        topology = system / "cpu" / f"cpu{cpu}" / "topology"
        package, core = _number(topology / "physical_package_id"), _number(topology / "core_id")
        place = (-1, cpu) if core is None else (package or 0, core)
        turn = seen[place] = seen.get(place, -1) + 1
        ranked.append((turn, _node(system / "cpu" / f"cpu{cpu}"), cpu))
    ranked.sort()
    first = [entry for entry in ranked if entry[:2] == ranked[0][:2]]
    return [cpu for _turn, _node_number, cpu in ranked], len(first)


def _node(folder: Path) -> int:
    nodes = [int(path.name[4:]) for path in folder.glob("node[0-9]*")]
    return min(nodes, default=0)


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None
