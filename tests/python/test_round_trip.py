"""A mosaic is the same mosaic wherever it lies: engine, bank, folder, and a bank again."""

from pathlib import Path

import numpy as np
import pytest

import mosaicbank
from commands import command, ok
from mosaicbank import Bank

TABLE = Path(mosaicbank.__file__).parent / "models" / "embedded" / "categories.json"

NAMES = "banana,teapot,carrot"
#: A large bound rejects some regions, so that the ways to keep the others differ.
STRICT = ("--set", "checks.size.min_area=0.2", "--set", "steps=3")


def contents(bank: Bank) -> dict:
    """Everything that a bank knows of its mosaics, by id; pictures apart (they are coded again)."""
    found = {}
    for name in bank.mosaic_ids():
        m = bank.mosaic(name)
        found[name] = {
            "size": (m.height, m.width),
            "seed": m.seed,
            "regions": m.regions,
            "classes": m.classes.tolist(),
            "scores": m.scores.tolist(),
            "named": m.named_scores,
            "boxes": m.boxes.tolist(),
            "masks": np.packbits(m.masks).tobytes(),
            "provenance": m.provenance,
        }
    return found


@pytest.mark.parametrize("keep", ["canvas", "region", "crop"])
def test_engine_bank_export_import_bank(tmp_path, keep):
    first, folder, second = (tmp_path / name for name in ("first", "folder", "second"))
    words = ("--categories", NAMES, "--per-category", "2", "--tries", "6", "--seed", "3")

    done = command("prewarm", "--bank", first, *words, "--set", f"keep={keep}", *STRICT)
    before = contents(Bank.open(str(first)))
    assert before, f"{done.stdout}\n{done.stderr}"
    verdicts = {str(r["verdict"]) for m in before.values() for r in m["regions"]}
    assert "kept" in verdicts
    ok("export", "--from", first, "--format", "mosaics", "--out", folder)
    ok("import", "--bank", second, "--mosaics", folder, "--categories", TABLE)
    after = contents(Bank.open(str(second)))
    assert after.keys() == before.keys()
    for name, mosaic in before.items():
        np.testing.assert_equal(after[name], mosaic)
    # Known mosaics are not taken twice.
    ok("import", "--bank", second, "--mosaics", folder)
    assert contents(Bank.open(str(second))).keys() == before.keys()


def test_generate_and_import_keep_the_id(tmp_path):
    out, bank = tmp_path / "out", tmp_path / "bank"
    words = ("--categories", NAMES + ",pumpkin", "--count", "2", "--seed", "5", "--set", "steps=3")
    ok("generate", *words, "--out", out)
    ids = {path.stem for path in (out / "mosaics").glob("*.json")}
    ok("import", "--bank", bank, "--mosaics", out, "--categories", TABLE)
    assert len(ids) == 2
    assert set(Bank.open(str(bank)).mosaic_ids()) <= ids
    assert len(Bank.open(str(bank)).mosaic_ids()) > 0
