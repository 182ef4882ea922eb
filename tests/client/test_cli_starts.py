"""Commands that start evaluations and exports."""

from __future__ import annotations

import json


def test_evaluate_and_export_start_jobs(run, state):
    _, out, _ = run(
        "evaluate", "--job", "job-7", "--checkpoint", "best", "--dataset", "/d", "--json"
    )
    assert json.loads(out)["evaluation"]["weights"] == {"job_id": "job-7", "checkpoint": "best"}
    _, out, _ = run(
        "evaluate", "--model", "digits", "--dataset", "/d", "--task", "groups", "--transform",
        "rect", "--resolution", "800", "--group-queries", "first", "--json",
    )  # fmt: skip
    spec = json.loads(out)["evaluation"]
    assert (spec["tasks"], spec["transform"], spec["resolution"]) == (["groups"], "rect", 800)
    assert spec["group_queries"] == "first"
    code, out, _ = run("export", "--job", "job-7", "--model-name", "digits", "--format", "onnx")
    assert code == 0
    assert list(state.jobs["job-3"].export.formats) == ["onnx"]
