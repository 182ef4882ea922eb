"""Messages from plain Python values and back."""

from __future__ import annotations

import pytest

from multigrain.v1.embedding_pb2 import EmbedRequest
from multigrain.v1.evaluation_spec_pb2 import EvaluationSpec
from multigrain.v1.job_pb2 import Job, JobEvent
from multigrain.v1.training_spec_pb2 import TrainingSpec
from multigrain_client import InvalidRequest
from multigrain_client.json_format import fill, nest, to_plain


def test_all_invalid_fields_are_reported_at_once():
    spec = TrainingSpec()
    with pytest.raises(InvalidRequest) as info:
        fill(spec, {"sched": {}, "seed": -1, "model": {"learn_gem_p": 1, "classes": True}}, "spec")
    fields = {violation.field: violation.message for violation in info.value.violations}
    assert set(fields) == {
        "spec.sched",
        "spec.seed",
        "spec.model.learn_gem_p",
        "spec.model.classes",
    }
    assert fields["spec.seed"] == "must be a whole number, 0 or more; not -1"
    assert fields["spec.sched"] == "no such field; did you mean 'schedule'?"
    assert fields["spec.model.learn_gem_p"].startswith("must be true or false; not 1")


def test_list_may_be_a_comma_separated_string():
    spec = TrainingSpec()
    fill(
        spec,
        {
            "evaluation": {"tasks": "classification, holidays"},
            "schedule": {"learning_rate": {"milestones": 30}},
            "optimizer": {"thor": {"early_refreshes": "1,50"}},
        },
    )
    assert list(spec.evaluation.tasks) == ["classification", "holidays"]
    assert list(spec.schedule.learning_rate.milestones) == [30.0]
    assert list(spec.optimizer.thor.early_refreshes) == [1, 50]
    fill(exponent := EvaluationSpec(), {"exponent": {"candidates": "2,3.5"}})
    assert list(exponent.exponent.candidates) == [2.0, 3.5]
    with pytest.raises(InvalidRequest, match="each a whole number, 0 or more; not '1,x'"):
        fill(spec, {"optimizer": {"thor": {"early_refreshes": "1,x"}}})
    with pytest.raises(InvalidRequest, match="must be a list, each a string; not True"):
        fill(spec, {"evaluation": {"tasks": True}})
    with pytest.raises(InvalidRequest, match="must be a list"):
        fill(EmbedRequest(), {"images": "a.jpg"})


def test_dotted_and_nested_keys_are_equivalent():
    assert nest({"a.b": 1, "a": {"c.d": 2}}) == {"a": {"b": 1, "c": {"d": 2}}}
    with pytest.raises(InvalidRequest, match="both as a value and as a group"):
        nest({"a": 1, "a.b": 2})


def test_to_plain_shortens_enum_names():
    job = Job(job_id="j", state=3, last_seq=2**60, labels={"b": "2", "a": "1"})
    job.metrics["top1"] = float("nan")
    plain = to_plain(job)
    assert plain["state"] == "RUNNING"
    assert plain["last_seq"] == 2**60
    assert list(plain["labels"]) == ["a", "b"]
    assert plain["metrics"] == {"top1": "nan"}
    assert plain["name"] == ""
    assert "error" not in plain
    assert "exit_code" not in plain
    assert to_plain(JobEvent(seq=1)) == {"seq": 1, "job_id": "", "attempt": 0}
