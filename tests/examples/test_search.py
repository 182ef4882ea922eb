from __future__ import annotations

from pathlib import Path

import pytest

from examples import search
from tests.client.fake_server import FakeServer


def test_search_prints_the_most_similar_images_first(
    server: FakeServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # The fake server's embedding is the first eight bytes of the file, divided by 255.
    gallery = tmp_path / "gallery"
    gallery.mkdir()
    (gallery / "same.png").write_bytes(b"\xff" + bytes(7))
    (gallery / "near.jpg").write_bytes(b"\x99" + bytes(7))
    (gallery / "other.png").write_bytes(bytes(7) + b"\xff")
    (gallery / "broken.png").write_bytes(b"bad")
    (gallery / "notes.txt").write_bytes(b"\xff" + bytes(7))
    query = tmp_path / "query.png"
    query.write_bytes(b"\xff" + bytes(7))
    command = ["search", str(gallery), str(query), "--server", server.address, "--count", "3"]
    monkeypatch.setattr("sys.argv", command)
    search.main()
    assert capsys.readouterr().out.splitlines() == [
        f"1.000  {gallery / 'same.png'}",
        f"0.600  {gallery / 'near.jpg'}",
        f"0.000  {gallery / 'other.png'}",
    ]
