"""Detectron2 is imported only inside ``mosaicbank.detectron2``."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "python" / "mosaicbank"


def imported(path: Path) -> set[str]:
    """Top-level names of the modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_only_our_detectron2_package_imports_detectron2():
    users = {p for p in PACKAGE.rglob("*.py") if {"detectron2", "fvcore"} & imported(p)}
    inside = set((PACKAGE / "detectron2").rglob("*.py"))
    assert users & inside
    assert not users - inside


def test_importing_mosaicbank_imports_no_detectron2():
    code = "import sys, mosaicbank; mosaicbank.Bank; print('detectron2' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
