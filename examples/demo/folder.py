"""The folder that a demo writes to."""

from __future__ import annotations

import shutil
from pathlib import Path

from multigrain_client.errors import InvalidRequest, MissingPackage

MARKER = ".multigrain-demo"
MARKER_TEXT = (
    "Written by `python -m examples.demo`; the next run replaces the contents of this folder.\n"
)


class DemoFolder:
    """Names of everything in it."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.dataset = self.path / "dataset"
        self.data = self.path / "data"
        self.server_log = self.path / "server.log"
        self.contact_sheet = self.path / "contact_sheet.png"
        self.loss_plot = self.path / "loss.png"
        self.summary = self.path / "summary.json"

    def prepare(self) -> bool:
        """Makes the folder empty and marks it as a demo's.

        Returns:
            whether an earlier demo was replaced.

        Raises:
            InvalidRequest: if it holds anything that is not a demo's, or an earlier demo in it
                still runs.
        """
        marker = self.path / MARKER
        if self.path.exists() and not self.path.is_dir():
            raise InvalidRequest(f"--out {self.path}: is a file; name a folder")
        earlier = marker.exists()
        if self.path.exists() and any(self.path.iterdir()) and not earlier:
            raise InvalidRequest(
                f"--out {self.path}: is not empty and not an earlier demo's; name another folder, "
                "or empty this one"
            )
        if earlier:
            self._check_nothing_runs()
            for entry in (self.dataset, self.data):
                shutil.rmtree(entry, ignore_errors=True)
            for entry in (self.server_log, self.contact_sheet, self.loss_plot, self.summary):
                entry.unlink(missing_ok=True)
        self.path.mkdir(parents=True, exist_ok=True)
        marker.write_text(MARKER_TEXT)
        return earlier

    def _check_nothing_runs(self) -> None:
        """A daemon or a job outlives a demo that was killed with SIGKILL."""
        pids = processes_of(self.data)
        if pids:
            listed = " ".join(map(str, pids))
            raise InvalidRequest(
                f"--out {self.path}: processes of an earlier demo still run there (pid {listed}); "
                f"end them with: kill {listed}"
            )


def processes_of(data: Path) -> list[int]:
    """Pids of processes whose command line names the data directory or what is in it.

    Raises:
        MissingPackage: without psutil.
    """
    try:
        import psutil
    except ImportError as error:
        raise MissingPackage(
            "the demo needs psutil: pip install 'multigrain[server,demo]'"
        ) from error
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        words = process.info["cmdline"] or []
        if any(word == str(data) or word.startswith(f"{data}/") for word in words):
            found.append(int(process.info["pid"]))
    return found
