"""Imports run one way: stages -> models and pipeline, which know neither each other nor a stage; no stage another."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGES = ("pipeline", "models", "stages")
FORBIDDEN = {"pipeline": {"models", "stages"}, "models": {"pipeline", "stages"}, "stages": set[str]()}
TORCH_ONLY = {"torch", "numpy", "models"}


def imported(source: str) -> Iterator[str]:
    """Full names of the modules that a piece of source imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield f"{node.module}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(package: str, module: str, source: str, stages: set[str]) -> list[str]:
    """Imports of ``module`` (in ``package``) against the layers."""
    names = set(imported(source))
    wrong = [name for name in names if name.split(".")[0] in FORBIDDEN[package]]
    if package == "stages":
        wrong += [name for name in names if name in stages and name != f"stages.{module}"]
    return sorted(wrong)


def sources(root: Path) -> list[tuple[str, Path]]:
    return [(package, path) for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]


def test_imports_run_one_way(root: Path) -> None:
    files = sources(root)
    stages = {f"stages.{path.stem}" for package, path in files if package == "stages" and path.stem != "__init__"}
    assert len(files) > 20
    assert len(stages) >= 8
    found = {
        str(path.relative_to(root)): wrong
        for package, path in files
        if (wrong := violations(package, path.stem, path.read_text(), stages))
    }
    assert found == {}


def test_models_need_torch_alone(root: Path) -> None:
    import sys

    known = TORCH_ONLY | set(sys.stdlib_module_names)
    tops = {name.split(".")[0] for path in (root / "models").rglob("*.py") for name in imported(path.read_text())}
    assert tops <= known


@pytest.mark.parametrize(
    ("package", "module", "source"),
    [
        ("pipeline", "plan", "from models.atw import ATW"),
        ("pipeline", "plan", "def f():\n    import stages.flow"),
        ("models", "atw", "import pipeline.config"),
        ("stages", "flow", "from stages.frames import main"),
        ("stages", "flow", "from stages import frames"),
    ],
)
def test_the_check_finds_a_violation(package: str, module: str, source: str) -> None:
    assert violations(package, module, source, {"stages.flow", "stages.frames"})


def test_every_package_is_listed(root: Path) -> None:
    import tomllib

    listed = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    on_disk = {".".join(path.parent.relative_to(root).parts) for _, path in sources(root)}
    assert set(listed) == on_disk
