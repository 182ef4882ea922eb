"""Takes the screenshots of the status pages in ``docs/screenshots/``.

Trains two small models on digits with a daemon of its own, opens its pages in a headless Chromium
at 1280 and 390 px, and writes them as PNGs of 64 colors: ``make screenshots``, about five minutes.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageChops

from examples.demo.digits import write_digits
from multigrain_client import Client

OUT = Path(__file__).resolve().parents[1] / "docs" / "screenshots"
WIDTHS = {"wide": 1280, "narrow": 390}

_SECONDS = 60
_TALL = 12_000
_LONGEST = {"wide": 2600, "narrow": 3000}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="keep the daemon's data here, and use it again")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.data or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        _take(folder)


def _take(folder: Path) -> None:
    digits = folder / "digits"
    if not digits.exists():
        write_digits(digits, 32)
        for part, kept in (("train", 40), ("val", 24)):
            for folder_of_class in (digits / part).iterdir():
                for image in sorted(folder_of_class.iterdir())[kept:]:
                    image.unlink()
    data = folder / "data"
    (data / "address").unlink(missing_ok=True)
    log = folder / "daemon.log"
    with log.open("wb") as file:
        daemon = subprocess.Popen(
            [
                *(sys.executable, "-m", "multigrain_server.main", f"--data-dir={data}"),
                *(f"--data-root={digits}", "--listen=127.0.0.1:0", "--http-listen=127.0.0.1:0"),
                "--log-format=json",
            ],
            stdout=file,
            stderr=file,
        )
    try:
        address = _wait(data / "address", daemon, log)
        http = re.search(r'"http": ?"([^"]+)"', log.read_text())
        assert http is not None, log.read_text()
        with Client(address) as client:
            jobs = _jobs(client, digits)
        first, second = jobs[0], jobs[1]
        paths = {
            "overview": "/?live=0",
            "jobs": "/jobs",
            "run": f"/jobs/{first}",
            "comparison": f"/compare?job={first}&job={second}",
        }
        OUT.mkdir(parents=True, exist_ok=True)
        for name, path in paths.items():
            for shape, width in WIDTHS.items():
                picture = _shot(f"http://{http[1]}{path}", width, folder)
                target = OUT / f"{name}-{width}.png"
                picture = picture.crop((0, 0, width, min(picture.height, _LONGEST[shape])))
                picture.quantize(64).save(target, optimize=True)
                print(f"{target}: {picture.size}, {target.stat().st_size / 1024:.0f} KiB")
    finally:
        daemon.terminate()
        daemon.wait(_SECONDS)


def _jobs(client: Client, digits: Path) -> list[str]:
    """Ids of two training runs, of which the first one has mistakes to show."""
    found = [job.job_id for job in client.jobs(kinds=["training"], states=["succeeded"])]
    for name, rate in (("digits-slow", 0.02), ("digits-fast", 0.1))[len(found) :]:
        job = client.start_training(
            preset="digits-demo",
            name=name,
            labels={"team": "docs"},
            dataset={"train_path": str(digits / "train"), "val_path": str(digits / "val")},
            devices={"count": 1},
            evaluation={"every_epochs": 1},
            optimizer={"kind": "momentum"},
            schedule={"epochs": 6, "learning_rate": {"init": rate}},
            checkpointing={"every_epochs": 1},
        )
        found.append(client.wait(job).job_id)
    return found


def _wait(address: Path, daemon: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline and daemon.poll() is None:
        if address.exists() and (text := address.read_text().strip()):
            return text
        time.sleep(0.1)
    raise SystemExit(f"the daemon did not start:\n{log.read_text()}")


def _shot(url: str, width: int, folder: Path) -> Image.Image:
    """A page of the given width, down to its end."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise SystemExit("Chromium is not installed: apt-get install chromium")
    page = folder / "page.html"
    with urllib.request.urlopen(url, timeout=_SECONDS) as response:
        body = response.read().decode()
    # Headless Chromium's window is at least 500 px wide: a frame in it is as narrow as a phone.
    page.write_text(body)
    frame = folder / "frame.html"
    frame.write_text(
        f"<body style='margin:0'><iframe src='page.html' style='border:0;width:{width}px;"
        f"height:{_TALL}px'></iframe>"
    )
    shot = folder / "shot.png"
    subprocess.run(
        [
            *(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *(f"--screenshot={shot}", f"--window-size={max(width, 600)},{_TALL}"),
            *(f"--user-data-dir={folder / 'chromium'}", f"file://{frame}"),
        ],
        check=True,
        capture_output=True,
        timeout=_SECONDS,
    )
    picture = Image.open(BytesIO(shot.read_bytes())).convert("RGB").crop((0, 0, width, _TALL))
    ground = Image.new("RGB", picture.size, picture.getpixel((0, _TALL - 1)))
    box = ImageChops.difference(picture, ground).getbbox()
    return picture.crop((0, 0, width, min(_TALL, (box[3] if box else 100) + 24)))


if __name__ == "__main__":
    main()
