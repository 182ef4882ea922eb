"""The limits of cgroups, in trees as containers and service managers show them, and for real."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from multigrain import machine
from multigrain.machine import Cgroups, Cpus, Memory
from tests.cgroups import RealCgroup, real_cgroup

MIB = 1 << 20
NO_LIMIT_V1 = "9223372036854771712"
V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"


def v1_mount(controllers: str, root: str = "/", folder: str = "") -> str:
    folder = folder or f"/sys/fs/cgroup/{controllers}"
    return f"33 31 0:30 {root} {folder} rw,relatime shared:15 - cgroup cgroup rw,{controllers}"


def cfs(quota: object, period: object = 100000) -> dict[str, str]:
    return {"cpu.cfs_quota_us": str(quota), "cpu.cfs_period_us": str(period)}


@dataclass
class Layout:
    """What a process finds in ``/proc/self`` and below the mount points."""

    cgroup: str
    mounts: list[str]
    files: dict[str, dict[str, str]] = field(default_factory=dict)

    def write(self, root: Path) -> Path:
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/self/cgroup").write_text(self.cgroup)
        (root / "proc/self/mountinfo").write_text("\n".join(self.mounts) + "\n")
        for folder, files in self.files.items():
            place = root / folder
            place.mkdir(parents=True, exist_ok=True)
            for name, text in files.items():
                (place / name).write_text(f"{text}\n")
        return root


SERVICE = "sys/fs/cgroup/system.slice/multigrain.service"
POD = "/kubepods/burstable/pod1/container2"
DOCKER = "/docker/0123"

LIMITS: dict[str, tuple[Layout, float | None, int | None]] = {
    "no cgroups": (Layout("", ["22 1 8:1 / / rw - ext4 /dev/sda1 rw"]), None, None),
    "v2 without limits": (
        Layout(
            "0::/\n",
            [V2_MOUNT],
            {
                "sys/fs/cgroup": {
                    "cpu.max": "max 100000",
                    "memory.max": "max",
                    "memory.high": "max",
                }
            },
        ),
        None,
        None,
    ),
    "docker, v2, cgroup namespace": (
        Layout(
            "0::/\n",
            [V2_MOUNT],
            {"sys/fs/cgroup": {"cpu.max": "150000 100000", "memory.max": str(512 * MIB)}},
        ),
        1.5,
        512 * MIB,
    ),
    "docker, v1": (
        Layout(
            f"4:memory:{DOCKER}\n3:cpuset:{DOCKER}\n2:cpu,cpuacct:{DOCKER}\n0::{DOCKER}\n",
            [v1_mount("cpu,cpuacct", DOCKER), v1_mount("memory", DOCKER)],
            {
                "sys/fs/cgroup/cpu,cpuacct": cfs(50000),
                "sys/fs/cgroup/memory": {"memory.limit_in_bytes": str(130 * MIB)},
            },
        ),
        0.5,
        130 * MIB,
    ),
    "v1 without limits": (
        Layout(
            f"4:memory:{DOCKER}\n2:cpu,cpuacct:{DOCKER}\n",
            [v1_mount("cpu,cpuacct", DOCKER), v1_mount("memory", DOCKER)],
            {
                "sys/fs/cgroup/cpu,cpuacct": cfs(-1),
                "sys/fs/cgroup/memory": {
                    "memory.limit_in_bytes": NO_LIMIT_V1,
                    "memory.stat": f"hierarchical_memory_limit {NO_LIMIT_V1}",
                },
            },
        ),
        None,
        int(NO_LIMIT_V1),
    ),
    "kubernetes, v1: the pod has the smaller limit, which only memory.stat shows": (
        Layout(
            f"4:memory:{POD}\n2:cpu,cpuacct:{POD}\n",
            [v1_mount("cpu,cpuacct", POD), v1_mount("memory", POD)],
            {
                "sys/fs/cgroup/cpu,cpuacct": cfs(200000),
                "sys/fs/cgroup/memory": {
                    "memory.limit_in_bytes": str(900 * MIB),
                    "memory.stat": f"cache 1\nhierarchical_memory_limit {300 * MIB}",
                },
            },
        ),
        2.0,
        300 * MIB,
    ),
    "kubernetes, v2, the host's namespace: the pod has the smaller limits": (
        Layout(
            f"0::{POD}\n",
            [V2_MOUNT],
            {
                f"sys/fs/cgroup{POD}": {"cpu.max": "max 100000", "memory.max": str(900 * MIB)},
                "sys/fs/cgroup/kubepods/burstable/pod1": {
                    "cpu.max": "250000 100000",
                    "memory.max": str(300 * MIB),
                },
                "sys/fs/cgroup/kubepods": {"cpu.max": "400000 100000", "memory.max": "max"},
            },
        ),
        2.5,
        300 * MIB,
    ),
    "systemd, v2: CPUQuota of the unit, MemoryHigh of the slice": (
        Layout(
            "0::/system.slice/multigrain.service\n",
            [V2_MOUNT],
            {
                SERVICE: {"cpu.max": "75000 50000", "memory.max": "max", "memory.high": "max"},
                "sys/fs/cgroup/system.slice": {"memory.high": str(700 * MIB)},
            },
        ),
        1.5,
        700 * MIB,
    ),
    "systemd, hybrid: the v2 hierarchy has no controllers": (
        Layout(
            "5:memory:/system.slice/multigrain.service\n"
            "3:cpu,cpuacct:/system.slice/multigrain.service\n"
            "1:name=systemd:/system.slice/multigrain.service\n"
            "0::/system.slice/multigrain.service\n",
            [
                "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755",
                "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw",
                v1_mount("cpu,cpuacct"),
                v1_mount("memory"),
            ],
            {
                "sys/fs/cgroup/unified/system.slice/multigrain.service": {"cgroup.procs": "1"},
                "sys/fs/cgroup/cpu,cpuacct/system.slice/multigrain.service": cfs(-1),
                "sys/fs/cgroup/cpu,cpuacct/system.slice": cfs(300000),
                "sys/fs/cgroup/memory/system.slice/multigrain.service": {
                    "memory.limit_in_bytes": str(64 * MIB)
                },
            },
        ),
        3.0,
        64 * MIB,
    ),
    "hybrid: the CPU is limited in v1 and the memory in v2": (
        Layout(
            "3:cpu,cpuacct:/a\n0::/b\n",
            [
                "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw",
                v1_mount("cpu,cpuacct"),
            ],
            {
                "sys/fs/cgroup/cpu,cpuacct/a": cfs(100000),
                "sys/fs/cgroup/unified/b": {"memory.max": str(80 * MIB)},
            },
        ),
        1.0,
        80 * MIB,
    ),
    "lxc, v1: its own cgroup is the root of the mount": (
        Layout(
            "4:memory:/lxc/box\n2:cpu:/lxc/box\n",
            [v1_mount("cpu", "/lxc/box"), v1_mount("memory", "/lxc/box")],
            {
                "sys/fs/cgroup/cpu": cfs(400000),
                "sys/fs/cgroup/memory": {"memory.limit_in_bytes": str(99 * MIB)},
            },
        ),
        4.0,
        99 * MIB,
    ),
    "lxc, v2: a unit within the container": (
        Layout(
            "0::/system.slice/multigrain.service\n",
            [V2_MOUNT],
            {
                SERVICE: {"cpu.max": "max 100000"},
                "sys/fs/cgroup": {"cpu.max": "50000 100000", "memory.max": str(2048 * MIB)},
            },
        ),
        0.5,
        2048 * MIB,
    ),
    "the mount begins above the cgroup namespace": (
        Layout(
            "0::/\n",
            ["30 23 0:26 /../.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw"],
            {"sys/fs/cgroup": {"memory.max": str(500 * MIB)}},
        ),
        None,
        500 * MIB,
    ),
    "another container's cgroup is mounted too, and is not meant": (
        Layout(
            "0::/\n",
            ["29 23 0:26 /../other /rootfs rw - cgroup2 cgroup2 rw", V2_MOUNT],
            {
                "rootfs": {"cpu.max": "10000 100000", "memory.max": "4096"},
                "sys/fs/cgroup": {"cpu.max": "200000 100000", "memory.max": str(5 * MIB)},
            },
        ),
        2.0,
        5 * MIB,
    ),
    "a mount that does not fit the path shows the process's own cgroup": (
        Layout(
            f"4:memory:{DOCKER}\n",
            [v1_mount("memory", "/elsewhere")],
            {"sys/fs/cgroup/memory": {"memory.limit_in_bytes": str(77 * MIB)}},
        ),
        None,
        77 * MIB,
    ),
    "the cgroup's folder is not there, its parent's is": (
        Layout(
            "0::/a/b/c (deleted)\n",
            [V2_MOUNT],
            {"sys/fs/cgroup/a": {"cpu.max": "100000 100000"}},
        ),
        1.0,
        None,
    ),
    "a mount point with a blank and without optional fields": (
        Layout(
            "7:cpu:/x:y z\n0::/\n",
            [v1_mount("cpu", folder=r"/my\040groups").replace("shared:15 ", "")],
            {"my groups/x:y z": cfs(100000, 50000)},
        ),
        2.0,
        None,
    ),
    "v1 without use_hierarchy: the parent's limit does not hold": (
        Layout(
            "4:memory:/a/b\n",
            [v1_mount("memory")],
            {
                "sys/fs/cgroup/memory/a/b": {"memory.limit_in_bytes": str(60 * MIB)},
                "sys/fs/cgroup/memory/a": {
                    "memory.limit_in_bytes": str(10 * MIB),
                    "memory.use_hierarchy": "0",
                },
            },
        ),
        None,
        60 * MIB,
    ),
    "v1 with use_hierarchy: the parent's limit holds": (
        Layout(
            "4:memory:/a/b\n",
            [v1_mount("memory")],
            {
                "sys/fs/cgroup/memory/a/b": {"memory.limit_in_bytes": str(60 * MIB)},
                "sys/fs/cgroup/memory/a": {
                    "memory.limit_in_bytes": str(10 * MIB),
                    "memory.use_hierarchy": "1",
                },
            },
        ),
        None,
        10 * MIB,
    ),
    "cpu.max without a period": (
        Layout("0::/\n", [V2_MOUNT], {"sys/fs/cgroup": {"cpu.max": "300000"}}),
        3.0,
        None,
    ),
}

MALFORMED = [
    {"cpu.max": "", "memory.max": "", "memory.high": ""},
    {"cpu.max": "many 100000", "memory.max": "much"},
    {"cpu.max": "-1 100000", "memory.max": "-1"},
    {"cpu.max": "100000 0", "memory.max": "0"},
    {"cpu.max": "0 100000", "memory.max": "1e9"},
    {"cpu.max": "100000 many", "memory.max": "12 34"},
    {"cpu.max": "max", "memory.max": "max\nmax"},
    {"cpu.max": "\u00b2 \u00b2", "memory.max": "\u0663"},
]


@pytest.mark.parametrize("name", LIMITS)
def test_the_smallest_limit_of_a_cgroup_and_its_ancestors_counts(tmp_path: Path, name: str) -> None:
    layout, quota, memory = LIMITS[name]
    cgroups = Cgroups(layout.write(tmp_path))
    assert cgroups.cpu_quota() == quota
    assert cgroups.memory_limit() == memory


@pytest.mark.parametrize("files", MALFORMED)
def test_a_file_without_a_number_is_no_limit(tmp_path: Path, files: dict[str, str]) -> None:
    cgroups = Cgroups(Layout("0::/\n", [V2_MOUNT], {"sys/fs/cgroup": files}).write(tmp_path))
    assert (cgroups.cpu_quota(), cgroups.memory_limit()) == (None, None)


@pytest.mark.parametrize(
    ("cgroup", "mount"),
    [
        ("nonsense\n::\n0:\n", V2_MOUNT),
        ("0::/\n", "nonsense"),
        ("0::/\n", "30 23 0:26 / /sys/fs/cgroup rw - cgroup2"),
        ("0::/\n", " - cgroup2 cgroup2 rw"),
        ("1::/\n0::relative\n", V2_MOUNT),
        ("4:memory:/a\n", V2_MOUNT),
    ],
)
def test_tables_that_say_nothing_are_no_limit(tmp_path: Path, cgroup: str, mount: str) -> None:
    files = {"sys/fs/cgroup": {"cpu.max": "100000 100000", "memory.max": "4096"}}
    cgroups = Cgroups(Layout(cgroup, [mount], files).write(tmp_path))
    assert (cgroups.cpu_quota(), cgroups.memory_limit()) == (None, None)


def test_a_machine_without_proc_has_no_limits(tmp_path: Path) -> None:
    cgroups = Cgroups(tmp_path)
    assert (cgroups.cpu_quota(), cgroups.memory_limit(), cgroups.oom_kills()) == (None, None, None)
    assert machine.oom_kills_of_machine(tmp_path) is None


@pytest.mark.parametrize(
    ("count", "affinity", "quota", "available", "text"),
    [
        (64, 64, None, 64, "64 CPUs"),
        (1, 1, None, 1, "1 CPU"),
        (64, 64, 1.0, 1, "1 CPU (cgroup quota of 1; the machine has 64)"),
        (64, 64, 0.5, 1, "1 CPU (cgroup quota of 0.5; the machine has 64)"),
        (64, 64, 0.01, 1, "1 CPU (cgroup quota of 0.01; the machine has 64)"),
        (64, 64, 1.5, 2, "2 CPUs (cgroup quota of 1.5; the machine has 64)"),
        (64, 64, 63.5, 64, "64 CPUs"),
        (64, 64, 100.0, 64, "64 CPUs"),
        (64, 4, None, 4, "4 CPUs (CPU affinity; the machine has 64)"),
        (64, 4, 8.0, 4, "4 CPUs (CPU affinity; the machine has 64)"),
        (64, 4, 3.0, 3, "3 CPUs (cgroup quota of 3; the machine has 64)"),
        (64, 4, 3.5, 4, "4 CPUs (cgroup quota of 3.5; the machine has 64)"),
    ],
)
def test_cpus_are_the_smaller_of_affinity_and_quota_rounded_up(
    count: int, affinity: int, quota: float | None, available: int, text: str
) -> None:
    cpus = Cpus(count, affinity, quota)
    assert cpus.available == available
    assert cpus.limited is (available < count)
    assert str(cpus) == text


def test_memory_is_described_with_its_limit() -> None:
    assert str(Memory(24 << 30)) == "24 GiB of memory"
    assert (
        str(Memory(24 << 30, 130 * MIB))
        == "130 MiB of memory (cgroup limit; the machine has 24 GiB)"
    )
    assert machine.format_size(1536 * MIB) == "1.5 GiB"


def test_the_memory_of_this_process_is_that_of_its_cgroup(tmp_path: Path) -> None:
    files = {
        "memory.max": str(40 * MIB),
        "memory.current": str(30 * MIB),
        "memory.stat": f"anon {10 * MIB}\ninactive_file {20 * MIB}",
    }
    root = Layout("0::/\n", [V2_MOUNT], {"sys/fs/cgroup": files}).write(tmp_path)
    memory = machine.memory(root)
    assert (memory.total, memory.limit, memory.used) == (40 * MIB, 40 * MIB, 10 * MIB)
    assert machine.available_memory(root) == 40 * MIB
    usual = machine.memory(tmp_path / "none")
    assert usual.limit is None
    assert 0 < usual.used < usual.total == usual.machine


def test_a_limit_above_the_machines_memory_is_none(tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/memory": {"memory.limit_in_bytes": NO_LIMIT_V1}}
    root = Layout("4:memory:/\n", [v1_mount("memory")], files).write(tmp_path)
    assert machine.memory(root).limit is None


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="affinity is Linux's")
def test_the_affinity_of_this_process_counts(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert machine.available_cpus(tmp_path) == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("layout", "kills"),
    [
        (
            Layout(
                "0::/a\n", [V2_MOUNT], {"sys/fs/cgroup/a": {"memory.events": "oom 4\noom_kill 3"}}
            ),
            3,
        ),
        (
            Layout(
                "4:memory:/a\n0::/\n",
                [v1_mount("memory")],
                {
                    "sys/fs/cgroup/memory/a": {
                        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2"
                    },
                    "sys/fs/cgroup/memory": {"memory.oom_control": "oom_kill 9"},
                },
            ),
            2,
        ),
        # The root of version 2 has no such file, and old kernels have no such line.
        (Layout("0::/\n", [V2_MOUNT], {"sys/fs/cgroup": {"cgroup.procs": "1"}}), None),
        (
            Layout(
                "4:memory:/\n",
                [v1_mount("memory")],
                {"sys/fs/cgroup/memory": {"memory.oom_control": "under_oom 0"}},
            ),
            None,
        ),
    ],
)
def test_the_oom_killers_count_of_a_cgroup_is_read(
    tmp_path: Path, layout: Layout, kills: int | None
) -> None:
    assert Cgroups(layout.write(tmp_path)).oom_kills() == kills


# The sources

# They see the machine, not what this process may use.
UNLIMITED = {
    *("cpu_count", "process_cpu_count", "sched_getaffinity", "virtual_memory", "sysconf"),
    *("getloadavg", "physical_cpu_count"),
}
# The status page shows the load of the machine, which belongs to the CPUs of the machine.
MAY_SEE_THE_MACHINE = {
    "multigrain/machine.py": {"cpu_count", "sched_getaffinity", "virtual_memory"},
    "server/multigrain_server/status/snapshot.py": {"cpu_count", "getloadavg"},
}


def test_no_other_module_counts_cpus_or_memory() -> None:
    root = Path(__file__).resolve().parents[1]
    wrong = []
    for source in ("multigrain", "server", "client", "examples"):
        for path in sorted((root / source).rglob("*.py")):
            file = str(path.relative_to(root))
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names: set[str] = set()
                if isinstance(node, ast.Attribute):
                    names = {node.attr}
                elif isinstance(node, ast.ImportFrom):
                    names = {alias.name for alias in node.names}
                wrong += [
                    f"{file}:{node.lineno}: {name}: use multigrain.machine"
                    for name in (names & UNLIMITED) - MAY_SEE_THE_MACHINE.get(file, set())
                ]
    assert not wrong, "\n".join(wrong)


# Real cgroups


@pytest.fixture
def cgroup() -> Iterator[RealCgroup]:
    with real_cgroup() as made:
        yield made


def test_a_process_in_a_real_cgroup_sees_its_limits(cgroup: RealCgroup) -> None:
    cgroup.limit_cpu(0.5)
    cgroup.limit_memory(200 * MIB)
    program = f"""
import os, sys
for folder in sys.argv[1:]:
    open(folder + "/cgroup.procs", "w").write(str(os.getpid()))
from multigrain import machine
cgroups = machine.Cgroups()
print(cgroups.cpu_quota(), machine.available_cpus(), machine.available_memory() // {MIB},
      cgroups.oom_kills())
"""
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, cgroup.folders)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["0.5", "1", "200", "0"]
