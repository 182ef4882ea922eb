"""Names in plots."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib import font_manager, get_data_path

from multigrain import fonts
from multigrain.evaluate.results import plot_confusion
from multigrain.fonts import plot_names

pytestmark = pytest.mark.mindspore  # the module of the plot imports it

# Text in scripts that DejaVu Sans has, and in scripts that it has not.
OWN = ("père", "λύκος", "волк", "ذئب", "b$_{x}$", "_a", "a\\b")
OTHER = ("日本の犬", "늑대", "🐺", "กระต่าย", "\U00020000", "\ue000")


@pytest.fixture
def no_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "_installed", lambda: iter(()))


@pytest.fixture(autouse=True)
def no_missing_glyphs() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.usefixtures("no_fonts")
def test_a_name_that_no_font_has_is_shown_as_its_number(tmp_path: Path) -> None:
    names = OWN + OTHER
    found = plot_names(names)
    assert found.shown == (*OWN, *(f"#{len(OWN) + index}" for index in range(len(OTHER))))
    assert found.numbered == OTHER
    assert "6 names are plotted as their numbers" in found.note
    assert "日本の犬" in found.note
    note = plot_confusion(np.eye(len(names), dtype=np.int64), names, tmp_path / "confusion.png")
    assert note == f"confusion.png: {found.note}"


def test_names_in_any_script_are_plotted_without_a_box(tmp_path: Path) -> None:
    names = OWN + OTHER
    plot_confusion(np.eye(len(names), dtype=np.int64), names, tmp_path / "confusion.png")


def test_an_installed_font_that_has_the_characters_is_used() -> None:
    def chinese() -> str:
        return next((family for family, has, _ in fonts._installed() if ord("犬") in has), "")

    family = chinese()
    if not family:
        pytest.skip("no font with Chinese characters is installed (fonts-noto-cjk)")
    found = plot_names(("cat", "犬"))
    assert found.shown == ("cat", "犬")
    assert found.families == ["DejaVu Sans", family]
    assert found.note == ""


@pytest.mark.usefixtures("no_fonts")
def test_a_skin_tone_that_no_font_has_is_left_out() -> None:
    assert plot_names(("☝\U0001f3fd", "❤\ufe0f")).shown == ("☝", "❤")


def test_only_fonts_that_are_needed_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def installed() -> Iterator[tuple[str, set[int], str]]:
        own = font_manager.findfont("DejaVu Sans")
        yield "Other", set(map(ord, "abc")), own
        yield "Chinese", set(map(ord, "犬猫")), own
        raise AssertionError("everything was found")

    monkeypatch.setattr(fonts, "_installed", installed)
    assert plot_names(OWN).families == ["DejaVu Sans"]
    assert plot_names(("犬",)).families == ["DejaVu Sans", "Chinese"]


def test_only_a_font_that_is_needed_is_registered_and_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    matplotlib_fonts = Path(get_data_path()) / "fonts" / "ttf"
    latin = shutil.copy(matplotlib_fonts / "cmr10.ttf", tmp_path / "a.ttf")
    greek = shutil.copy(matplotlib_fonts / "STIXGeneral.ttf", tmp_path / "b.ttf")
    known = font_manager.fontManager
    monkeypatch.setattr(known, "ttflist", list(known.ttflist))
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(latin), str(greek)])
    monkeypatch.setattr(fonts, "_own_characters", lambda: {ord("a")})
    before = len(known.ttflist)
    for _ in range(2):
        assert plot_names(("aλ",)).families == ["DejaVu Sans", "STIXGeneral"]
    assert [font.fname for font in known.ttflist[before:]] == [str(greek)]


@pytest.mark.usefixtures("no_fonts")
def test_control_characters_are_escaped_and_long_names_shortened() -> None:
    assert plot_names(("a\x1b[1m\nb", "x" * 30)).shown == (r"a\x1b[1m\x0ab", "x" * 23 + "…")
