"""Jobs, loss curves and images in a notebook."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np

from multigrain.v1 import job_pb2
from multigrain_client import EmbeddedImage, latest_curve, notebook
from multigrain_client.jobs import loss_point
from tests.client.events import job_of, training_events


def test_a_job_is_a_table_that_escapes_its_text():
    job = job_of("train-1", state=job_pb2.JOB_STATE_SUCCEEDED)
    job.name = "<script>alert(1)</script>\u202e"
    job.metrics["<b>top1"] = 0.5
    shown = notebook.job_html(job)
    table = ElementTree.fromstring(shown)
    cells = {row[0].text: row[1].text for row in table}
    assert cells["name"].startswith("<script>alert(1)</script>")
    assert cells["<b>top1"] == "0.5000"
    assert cells["state"] == "succeeded"
    assert "\u202e" not in shown


def test_a_loss_curve_is_a_picture():
    events = training_events(4)
    curve = latest_curve(loss_point(event) for event in events if event.HasField("loss"))
    figure = ElementTree.fromstring(curve._repr_html_())
    path = figure.find("svg/path")
    assert path is not None
    assert path.attrib["d"].count("L") == len(curve) - 1
    assert "at step 1 " in figure.findtext("figcaption", "")
    assert latest_curve([])._repr_html_() == "<p>0 loss points</p>"


def test_an_embedded_image_prints_on_one_short_line():
    image = EmbeddedImage(3, "a.png", np.zeros(2048, np.float32), model="birds@1")
    assert repr(image) == "EmbeddedImage(3, 'a.png', vector=float32[2048], model='birds@1')"


def test_ipython_is_told_how_to_show_a_job(monkeypatch):
    told = {}
    formatter = SimpleNamespace(for_type=lambda kind, function: told.update({kind: function}))
    shell = SimpleNamespace(display_formatter=SimpleNamespace(formatters={"text/html": formatter}))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    notebook.register()
    assert told == {job_pb2.Job: notebook.job_html}
