"""Looking at what a bank holds: show, reproduce, and the exports that other tools load."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

import bank_helpers
from commands import command, ok
from mosaicbank import _core

NAMES = ["teapot", "banana", "wolf"]


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small bank made by the embedded model, one mosaic of each region count."""
    path = tmp_path_factory.mktemp("see") / "bank"
    made = ["--categories", ",".join(NAMES), "--set", "steps=4", "--threads", "1", "--seed", "3"]
    keep = ["--set", 'filter={"components": "each", "min_area": 0.001, "max_area": 1.0}']
    ok("prewarm", "--bank", path, "--per-category", "2", *made, *keep)
    return path


def first(bank: Path) -> str:
    return _core.Bank.open(str(bank)).mosaic_ids()[0]


# -------------------------------------------------------------------------------- reproduce


def test_a_mosaic_is_made_again_bit_for_bit(bank: Path, tmp_path: Path) -> None:
    for id in _core.Bank.open(str(bank)).mosaic_ids():
        report = json.loads(ok("reproduce", "--bank", bank, "--id", id, "--json"))
        assert report["identical"] and report["pixels"] and report["masks"]
        assert report["mask_iou"] == [1.0] * report["instances"]
    said = ok("reproduce", "--bank", bank, "--id", first(bank), "--out", tmp_path / "again")
    assert "pixels:   identical" in said
    picture = np.asarray(Image.open(tmp_path / "again" / f"{first(bank)}.png"), dtype=int)
    kept = _core.Bank.open(str(bank)).mosaic(first(bank)).image
    # The bank's picture is a JPEG.
    assert np.abs(picture - kept).mean() < 4
    assert (tmp_path / "again" / f"{first(bank)}_overlay.png").is_file()


def test_an_instance_leads_to_its_mosaic(bank: Path) -> None:
    opened = _core.Bank.open(str(bank))
    id = opened.instance_ids()[0]
    report = json.loads(ok("reproduce", "--bank", bank, "--id", id, "--json"))
    assert report["id"] in opened.mosaic_ids() and report["identical"]


def test_another_type_is_another_mosaic_and_the_exit_status_says_so(bank: Path) -> None:
    done = command("reproduce", "--bank", bank, "--id", first(bank), "--dtype", "bfloat16")
    assert done.returncode == 1
    assert "pixels:   different" in done.stdout
    assert "float32" in done.stderr and "bfloat16" in done.stderr


def test_what_cannot_be_made_again_is_told(bank: Path, tmp_path: Path) -> None:
    imported = bank_helpers.make_bank(tmp_path / "imported")
    done = command("reproduce", "--bank", imported.path, "--id", imported.mosaic_ids()[0])
    assert done.returncode == 1 and "imported" in done.stderr
    done = command("reproduce", "--bank", bank, "--id", "0" * 32)
    assert done.returncode == 1 and "0" * 32 in done.stderr
    record = _core.Bank.open(str(bank)).mosaic(first(bank))
    recipe = bank / "recipes" / f"{record.provenance[0]['recipe']}.json"
    text = recipe.read_text()
    try:
        recipe.write_text(text.replace('"steps": 4', '"steps": 5'))
        done = command("reproduce", "--bank", bank, "--id", first(bank))
        assert done.returncode == 1 and recipe.name in done.stderr
    finally:
        recipe.write_text(text)


def test_merged_banks_can_reproduce(bank: Path, tmp_path: Path) -> None:
    ok("merge-banks", tmp_path / "merged", bank)
    report = json.loads(
        ok("reproduce", "--bank", tmp_path / "merged", "--id", first(bank), "--json")
    )
    assert report["identical"]


# ------------------------------------------------------------------------------------- show


def test_a_contact_sheet(bank: Path, tmp_path: Path) -> None:
    out = tmp_path / "grid.png"
    ok("show", "--bank", bank, "--n", "4", "--tile", "64", "--columns", "2", "--out", out)
    count = min(4, len(_core.Bank.open(str(bank)).mosaic_ids()))
    rows = -(-count // 2)
    sheet = Image.open(out)
    assert sheet.size == (2 * 68 + 4, rows * 68 + 4)
    plain = tmp_path / "plain.png"
    ok(
        "show",
        "--bank",
        bank,
        "--n",
        "4",
        "--tile",
        "64",
        "--columns",
        "2",
        "--plain",
        "--out",
        plain,
    )
    assert np.asarray(sheet).shape == np.asarray(Image.open(plain)).shape
    assert (np.asarray(sheet) != np.asarray(Image.open(plain))).any()
    again = tmp_path / "again.png"
    ok("show", "--bank", bank, "--n", "4", "--tile", "64", "--columns", "2", "--out", again)
    assert again.read_bytes() == out.read_bytes()


def test_instances_and_categories(bank: Path, tmp_path: Path) -> None:
    said = ok(
        "show", "--bank", bank, "--category", "wolf", "--instances", "--out", tmp_path / "w.png"
    )
    wolves = len(_core.Bank.open(str(bank)).instance_ids("wolf"))
    assert f"{wolves} of {wolves} instances" in said
    done = command("show", "--bank", bank, "--category", "woolf", "--out", tmp_path / "x.png")
    assert done.returncode == 1 and "wolf" in done.stderr
    done = command("show", "--bank", bank, "--category", "apple", "--out", tmp_path / "x.png")
    assert done.returncode == 1 and "prewarm" in done.stderr
    assert not (tmp_path / "x.png").exists()


def test_a_bank_of_instances_alone(tmp_path: Path) -> None:
    alone = bank_helpers.make_bank(tmp_path / "alone", instances=3, mosaics=0)
    said = ok("show", "--bank", alone.path, "--out", tmp_path / "grid.png")
    assert "3 of 3 instances" in said


# ----------------------------------------------------------------------------------- export


def pictures_of(bank: Any) -> dict[str, Any]:
    return {id: bank.mosaic(id) for id in bank.mosaic_ids()}


def test_yolo_polygons_cover_the_masks(bank: Path, tmp_path: Path) -> None:
    opened = _core.Bank.open(str(bank))
    ok("export", "--from", bank, "--format", "yolo", "--out", tmp_path)
    names = [
        json.loads(line.split(": ", 1)[1])
        for line in (tmp_path / "data.yaml").read_text().splitlines()
        if line.startswith("  ")
    ]
    assert names == [c["name"] for c in opened.categories]
    for id, mosaic in pictures_of(opened).items():
        image = np.asarray(Image.open(tmp_path / "images" / f"{id}.png"))
        assert (image == mosaic.image).all()
        height, width = image.shape[:2]
        lines = (tmp_path / "labels" / f"{id}.txt").read_text().splitlines()
        assert len(lines) == len(mosaic.masks)
        for line, mask, category in zip(lines, mosaic.masks, mosaic.classes):
            label, *corners = line.split()
            assert int(label) == category
            points = np.array(corners, dtype=float).reshape(-1, 2)
            assert (points >= 0).all() and (points <= 1).all()
            # Pixel edges to the centres of an eightfold enlargement.
            corner = np.round(points * [width * 8, height * 8]).astype(np.int32)
            canvas = np.zeros((height * 8, width * 8), np.uint8)
            cv2.fillPoly(canvas, [corner], 1)
            drawn = canvas[4::8, 4::8].astype(bool)
            filled = filled_holes(mask)
            assert (drawn != filled).sum() <= 0.01 * filled.sum()


def filled_holes(mask: np.ndarray) -> np.ndarray:
    """COCO's and YOLO's polygons cannot express holes."""
    contours, _ = cv2.findContours(
        np.pad(mask, 1).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    out = np.zeros((mask.shape[0] + 2, mask.shape[1] + 2), np.uint8)
    cv2.drawContours(out, contours, -1, 1, cv2.FILLED)
    return out[1:-1, 1:-1].astype(bool)


def test_webdataset_loads_the_shards(bank: Path, tmp_path: Path) -> None:
    import pycocotools.mask
    import webdataset

    opened = _core.Bank.open(str(bank))
    out = tmp_path / "shards"
    ok("export", "--from", bank, "--format", "webdataset", "--shard-size", "2", "--out", out)
    shards = sorted(out.glob("*.tar"))
    expected = pictures_of(opened)
    assert len(shards) == -(-len(expected) // 2)
    urls = [f"file:{path}" for path in shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert sorted(s["__key__"] for s in samples) == sorted(expected)
    for sample in samples:
        mosaic = expected[sample["__key__"]]
        assert (sample["png"] == mosaic.image).all()
        annotations = sample["json"]["annotations"]
        for annotation, mask in zip(annotations, mosaic.masks):
            found = pycocotools.mask.decode(annotation["segmentation"]).astype(bool)
            assert (found == mask).all() and annotation["area"] == mask.sum()
    with tarfile.open(shards[0]) as archive:
        members = archive.getnames()
    assert [Path(m).suffix for m in members] == [".png", ".json"] * (len(members) // 2)
    again = tmp_path / "again"
    ok("export", "--from", bank, "--format", "webdataset", "--shard-size", "2", "--out", again)
    for path in shards:
        assert (again / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("format", ["lvis", "coco"])
def test_lvis_and_coco_load(bank: Path, tmp_path: Path, format: str) -> None:
    import lvis
    import pycocotools.coco

    out = tmp_path / "annotations.json"
    ok("export", "--from", bank, "--format", format, "--out", out)
    loaded = lvis.LVIS(str(out)) if format == "lvis" else pycocotools.coco.COCO(str(out))
    opened = _core.Bank.open(str(bank))
    expected = pictures_of(opened)
    areas = sorted(int(mask.sum()) for m in expected.values() for mask in m.masks)
    assert sorted(a["area"] for a in loaded.anns.values()) == areas
    assert (
        sorted(
            int(loaded.ann_to_mask(a).sum()) if format == "lvis" else int(loaded.annToMask(a).sum())
            for a in loaded.anns.values()
        )
        == areas
    )
    for image in loaded.imgs.values():
        assert (tmp_path / image["file_name"]).is_file()
    table = {c["id"]: c["name"] for c in opened.categories}
    assert {id: c["name"] for id, c in loaded.cats.items()} == table


def test_generated_folders_are_exported_too(tmp_path: Path) -> None:
    made = ["--set", "steps=2", "--set", "checks.size.components=each"]
    made += ["--set", "checks.size.min_area=0.001"]
    ok(
        "generate",
        "--categories",
        ",".join(NAMES),
        "--count",
        "1",
        "--out",
        tmp_path / "out",
        *made,
    )
    said = ok("export", "--from", tmp_path / "out", "--format", "yolo", "--out", tmp_path / "yolo")
    pictures = list((tmp_path / "yolo" / "images").glob("*.png"))
    assert f"{len(pictures)} images" in said
    for path in pictures:
        assert path.read_bytes() == (tmp_path / "out" / "images" / path.name).read_bytes()


def test_regions_say_how_they_came_to_their_verdict(bank: Path) -> None:
    import pycocotools.mask

    for mosaic in pictures_of(_core.Bank.open(str(bank))).values():
        for region in mosaic.regions:
            x0, y0, x1, y1 = region["box"]
            attention = region["attention"]
            assert attention.dtype == np.uint8 and max(attention.shape) <= 32
            assert attention.max() > 255 * region["threshold"] >= attention.min()
            refined = pycocotools.mask.decode(region["refined"])
            assert refined.shape == (y1 - y0, x1 - x0)
            # The first mask and the refined one are of the same object.
            small = cv2.resize(refined.astype(np.float32), attention.shape[::-1], interpolation=3)
            inside, outside = attention[small > 0.5], attention[small <= 0.5]
            assert not len(inside) or not len(outside) or inside.mean() > outside.mean()
