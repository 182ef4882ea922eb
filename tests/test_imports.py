"""The direction of the dependencies, read off the source of every module.

``multigrain.v1`` <- client; ``multigrain`` <- server; and nothing the other way. The client
installs without the library's packages, and the daemon starts without MindSpore.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "multigrain": ROOT / "multigrain",
    "multigrain_server": ROOT / "server" / "multigrain_server",
    "multigrain_client": ROOT / "client" / "multigrain_client",
}
# What the client may take from the library: the stubs, and the version.
CLIENT_MAY = (
    "multigrain.v1",
    "multigrain.__version__",
    "multigrain.addresses",
    "multigrain.bundle.members",
    "multigrain.bundle.tar",
    "multigrain.strict_yaml",
    "multigrain.streams",
    "multigrain.text",
    "multigrain.files",
    "multigrain.fonts",
    "multigrain.data.file_names",
    "multigrain.data.listing",
    "multigrain.images.formats",
    "multigrain.index.clusters",
    "multigrain.index.pairs",
)


@dataclass(frozen=True)
class Import:
    """One imported name: ``from a.b import c`` imports ``a.b.c``."""

    file: str
    line: int
    name: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.name}"


def _imports(source: str, file: str, package: str) -> Iterator[Import]:
    """Every import of a module in ``package``, those inside functions included."""
    for node in ast.walk(ast.parse(source, file)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                kept = parents[: len(parents) - node.level + 1]
                base = ".".join([*kept, *([base] if base else [])])
            for alias in node.names:
                yield Import(file, node.lineno, f"{base}.{alias.name}")


def _package_imports(name: str) -> list[Import]:
    folder = PACKAGES[name]
    found: list[Import] = []
    for path in sorted(folder.rglob("*.py")):
        inside = path.parent.relative_to(folder).parts
        package = ".".join([name, *inside])
        found += _imports(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)), package)
    assert found, f"no imports read in {folder}"
    return found


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def _report(wrong: list[Import]) -> str:
    return "\n".join(str(found) for found in wrong)


@pytest.mark.parametrize("package", ["multigrain_server", "multigrain_client"])
def test_the_daemon_and_the_client_never_import_mindspore(package: str) -> None:
    wrong = [found for found in _package_imports(package) if _within(found.name, "mindspore")]
    assert not wrong, _report(wrong)


def test_the_library_never_imports_the_daemon_or_the_client() -> None:
    wrong = [
        found
        for found in _package_imports("multigrain")
        if _within(found.name, "multigrain_server") or _within(found.name, "multigrain_client")
    ]
    assert not wrong, _report(wrong)


def test_the_library_but_for_its_stubs_knows_no_grpc() -> None:
    wrong = [
        found
        for found in _package_imports("multigrain")
        if _within(found.name, "grpc") and not found.file.startswith("multigrain/v1/")
    ]
    assert not wrong, _report(wrong)


def test_the_daemon_never_imports_the_client() -> None:
    wrong = [
        found
        for found in _package_imports("multigrain_server")
        if _within(found.name, "multigrain_client")
    ]
    assert not wrong, _report(wrong)


def test_the_client_imports_only_light_modules_of_the_library() -> None:
    wrong = [
        found
        for found in _package_imports("multigrain_client")
        if _within(found.name, "multigrain_server")
        or (
            _within(found.name, "multigrain")
            and not any(_within(found.name, allowed) for allowed in CLIENT_MAY)
        )
    ]
    assert not wrong, _report(wrong)


def test_what_the_daemon_takes_from_the_library_brings_no_mindspore_along() -> None:
    """The rule above for imports of imports: in a fresh process, as the daemon does it."""
    names = {
        found.name
        for found in _package_imports("multigrain_server")
        if _within(found.name, "multigrain")
    }
    modules = sorted(module for name in names for module in _modules(name))
    assert "multigrain.errors" in modules
    program = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        "    assert 'mindspore' not in sys.modules, f'{name} imports mindspore'\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr


def _modules(name: str) -> Iterator[str]:
    """The modules that ``import name`` loads: all of its prefixes that are files."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        path = ROOT.joinpath(*parts[:end])
        if path.with_suffix(".py").is_file() or (path / "__init__.py").is_file():
            yield ".".join(parts[:end])


def test_no_module_imports_mindspore_by_a_name_in_a_text() -> None:
    """``importlib.import_module("mindspore")`` would pass by the rules above."""
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for name in ("multigrain_server", "multigrain_client")
        for path in PACKAGES[name].rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__")
        and "mindspore" in ast.unparse(node)
    ]
    assert wrong == []


def test_the_reader_sees_every_form_of_import() -> None:
    source = (
        "import a.b as c, d\n"
        "from e import f\n"
        "def g():\n    from multigrain import spec\n"
        "from . import h\n"
        "from ..i import j\n"
    )
    assert [found.name for found in _imports(source, "x.py", "p.q")] == [
        "a.b",
        "d",
        "e.f",
        "p.q.h",
        "p.i.j",
        "multigrain.spec",
    ]
