"""What the documents say of the code is what the code says of itself."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def load_config_module() -> ModuleType:
    """`mosaicbank.detectron2.config` alone: the package around it imports Detectron2."""
    path = ROOT / "python" / "mosaicbank" / "detectron2" / "config.py"
    spec = importlib.util.spec_from_file_location("mosaic_config", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_config_table_is_the_codes():
    config = load_config_module()
    rows = [
        f"| `{key}` | `{default}` | {accepts} | {meaning} |"
        for key, default, accepts, meaning in config.describe()
    ]
    text = (ROOT / "configs" / "README.md").read_text(encoding="utf-8")
    written = [line for line in text.splitlines() if line.startswith("| `MOSAIC.")]
    assert len(rows) > 30
    assert written == rows


def test_the_recipe_keys_of_python_are_those_of_rust():
    from mosaicbank.generator import RECIPE_KEYS

    source = (ROOT / "src" / "recipe" / "mod.rs").read_text(encoding="utf-8")
    body = source.split("pub struct Recipe {", 1)[1].split("\n}", 1)[0]
    fields = [
        line.strip().removeprefix("pub ").split(":", 1)[0]
        for line in body.splitlines()
        if line.strip().startswith("pub ")
    ]
    assert tuple(fields) == RECIPE_KEYS


def test_the_files_that_the_readme_names_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [part.split(")", 1)[0] for part in text.split("](")[1:]]
    links += [part.split('"', 1)[0] for part in text.split('src="')[1:]]
    local = [link for link in links if "://" not in link]
    assert local
    for link in local:
        assert (ROOT / link).exists(), link
