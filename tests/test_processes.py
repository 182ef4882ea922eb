"""Process priorities, tested in a process of their own: pytest must keep its priority."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import onnx
import pytest

from multigrain.processes import child_environment, needed_environment, python_command

_PROGRAM = textwrap.dedent(
    """
    import os, threading
    from multigrain import processes

    def standing(tid):
        return os.getpriority(os.PRIO_PROCESS, tid), os.sched_getscheduler(tid)

    if {restricted}:
        processes._can_raise_to = lambda nice: False
    before = standing(0)
    started, end = threading.Event(), threading.Event()
    with processes.low_priority():
        thread = threading.Thread(target=lambda: (started.set(), end.wait()))
        thread.start()
        started.wait()
        inside = standing(0)
        assert inside != before, inside
        assert standing(thread.native_id) == inside
        if {restricted}:
            assert inside == (before[0], os.SCHED_BATCH)
    assert standing(0) == before
    assert standing(thread.native_id) == before
    end.set()
    """
)


@pytest.mark.skipif(sys.platform != "linux", reason="priorities of threads are Linux's")
@pytest.mark.parametrize("restricted", [False, True])
def test_low_priority_covers_new_threads_and_is_restored_afterwards(
    restricted: bool,
) -> None:
    program = _PROGRAM.format(restricted=restricted)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# The environment of children


SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "s",
    "DATABASE_URL": "postgres://user:s@host",
    "HF_TOKEN": "s",
    "KUBERNETES_SERVICE_HOST": "10.0.0.1",
    "MULTIGRAIN_ACCESS__TOKENS": "/etc/tokens",
    "MULTIGRAIN_TOKEN": "s",
    "NVIDIA_API_KEY": "s",
    "OTEL_EXPORTER_OTLP_HEADERS": "authorization=s",
    "SSH_AUTH_SOCK": "/run/agent",
    "https_proxy": "http://user:s@proxy",
}
NEEDED = {
    "ASCEND_OPP_PATH": "/usr/local/Ascend/opp",
    "CUDA_VISIBLE_DEVICES": "0",
    "FI_PROVIDER": "efa",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=0",
    "GLOG_v": "1",
    "HCCL_CONNECT_TIMEOUT": "7200",
    "HOME": "/home/user",
    "LC_ALL": "C.UTF-8",
    "LD_LIBRARY_PATH": "/usr/local/cuda/lib64",
    "MS_DEV_RUNTIME_CONF": "x",
    "OMP_NUM_THREADS": "4",
    "PATH": "/usr/bin",
    "PYTHONPATH": "/opt/cann/python",
    "RANK_TABLE_FILE": "/etc/hccl.json",
    "RDMAV_FORK_SAFE": "1",
    "TOOLCHAIN_HOME": "/usr/local/Ascend/toolkit",
    "TZ": "UTC",
}


def test_children_get_what_they_need_of_the_environment_and_no_secrets() -> None:
    assert needed_environment({**SECRETS, **NEEDED}) == NEEDED


def test_children_get_what_the_operator_names() -> None:
    also = ("https_proxy", "AWS_*", "MISSING")
    found = needed_environment({**SECRETS, **NEEDED}, also)
    assert found.keys() - NEEDED.keys() == {"https_proxy", "AWS_SECRET_ACCESS_KEY"}


def test_onnx_runtime_sends_and_keeps_no_telemetry(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    model = "onnxruntime.InferenceSession(sys.argv[1])"
    graph = tmp_path / "model.onnx"
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    x, y = (onnx.helper.make_tensor_value_info(name, 1, [1]) for name in "xy")
    opset = [onnx.helper.make_opsetid("", 13)]
    made = onnx.helper.make_model(
        onnx.helper.make_graph([node], "identity", [x], [y]), opset_imports=opset, ir_version=8
    )
    onnx.save(made, graph)
    subprocess.run(
        [*python_command("unused")[:2], "-c", f"import sys, onnxruntime; {model}", str(graph)],
        env=child_environment({**os.environ, **home}),
        cwd="/",
        check=True,
    )
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [graph]
