"""The page on which a picture is dropped, in a browser."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from multigrain_server.access.config import AccessConfig
from tests.engine.bundles import CLASSES, EMBEDDING
from tests.engine.pictures import picture
from tests.server.access.daemon import token_for_each_role
from tests.server.http.daemon import daemon
from tests.server.status.browser import Browser

pytestmark = pytest.mark.process

ROWS = "return document.querySelectorAll('#classes .meter').length"
STATE = "return document.getElementById('state').textContent"


@pytest.fixture
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


def _send(browser: Browser, data: bytes) -> None:
    text = base64.b64encode(data).decode()
    browser.run(
        f"const bytes = Uint8Array.from(atob('{text}'), (c) => c.charCodeAt(0));"
        "send(new File([bytes], 'picture.png'));"
    )


def _try(browser: Browser, url: str) -> None:
    browser.open(url)
    models = "return Array.from(document.querySelectorAll('option'), (o) => o.value)"
    assert browser.until(f"const found = (() => {{{models}}})(); return found[1] && found") == [
        "",
        "tiny@1",
    ]
    _send(browser, picture(1))
    assert browser.until(ROWS) == min(5, CLASSES)
    shown = browser.run("return document.body.innerText")
    assert f"{EMBEDDING} numbers, length 1.000" in shown
    assert "Round trip" in shown
    assert browser.run("return document.getElementById('preview').naturalWidth") > 0
    _send(browser, b"<b>no picture</b>")
    browser.until(f"const text = (() => {{{STATE}}})(); return text.length > 20 && text")
    assert browser.run("return document.getElementById('answer').hidden")
    assert browser.complaints() == []


async def test_a_picture_is_answered_on_the_page(browser: Browser, tmp_path: Path) -> None:
    async with daemon(tmp_path) as served:
        await asyncio.to_thread(_try, browser, f"http://{served.app.http_address}/try")


async def test_a_token_of_the_role_infer_is_enough(browser: Browser, tmp_path: Path) -> None:
    """The browser asks for it, and sends it with the calls of the page too."""
    tokens = token_for_each_role(tmp_path / "tokens")
    async with daemon(tmp_path, AccessConfig(tokens=tmp_path / "tokens")) as served:
        address = served.app.http_address
        assert (await served.get("/try")).status == 401
        headers = {"Authorization": f"Bearer {tokens['read']}"}
        assert (await served.get("/try", headers=headers)).status == 403
        url = f"http://me:{tokens['infer']}@{address}/try"
        await asyncio.to_thread(_try, browser, url)
