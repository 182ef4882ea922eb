"""What stands in the way of a data directory is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from multigrain_server.data_dir import DataDir, DataDirError


@pytest.mark.parametrize("at", ["data", "data/jobs", "data/models", "data/engines", "."])
@pytest.mark.parametrize("kind", ["file", "broken link"])
def test_a_file_in_place_of_a_folder_is_named(tmp_path: Path, at: str, kind: str) -> None:
    home = tmp_path / "home"
    path = home / at
    path.parent.mkdir(exist_ok=True, parents=True)
    if kind == "file":
        path.write_text("precious")
    else:
        path.symlink_to("nowhere")
    with pytest.raises(DataDirError) as caught:
        DataDir(home / "data")
    message = str(caught.value)
    assert f"{path} is not a folder but a file or a broken link" in message
    assert "give another --data-dir" in message
    assert "File exists" not in message
    assert path.is_symlink() or path.read_text() == "precious"


def test_a_link_to_a_folder_is_a_data_directory(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data").symlink_to("elsewhere")
    DataDir(tmp_path / "data").close()
    assert (tmp_path / "elsewhere" / "jobs").is_dir()
