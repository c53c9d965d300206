import ast
import sys
from pathlib import Path

import pytest

import models

FILES = sorted(Path(models.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_models_import_only_torch_numpy_and_the_standard_library(path) -> None:
    allowed = sys.stdlib_module_names | {"models", "numpy", "torch"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [node.module or ""]
        else:
            continue
        assert {name.split(".")[0] for name in names} <= allowed
