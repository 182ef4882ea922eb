"""The demo's output folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from multigrain_client.errors import InvalidRequest, MissingPackage

MARKER = ".multigrain-demo"
MARKER_TEXT = (
    "Written by `python -m examples.demo`; the next run replaces the contents of this folder.\n"
)


class DemoFolder:
    """Paths in the output folder."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.dataset = self.path / "dataset"
        self.data = self.path / "data"
        self.server_log = self.path / "server.log"
        self.contact_sheet = self.path / "contact_sheet.png"
        self.loss_plot = self.path / "loss.png"
        self.summary = self.path / "summary.json"

    def prepare(self) -> bool:
        """Creates or empties the folder and marks it as the demo's.

        Returns:
            whether a previous run was replaced.

        Raises:
            InvalidRequest: if it contains other files, or a previous run still has processes in it.
        """
        marker = self.path / MARKER
        if self.path.exists() and not self.path.is_dir():
            raise InvalidRequest(f"--out {self.path}: is a file, not a folder")
        previous = marker.exists()
        if self.path.exists() and any(self.path.iterdir()) and not previous:
            raise InvalidRequest(
                f"--out {self.path}: contains other files; choose another folder or empty this one"
            )
        if previous:
            self._check_nothing_runs()
            for entry in (self.dataset, self.data):
                shutil.rmtree(entry, ignore_errors=True)
            for entry in (self.server_log, self.contact_sheet, self.loss_plot, self.summary):
                entry.unlink(missing_ok=True)
        self.path.mkdir(parents=True, exist_ok=True)
        marker.write_text(MARKER_TEXT)
        return previous

    def _check_nothing_runs(self) -> None:
        """The daemon and its job outlive a demo that was killed with SIGKILL."""
        pids = processes_of(self.data)
        if pids:
            listed = " ".join(map(str, pids))
            raise InvalidRequest(
                f"--out {self.path}: processes of a previous run are still running (pid {listed}); "
                f"stop them with: kill {listed}"
            )


def processes_of(data: Path) -> list[int]:
    """Pids of processes whose command line names the data directory or a path in it.

    Raises:
        MissingPackage: without psutil.
    """
    try:
        import psutil
    except ImportError as error:
        raise MissingPackage("the demo needs psutil: pip install '.[server,demo]'") from error
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        words = process.info["cmdline"] or []
        if any(word == str(data) or word.startswith(f"{data}/") for word in words):
            found.append(int(process.info["pid"]))
    return found
