"""Pure parts: retries, curves, messages, targets."""

from __future__ import annotations

from types import SimpleNamespace

import grpc
import pytest

from multigrain.v1.embedding_pb2 import EmbedRequest
from multigrain.v1.evaluation_spec_pb2 import EvaluationSpec
from multigrain.v1.job_pb2 import EventKind, Job, JobEvent
from multigrain.v1.training_spec_pb2 import TrainingSpec
from multigrain_client import InvalidRequest, LossPoint, RetryPolicy, Tls, Unavailable, latest_curve
from multigrain_client.channel import channel_config
from multigrain_client.cli.live import block_curve
from multigrain_client.cli.output import duration
from multigrain_client.errors import ImageError, Overloaded, StreamGap, from_rpc
from multigrain_client.images import Batch, EncodedImage, batches_of
from multigrain_client.jobs import loss_point
from multigrain_client.json_format import fill, nest, to_plain
from multigrain_client.retry import BulkRetries, stream_delay, unary_delay
from multigrain_client.streaming import EventCursor, ReplayWindow
from tests.client.events import loss_event


def points(*keys: tuple[int, int]) -> list[LossPoint]:
    return [
        loss_point(loss_event(seq, step, attempt=attempt))
        for seq, (attempt, step) in enumerate(keys, 1)
    ]


def keys(curve: list[LossPoint]) -> list[tuple[int, int]]:
    return [(point.attempt, point.step) for point in curve]


def test_the_newest_attempt_wins_from_its_first_step_on():
    curve = latest_curve(points((1, 1), (1, 2), (1, 3), (1, 4), (2, 3)))
    assert keys(curve) == [(1, 1), (1, 2), (2, 3)]


def test_a_curve_of_three_attempts_in_any_order_has_no_double_step():
    curve = latest_curve(points((3, 2), (1, 1), (1, 2), (2, 2), (2, 3), (3, 3), (1, 3)))
    assert keys(curve) == [(1, 1), (3, 2), (3, 3)]
    assert latest_curve([]) == []


def test_backoff_grows_to_its_maximum_and_is_never_zero():
    policy = RetryPolicy(initial=0.1, multiplier=2, maximum=1.0)
    for failures, bound in ((1, 0.1), (2, 0.2), (3, 0.4), (10, 1.0), (10_000, 1.0)):
        delays = [policy.backoff(failures) for _ in range(200)]
        assert 0.1 * bound <= min(delays) < 0.5 * bound
        assert 0.5 * bound < max(delays) <= bound


def test_a_delay_of_the_server_is_never_undercut():
    error = Overloaded(
        "full", kind="OVERLOADED", code=grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after=2.0
    )
    for _ in range(100):
        delay = unary_delay(RetryPolicy(), error, failures=1, idempotent=False, remaining=None)
        assert 2.0 <= delay <= 2.5


def test_nothing_is_retried_past_the_deadline_or_the_attempts():
    error = Unavailable("away", code=grpc.StatusCode.UNAVAILABLE)
    policy = RetryPolicy(attempts=3, initial=1.0)
    assert unary_delay(policy, error, failures=1, idempotent=True, remaining=0.05) is None
    assert unary_delay(policy, error, failures=3, idempotent=True, remaining=None) is None
    assert unary_delay(policy, error, failures=2, idempotent=True, remaining=None) is not None


def test_a_stream_is_given_up_when_its_patience_is_over():
    error = Unavailable("away", code=grpc.StatusCode.UNAVAILABLE)
    policy = RetryPolicy(stream_patience=10)
    assert stream_delay(policy, error, failures=1, quiet=9.0) is not None
    assert stream_delay(policy, error, failures=1, quiet=10.1) is None


def _cursor(*kinds: int, **policy: float) -> EventCursor:
    policy = RetryPolicy(**policy)
    return EventCursor("job-1", after_seq=0, kinds=kinds, follow=True, policy=policy)


def test_the_pause_before_a_stream_is_taken_up_begins_anew_after_an_event():
    error = Unavailable("away", code=grpc.StatusCode.UNAVAILABLE)
    cursor = _cursor(initial=1.0, multiplier=100.0, maximum=100.0)
    assert cursor.on_error(error) <= 1.0
    assert cursor.on_error(error) >= 10.0
    assert cursor.accept(loss_event(1, step=1))
    assert cursor.on_error(error) <= 1.0


def test_gaps_are_counted_in_a_row():
    cursor, gap = _cursor(), StreamGap("events are missing")
    for seq in (1, 2):
        assert [cursor.on_gap(gap) > 0 for _ in range(2)] == [True, True]
        assert cursor.accept(loss_event(seq, step=seq))
    for _ in range(2):
        cursor.on_gap(gap)
    with pytest.raises(StreamGap):
        cursor.on_gap(gap)


def test_a_heartbeat_vouches_only_for_events_that_were_not_asked_for():
    ahead = JobEvent(seq=7, heartbeat={})
    every, losses = _cursor(), _cursor(EventKind.EVENT_KIND_LOSS)
    assert not every.accept(ahead)
    assert not losses.accept(ahead)
    assert (every.seq, losses.seq) == (0, 7)


def test_a_bulk_stream_whose_server_is_gone_is_given_up_after_the_patience():
    clock = SimpleNamespace(now=0.0)
    retries = BulkRetries(RetryPolicy(attempts=2, stream_patience=10), lambda: clock.now)
    error = Unavailable("away", code=grpc.StatusCode.UNAVAILABLE)
    assert retries.delay(error) is not None
    assert retries.delay(error) is None  # there was no answer yet
    retries.answered()
    for clock.now in (1.0, 2.0, 5.0, 8.0):
        assert retries.delay(error) is not None
    clock.now = 10.1
    assert retries.delay(error) is None


def test_refusals_of_a_bulk_stream_are_counted_whether_or_not_there_were_answers():
    retries = BulkRetries(RetryPolicy(attempts=3), lambda: 0.0)
    retries.answered()
    refusal = Unavailable(
        "engine gone", kind="UNAVAILABLE", code=grpc.StatusCode.UNAVAILABLE, retry_after=1.0
    )
    assert retries.delay(refusal) >= 1.0
    assert retries.delay(refusal) >= 1.0
    assert retries.delay(refusal) is None


def test_batches_respect_both_limits_and_keep_the_order():
    images = [EncodedImage(index, "", b"x" * size) for index, size in enumerate([3, 3, 3, 9, 1, 1])]
    batches = list(batches_of(images, max_images=3, max_bytes=8))
    assert [[image.index for image in batch.images] for batch in batches] == [[0, 1], [2, 4, 5]]
    assert [error.index for batch in batches for error in batch.errors] == [3]
    assert all(sum(len(image.data) for image in batch.images) <= 8 for batch in batches)
    exactly = [EncodedImage(index, "", b"x" * 4) for index in range(2)]
    assert len(list(batches_of(exactly, max_images=3, max_bytes=8))) == 1


def test_a_window_is_full_of_what_is_under_way_and_takes_more_that_is_not_sent():
    window = ReplayWindow(2)
    sent = Batch((EncodedImage(0, "", b"x"),))
    unsent = Batch((), (ImageError(1, "", "IMAGE_UNREADABLE", ""),))
    for batch in (sent, unsent, unsent):
        window.add(batch)
        assert not window.full
    window.add(sent)
    assert window.full
    assert not window.stuck
    assert window.answered() is sent
    assert not window.full


def test_every_wrong_field_is_reported_at_once():
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


def test_a_list_can_be_written_as_on_a_command_line():
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


def test_dotted_and_nested_keys_are_the_same():
    assert nest({"a.b": 1, "a": {"c.d": 2}}) == {"a": {"b": 1, "c": {"d": 2}}}
    with pytest.raises(InvalidRequest, match="both as a value and as a group"):
        nest({"a": 1, "a.b": 2})


def test_messages_become_plain_values_with_short_names():
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


@pytest.mark.parametrize(
    ("target", "resolved"),
    [
        ("example.org:50051", "example.org:50051"),
        ("10.0.0.1:1, 10.0.0.2:2", "ipv4:10.0.0.1:1,10.0.0.2:2"),
        ("[::1]:1,[::2]:2", "ipv6:[::1]:1,[::2]:2"),
    ],
)
def test_targets_are_written_as_grpc_wants_them(target, resolved):
    config = channel_config(target)
    assert config.target == resolved
    assert (
        "grpc.service_config",
        '{"loadBalancingConfig": [{"round_robin": {}}]}',
    ) in config.options


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("https://10.0.0.1:50051/", r"is a URL; give HOST:PORT, such as '10\.0\.0\.1:50051'"),
        ("", "give HOST:PORT"),
        ("a,b:2", "'a' is not HOST:PORT"),
        ("10.0.0.1:1,[::1]:2", "mix IPv4 and IPv6"),
    ],
)
def test_wrong_targets_are_explained(target, message):
    with pytest.raises(InvalidRequest, match=message):
        channel_config(target)


@pytest.mark.parametrize(
    ("why", "hint"),
    [
        ("Connection refused", "running there"),
        ("Tls handshake failed (TSI_PROTOCOL_FAILURE)", "certificate authority that you expect"),
        ("Socket closed", "this client does not"),
        ("Failed parsing HTTP/2 (Trying to connect an http1.x server)", "use the gRPC address"),
    ],
)
def test_a_server_that_does_not_answer_is_told_with_what_to_look_at(why, hint):
    error = grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details=why
    )
    assert hint in str(from_rpc(error, "Embed", "a:1"))


def test_the_token_is_not_shown_by_repr():
    assert "secret" not in repr(channel_config("a:1", token="secret"))


def test_a_certificate_needs_its_key(tmp_path):
    with pytest.raises(InvalidRequest, match="must be given together"):
        channel_config("a:1", tls=Tls(certificate=b"x"))
    with pytest.raises(InvalidRequest, match="cannot read the ca file"):
        channel_config("a:1", tls=Tls(ca=tmp_path / "none.pem"))


def test_the_curve_fits_its_box_and_touches_top_and_bottom():
    lines = block_curve([float(v) for v in range(100, 0, -1)], width=20, height=3)
    assert [len(line) for line in lines] == [20, 20, 20]
    assert lines[0][0] == "█"
    assert lines[2][-1] == "▁"
    assert lines[0][-1] == " "
    assert block_curve([float("nan")], 5, 2) == ["", ""]
    assert block_curve([1.0, 1.0], 5, 1) == ["▁▁"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "unknown"), (0.4, "0 s"), (59.6, "1 min 0 s"), (3725, "1 h 2 min"), (185, "3 min 5 s")],
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text


def test_a_delay_that_is_negative_means_that_no_try_is_wanted():
    def error(milliseconds: str) -> SimpleNamespace:
        return SimpleNamespace(
            code=lambda: grpc.StatusCode.RESOURCE_EXHAUSTED,
            details=lambda: "full",
            trailing_metadata=lambda: (("grpc-retry-pushback-ms", milliseconds),),
        )

    assert from_rpc(error("250"), "Embed", "here").retry_after == 0.25
    assert from_rpc(error("-1"), "Embed", "here").retry_after is None


def test_connections_are_probed_as_often_as_asked():
    options = dict(channel_config("here:1", keepalive=5.0).options)
    assert options["grpc.keepalive_time_ms"] == 5000
    assert "grpc.keepalive_time_ms" not in dict(channel_config("here:1", keepalive=0).options)
