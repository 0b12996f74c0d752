"""The commands of the bank: import, stats, verify, compact, export."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from bank_helpers import ellipse, make_bank, picture
from mosaicbank import _core
from shared_data import shared


def run(*arguments):
    """The command's status. In a process of its own: it takes over Ctrl-C and SIGTERM."""
    code = "import sys; from mosaicbank import _core; sys.exit(_core.main(sys.argv[1:]))"
    return subprocess.call([sys.executable, "-c", code, *map(str, arguments)])


@pytest.fixture
def dataset(tmp_path):
    """Three images with two objects each, COCO style: (json, images folder, masks by id)."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    folder.mkdir()
    images, annotations, masks = [], [], {}
    for i in range(3):
        pixels = picture(rng, 120, 160)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        images.append({"id": i + 1, "file_name": f"{i}.png", "height": 120, "width": 160})
        for k in range(2):
            mask = np.zeros((120, 160), np.uint8)
            mask[10:70, 5 + 75 * k : 70 + 75 * k] = ellipse(60, 65)
            rle = coco_mask.encode(np.asfortranarray(mask))
            rle["counts"] = rle["counts"].decode()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i + 1,
                    "category_id": 7 if k else 3,
                    "segmentation": rle,
                    "bbox": [5 + 75 * k, 10, 65, 60],
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                }
            )
            masks[annotations[-1]["id"]] = (pixels, mask)
    path = tmp_path / "train.json"
    categories = [{"id": 3, "name": "cup"}, {"id": 7, "name": "spoon"}]
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return path, folder, masks


def test_a_labelled_dataset_becomes_copy_paste(tmp_path, dataset, capfd):
    path, folder, masks = dataset
    arguments = ["import", "--bank", tmp_path / "bank", "--annotations", path, "--images", folder]
    assert run(*arguments) == 0
    bank = _core.Bank.open(str(tmp_path / "bank"))
    assert [c["name"] for c in bank.categories] == ["cup", "spoon"]
    assert bank.stock()["instances"].tolist() == [3, 3]
    got = bank.instance(bank.instance_ids("cup")[0])
    assert got.box == (5, 10, 70, 70)
    image_id = int(got.provenance["model"].split()[1])
    pixels, mask = masks[2 * image_id - 1]
    assert got.area == mask.sum()
    inside = got.alpha > 128
    top, left = 10 - np.nonzero(inside.any(1))[0][0], 5 - np.nonzero(inside.any(0))[0][0]
    h, w = inside.shape
    window = pixels[top : top + h, left : left + w].astype(int)
    assert np.abs(got.image - window).mean() < 4
    # Again: nothing new.
    assert run(*arguments) == 0
    assert "0 records added, 6 were there already" in capfd.readouterr().out
    assert run("import", "--bank", tmp_path / "few", "--per-category", 1, *arguments[3:]) == 0
    assert _core.Bank.open(str(tmp_path / "few")).stock()["instances"].tolist() == [1, 1]


def test_an_instance_pool(tmp_path, dataset, capfd):
    rng = np.random.default_rng(1)
    pool = tmp_path / "pool"
    (pool / "images").mkdir(parents=True)
    rgba = np.dstack([picture(rng, 60, 70), ellipse(60, 70, 4).astype(np.uint8) * 255])
    rgba[0, 0, 3] = 255  # a speck that is not of the largest component
    Image.fromarray(rgba).save(pool / "images" / "a.png")
    Image.fromarray(rgba[:, :, :3]).save(pool / "images" / "b.png")
    Image.fromarray(rgba[:, :, 3]).save(pool / "images" / "b_mask.png")
    (pool / "images" / "bad.png").write_bytes(b"no picture")
    entries = {
        "0": ["*images/a.png", "images/bad.png", "images/none.png"],
        "spoon": ["images/b.png|images/b_mask.png"],
    }
    (pool / "pool.json").write_text(json.dumps(entries))
    arguments = ["import", "--bank", tmp_path / "bank", "--pool", pool / "pool.json"]
    assert run(*arguments) == 1
    assert "--categories" in capfd.readouterr().err
    assert run(*arguments, "--categories", dataset[0]) == 0
    assert "2 records added, 0 were there already, 2 left out" in capfd.readouterr().out
    bank = _core.Bank.open(str(tmp_path / "bank"))
    assert bank.stock()["instances"].tolist() == [1, 1]
    got = bank.instance(bank.instance_ids("cup")[0])
    assert (got.alpha > 128).sum() == got.area == (rgba[:, :, 3] > 0).sum() - 1
    (pool / "pool.json").write_text('{"fork": []}')
    assert run(*arguments) == 1
    assert "fork" in capfd.readouterr().err


def test_stats_verify_compact_and_export(tmp_path, capfd):
    bank = make_bank(tmp_path / "bank", mosaics=4, instances=3)
    _core.draw_mosaic(bank, 0, 1)
    assert run("stats", tmp_path / "bank") == 0
    out = capfd.readouterr().out
    assert "4 mosaics, 11 instances" in out and "thing_0" in out
    assert run("stats", tmp_path / "bank", "--json") == 0
    stats = json.loads(capfd.readouterr().out)
    assert stats["mosaics"] == 4 and stats["categories"][0]["asked"] == 1
    assert run("verify", tmp_path / "bank") == 0
    assert run("compact", tmp_path / "bank", tmp_path / "small") == 0
    assert "15 records copied, 0 damaged" in capfd.readouterr().out
    assert _core.Bank.open(str(tmp_path / "small")).stats()["mosaics"] == 4
    out = tmp_path / "export" / "synthetic.json"
    out.parent.mkdir()
    assert run("export", "--from", tmp_path / "bank", "--out", out) == 0
    data = json.loads(out.read_text())
    assert len(data["images"]) == 4 and len(data["annotations"]) == 8
    for image in data["images"]:
        pixels = np.asarray(Image.open(out.parent / image["file_name"]))
        assert pixels.shape == (image["height"], image["width"], 3)
    names = {c["id"]: c["name"] for c in data["categories"]}
    ids = sorted(bank.mosaic_ids())
    first = next(i for i in data["images"] if ids[0] in i["file_name"])
    mosaic = bank.mosaic(ids[0])
    own = [a for a in data["annotations"] if a["image_id"] == first["id"]]
    assert [names[a["category_id"]] for a in own] == [f"thing_{c}" for c in mosaic.classes]
    for a, mask in zip(own, mosaic.masks):
        assert np.array_equal(coco_mask.decode(a["segmentation"]).astype(bool), mask)


def test_verify_names_what_is_damaged_and_training_goes_on(tmp_path, capfd):
    bank = make_bank(tmp_path / "bank", mosaics=0, instances=20)
    ids = bank.instance_ids()
    del bank
    path = tmp_path / "bank" / "data.mdb"
    data = bytearray(path.read_bytes())
    at = data.rindex(b"MBR1")
    data[at + 600] ^= 0xFF
    path.write_bytes(data)
    assert run("verify", tmp_path / "bank") == 1
    captured = capfd.readouterr()
    bad = captured.out.splitlines()[0].split()[1].rstrip(":")
    assert bad in ids and "wrong checksum" in captured.out and "compact" in captured.err
    bank = _core.Bank.open(str(tmp_path / "bank"))
    with pytest.raises(ValueError, match=bad):
        bank.instance(bad)
    drawn = {bank.draw_instance(i).id for i in range(300)}
    assert drawn == set(ids) - {bad} and bank.stats()["skipped"] > 0
    assert run("compact", tmp_path / "bank", tmp_path / "saved") == 0
    assert run("verify", tmp_path / "saved") == 0
    assert _core.Bank.open(str(tmp_path / "saved")).stats()["instances"] == 19


def test_real_coco_annotations(tmp_path):
    bank = tmp_path / "bank"
    annotations = shared("coco100/train.json")
    arguments = ["import", "--bank", bank, "--annotations", annotations]
    assert run(*arguments, "--images", annotations.parent / "images", "--min-area", 1000) == 0
    opened = _core.Bank.open(str(bank))
    assert opened.stats()["instances"] > 100
    assert opened.verify()["problems"] == [] and opened.verify()["bad"] == []
