"""Images that crashed an engine."""

from __future__ import annotations

import hashlib

import pytest

from multigrain.errors import ErrorKind
from multigrain_server.engines.images import Quarantine


def test_only_an_image_in_quarantine_is_refused_with_its_hash() -> None:
    quarantine = Quarantine()
    digest = quarantine.add(b"crash")
    assert digest == hashlib.sha256(b"crash").hexdigest()
    error = quarantine.refusal(b"crash")
    assert error is not None
    assert error.kind is ErrorKind.IMAGE_HARMFUL
    assert digest in error.message
    assert quarantine.refusal(b"other") is None


def test_the_newest_1024_images_are_remembered() -> None:
    quarantine = Quarantine()
    for number in range(1024):
        quarantine.add(b"%d" % number)
    quarantine.add(b"0")  # again, and therefore the newest
    quarantine.add(b"one more")
    assert quarantine.refusal(b"1") is None
    assert all(quarantine.refusal(image) for image in (b"0", b"2", b"1023", b"one more"))


def test_nothing_is_hashed_while_the_quarantine_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashlib, "sha256", None)
    assert Quarantine().refusal(b"large") is None
