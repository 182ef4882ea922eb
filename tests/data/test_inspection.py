"""What an inspection finds, against folders whose content is known."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples.photographs import write_photographs
from multigrain.data.held_out import split
from multigrain.data.image_folder import ImageFolder, scan
from multigrain.data.inspection import inspect
from multigrain.data.inspection_report import Inspection
from tests.images.files import encode, noise


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> ImageFolder:
    root = tmp_path_factory.mktemp("photographs")
    write_photographs(root, each=12, side=96)
    return scan(root)


def jpeg(image: Image.Image, quality: int) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def look(train: ImageFolder, held_out: ImageFolder | None = None, **options: float) -> Inspection:
    return inspect(train, held_out, resolution=int(options.pop("resolution", 64)), **options)  # type: ignore[arg-type]


def test_everything_in_a_folder_is_counted(tmp_path: Path) -> None:
    for name, count in {"many": 20, "few": 2}.items():
        (tmp_path / name).mkdir()
        for number in range(count):
            data = encode(noise(40 + number, 50, seed=100 * count + number), "PNG")
            (tmp_path / name / f"{number}.png").write_bytes(data)
    (tmp_path / "few" / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "few" / "notes.txt").write_text("text")
    (tmp_path / "few" / "old.jp2").write_bytes(b"x")
    (tmp_path / "few" / ".hidden.png").write_bytes(b"x")
    found = look(scan(tmp_path), resolution=50)
    part = found.train
    assert found.held_out is None
    assert (part.images, part.classes) == (23, 2)
    assert part.class_images == {"few": 3, "many": 20}
    assert part.left_out == {"unsupported": 1, "other": 1, "hidden": 1}
    assert (part.checked, part.unreadable) == (23, 1)
    assert part.unreadable_files[0].startswith(f"{tmp_path}/few/broken.jpg (")
    assert (part.shortest, part.longest) == (40, 50)
    # 40 to 49 pixels high: ten of "many" and two of "few".
    assert part.small == 12
    assert part.imbalance == pytest.approx(20 / 3)
    text = "\n".join(found.warnings)
    assert "1 of 23 checked images cannot be read" in text
    assert "12 of 23 checked images are smaller" in text
    assert (
        "23 images in 2 classes (3 to 20 each) to train on; shorter side 40 to 50 px" in found.line
    )
    assert found.fields["unreadable"] == "1"


def test_a_class_of_few_images_is_named(tmp_path: Path) -> None:
    for name, count in {"many": 30, "few": 2}.items():
        (tmp_path / name).mkdir()
        for number in range(count):
            data = encode(noise(8, 8, seed=100 * count + number), "PNG")
            (tmp_path / name / f"{number}.png").write_bytes(data)
    (warning,) = look(scan(tmp_path), resolution=8).warnings
    assert warning == (
        "the largest class, 'many', has 15 times as many images as the smallest, 'few'"
    )


def test_photographs_of_the_same_place_are_no_copies(photographs: ImageFolder) -> None:
    found = look(photographs)
    assert (found.equal.train, found.near.total) == (1, 0)
    assert found.equal.examples == [
        f"{photographs.root}/temple-roof/000 (copy).jpg = {photographs.root}/temple-roof/000.jpg"
    ]


def test_changed_copies_are_found_within_and_across(
    photographs: ImageFolder, tmp_path: Path
) -> None:
    """Compressed again, smaller, brighter; a turned one is another picture."""
    originals = [photographs.root / path for path in photographs.paths[:4]]
    made = tmp_path / "made" / "x"
    made.mkdir(parents=True)
    changed = []
    for number, path in enumerate(originals):
        image = Image.open(path)
        brighter = image.point([min(255, round(1.06 * level)) for level in range(256)] * 3)
        for name, data in {
            "compressed": jpeg(image, 40),
            "smaller": jpeg(image.resize((70, 70)), 85),
            "brighter": jpeg(brighter, 85),
        }.items():
            (made / f"{number}-{name}.jpg").write_bytes(data)
            changed.append(name)
        (made / f"{number}-turned.jpg").write_bytes(jpeg(image.rotate(90), 90))
    other = look(photographs, scan(tmp_path / "made"))
    assert other.near.across == len(changed)
    # The three copies of each original are copies of each other.
    assert (other.near.train, other.near.held_out) == (0, 3 * len(originals))
    assert all(" = " in line and "/made/x/" in line for line in other.near.examples)
    assert any("almost equal images are on both sides" in line for line in other.warnings)
    alone = look(scan(tmp_path / "made"))
    assert (alone.near.train, alone.near.across) == (3 * len(originals), 0)


def test_equal_files_across_folders(photographs: ImageFolder, tmp_path: Path) -> None:
    (tmp_path / "v" / "x").mkdir(parents=True)
    for number in (3, 4):
        (tmp_path / "v" / "x" / f"{number}.jpg").write_bytes(photographs.read(number))
    found = look(photographs, scan(tmp_path / "v"))
    assert (found.equal.train, found.equal.held_out, found.equal.across) == (1, 0, 2)
    # Files that are equal are not reported as almost equal, too.
    assert found.near.total == 0
    parts = split(photographs, 0.4, 0)
    assert look(parts.train, parts.held_out).equal.across == 0


def test_flat_images_of_different_colors_are_no_copies(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for number, color in enumerate(((250, 0, 0), (0, 250, 0), (0, 0, 250))):
        flat = Image.fromarray(np.full((20, 20, 3), color, np.uint8))
        (tmp_path / "a" / f"{number}.png").write_bytes(encode(flat, "PNG"))
    assert look(scan(tmp_path)).near.total == 0


def test_a_large_folder_is_sampled(photographs: ImageFolder) -> None:
    parts = split(photographs, 0.3, 0)
    found = look(parts.train, parts.held_out, images=20)
    assert found.held_out is not None
    assert found.train.checked + found.held_out.checked == 20
    assert min(found.train.checked, found.held_out.checked) > 0
    assert found.near.compared <= 20
    assert found.train.images + found.held_out.images == len(photographs)


def test_without_time_little_is_looked_at(photographs: ImageFolder) -> None:
    found = look(photographs, seconds=0.0)
    assert found.train.checked <= 64
    assert found.equal.compared == 0
