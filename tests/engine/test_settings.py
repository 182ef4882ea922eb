"""The settings of an engine arrive as they were passed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from multigrain.engine.settings import EngineSettings


def test_settings_are_passed_on_the_command_line() -> None:
    # A folder's name may have any bytes but "/" and NUL.
    bundle = Path('/models/a "b" \n--settings/ä')
    settings = EngineSettings(
        bundle=bundle, socket_fd=7, runtime="onnxruntime", low_priority=True, inflight_fd=8
    )
    assert EngineSettings.parse(settings.arguments()) == settings
    assert os.fsencode(EngineSettings.parse(settings.arguments()).bundle) == os.fsencode(bundle)


@pytest.mark.parametrize(
    "fields",
    ['"max_batch": 0', '"decode_threads": 0', '"device": "tpu"', '"threads": -1', '"unknown": 1'],
)
def test_invalid_settings_are_refused(fields: str) -> None:
    with pytest.raises(ValidationError):
        EngineSettings.parse(["--settings", f'{{"bundle": "/b", "socket_fd": 1, {fields}}}'])
