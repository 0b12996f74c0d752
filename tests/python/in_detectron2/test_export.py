"""Detectron2 reads what ``mosaicbank export`` writes."""

from __future__ import annotations

import pytest
from detectron2.data.datasets import load_coco_json
from detectron2.data.datasets.lvis import load_lvis_json

from mosaicbank import _core


@pytest.mark.parametrize(
    "load, arguments",
    [
        (load_coco_json, ["--format", "coco"]),
        (load_coco_json, ["--format", "lvis"]),
        # Detectron2's LVIS reader takes polygons only.
        (load_lvis_json, ["--format", "lvis", "--masks", "polygons"]),
    ],
    ids=["coco", "lvis as coco", "lvis"],
)
def test_detectron2_loads_exports(bank, tmp_path, load, arguments):
    out = tmp_path / "exported" / "train.json"
    command = ["export", "--from", str(bank.path), "--out", str(out), *arguments]
    assert _core.main(command) == 0
    root = out.parent
    dicts = load(str(out), f"{root}/")
    expected = {i: len(bank.mosaic(i).masks) for i in bank.mosaic_ids()}
    assert len(expected) == 12
    assert {d["file_name"] for d in dicts} == {str(p) for p in (root / "images").iterdir()}
    assert sorted(len(d["annotations"]) for d in dicts) == sorted(expected.values())
