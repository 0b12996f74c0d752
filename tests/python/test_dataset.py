"""Categories, export and merge: what they write loads where it should, and adds up."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from mosaicbank import datasets, masks
from shared_data import shared

NAMES = ["banana", "teapot", "dog", "school_bus"]


def square(height, width, x, y, side):
    mask = np.zeros((height, width), bool)
    mask[y : y + side, x : x + side] = True
    mask[y + 1, x + 1] = False
    return mask


def write_mosaics(folder, count, first=0, regions=4, fail=()):
    """A folder of records as `generate` writes them; region i fails where i is in `fail`."""
    (folder / "mosaics").mkdir(parents=True)
    height, width = 96, 128
    for k in range(first, first + count):
        record = {
            "format": 1,
            "id": f"m{k:04}",
            "file_name": f"m{k:04}.png",
            "height": height,
            "width": width,
            "seed": k,
            "recipe": "ab12",
            "model": "tiny",
            "weights": "cd34",
            "regions": [],
            "instances": [],
        }
        for i in range(regions):
            box = [64 * (i % 2), 48 * (i // 2), 64 * (i % 2) + 64, 48 * (i // 2) + 48]
            name = NAMES[(k + i) % len(NAMES)]
            verdict = "kept" if i not in fail else {"too_many_components": {"found": 2}}
            prompt = f"a photo of a single {name}"
            record["regions"].append(
                {
                    "box": box,
                    "own": box,
                    "prompt": prompt,
                    "subject": [len(prompt) - len(name), len(prompt)],
                    "guidance": 7.5,
                    "category": name,
                    "verdict": verdict,
                }
            )
            if i in fail:
                continue
            mask = square(height, width, box[0] + 3 + k % 5, box[1] + 4, 20 + i)
            rle = masks.rle_encode(mask)
            record["instances"].append(
                {
                    "category": name,
                    "bbox": list(masks.rle_box(rle)),
                    "area": int(mask.sum()),
                    "score": 0.5,
                    "rle": rle,
                    "provenance": {
                        "model": "tiny",
                        "weights": "cd34",
                        "prompt": prompt,
                        "seed": k,
                        "recipe": "ab12",
                        "mosaic": record["id"],
                        "region": i,
                    },
                }
            )
        (folder / "mosaics" / f"m{k:04}.json").write_text(json.dumps(record))
    return folder


def train_file(path, counts=True, **more):
    """A small LVIS style training file whose categories have other ids than 1..n."""
    categories = []
    for i, name in enumerate(["aerosol_can", *NAMES, "bow_(weapon)", "bow_(decorative_ribbons)"]):
        category = {
            "id": 10 + 3 * i,
            "name": name,
            "synset": f"{name}.n.01",
            "def": f"definition of {name}",
            "synonyms": [name, "canine"] if name == "dog" else [name],
            "house": i,
        }
        if counts:
            category.update(
                image_count=5 * i + 1, instance_count=40 * i + 7, frequency="rcf"[i % 3]
            )
        categories.append(category)
    images = [
        {
            "id": 9,
            "coco_url": "http://images.cocodataset.org/train2017/000000000009.jpg",
            "height": 480,
            "width": 640,
            "neg_category_ids": [10],
            "not_exhaustive_category_ids": [],
            "license": 3,
        },
        {"id": 581929, "file_name": "train2017/b.jpg", "height": 10, "width": 12},
    ]
    annotations = [
        {
            "id": 77,
            "image_id": 9,
            "category_id": 13,
            "bbox": [1.25, 2.5, 10.1, 20.0],
            "area": 123.456789012345,
            "segmentation": [[1.25, 2.5, 11.35, 2.5, 11.35, 22.5]],
            "extra": {"a": [1, 2]},
        },
        {
            "id": 1270141,
            "image_id": 581929,
            "category_id": 19,
            "bbox": [0, 0, 4, 4],
            "area": 16,
            "iscrowd": 1,
            "segmentation": {"size": [10, 12], "counts": [0, 4, 116]},
        },
    ]
    data = {
        "info": {"year": 2020},
        "licenses": [{"id": 3}],
        "videos": [],
        "images": images,
        "annotations": annotations,
        "categories": categories,
        **more,
    }
    path.write_text(json.dumps(data, indent=1))
    return path


def load(path):
    return json.loads(Path(path).read_text())


# Categories ------------------------------------------------------------------------------


def test_categories_of_a_file(tmp_path):
    table = datasets.read_categories(train_file(tmp_path / "t.json"))
    assert [c.id for c in table] == [10, 13, 16, 19, 22, 25, 28]
    dog = table[3]
    assert (dog.name, dog.synset, dog.definition) == ("dog", "dog.n.01", "definition of dog")
    assert (dog.frequency, dog.image_count, dog.instance_count) == ("r", 16, 127)


def test_counts_are_taken_from_the_annotations(tmp_path):
    table = datasets.read_categories(train_file(tmp_path / "t.json", counts=False))
    assert {c.name: (c.image_count, c.instance_count) for c in table if c.image_count} == {
        "banana": (1, 1),
        "dog": (1, 1),
    }
    assert {c.frequency for c in table} == {"r"}


@pytest.mark.parametrize("images, band", [(0, "r"), (10, "r"), (11, "c"), (100, "c"), (101, "f")])
def test_frequency_follows_the_image_count(tmp_path, images, band):
    path = tmp_path / "list.json"
    path.write_text(json.dumps([{"id": 1, "name": "a", "image_count": images}]))
    assert datasets.read_categories(path)[0].frequency == band


@pytest.mark.parametrize(
    "name, found",
    [
        ("dog", "dog"),
        ("school_bus", "school_bus"),
        ("school bus", "school_bus"),
        ("School-Bus", "school_bus"),
        ("canine", "dog"),
        ("bow_(weapon)", "bow_(weapon)"),
    ],
)
def test_lookup(tmp_path, name, found):
    assert datasets.find_category(train_file(tmp_path / "t.json"), name).name == found


@pytest.mark.parametrize(
    "name, hint",
    [
        ("bananna", "did you mean banana\\?"),
        ("bow", "did you mean bow_\\(decorative_ribbons\\) or bow_\\(weapon\\)\\?"),
        ("zebra", "7 categories"),
        ("", "7 categories"),
    ],
)
def test_unknown_names_get_suggestions(tmp_path, name, hint):
    with pytest.raises(KeyError, match=hint):
        datasets.find_category(train_file(tmp_path / "t.json"), name)


def test_lvis_categories():
    path = shared("lvis_v1_train_cat_info.json")
    table = datasets.read_categories(path)
    bands = [c.frequency for c in table]
    assert len(table) == 1203
    assert [bands.count(b) for b in "rcf"] == [337, 461, 405]
    assert datasets.find_category(path, "spray can").name == "aerosol_can"
    # The bands that the counts give are LVIS' own.
    bare = [{k: v for k, v in c.items() if k != "frequency"} for c in load(path)]
    other = Path(os.environ.get("PYTEST_TMP", "/tmp")) / f"bare_{os.getpid()}.json"
    try:
        other.write_text(json.dumps(bare))
        assert [c.frequency for c in datasets.read_categories(other)] == bands
    finally:
        other.unlink()


BAD_FILES = [
    ("{", "annotation file"),
    ("", "annotation file"),
    ("[]x", "list of categories"),
    ('{"images": []}', "missing field `categories`"),
    (
        '{"categories": [{"id": 1, "name": "a"}, {"id": "2", "name": "b"}]}',
        r'categories\[1\]: key "id"',
    ),
    ('{"categories": [{"id": 1}]}', r'categories\[0\]: key "name" is missing'),
    ('{"categories": [{"id": 1, "name": "a", "frequency": "x"}]}', 'key "frequency": expected'),
    (
        '{"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
        r'categories\[1\], key "id"',
    ),
    (
        '{"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}',
        r'categories\[1\], key "name"',
    ),
    ('{"categories": [{"id": 1, "name": " "}]}', "an empty one"),
    ('[{"id": 1, "name": "a"}, 7]', r"categories\[1\]: expected an object, got 7"),
    (
        '{"categories": [{"id": 1, "name": "a"}], "annotations": [{"image_id": 1}]}',
        r'annotations\[0\]: key "id"',
    ),
]


@pytest.mark.parametrize("text, says", BAD_FILES)
def test_bad_files_say_where(tmp_path, text, says):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=says) as e:
        datasets.read_categories(path)
    assert "bad.json" in str(e.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.json"):
        datasets.read_categories(tmp_path / "nothing.json")


# Export ----------------------------------------------------------------------------------


def check_annotations(data, decode):
    """Every annotation is valid: not empty, box tight, area right, category known."""
    images = {i["id"]: i for i in data["images"]}
    categories = {c["id"] for c in data["categories"]}
    assert len({a["id"] for a in data["annotations"]}) == len(data["annotations"])
    for a in data["annotations"]:
        image = images[a["image_id"]]
        mask = decode(a)
        assert mask.shape == (image["height"], image["width"])
        ys, xs = np.nonzero(mask)
        assert len(ys) == a["area"] > 0
        box = [xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()]
        assert box == a["bbox"]
        assert a["category_id"] in categories


def counted(data):
    shown = {}
    for a in data["annotations"]:
        shown.setdefault(a["category_id"], []).append(a["image_id"])
    return {c: (len(set(i)), len(i)) for c, i in shown.items()}


@pytest.mark.parametrize("format", ["lvis", "coco"])
def test_export_loads_everywhere(tmp_path, format):
    from pycocotools import coco
    from pycocotools import mask as rle

    folder = write_mosaics(tmp_path / "out", 7)
    table, out = train_file(tmp_path / "t.json"), tmp_path / "synthetic.json"
    report = datasets.export(folder, out, categories=table, format=format)
    assert report == (7, 28, 4, 0)
    data = load(out)
    assert [i["id"] for i in data["images"]] == list(range(1_000_000, 1_000_007))
    assert [i["file_name"] for i in data["images"]][:1] == ["images/m0000.png"]
    assert {c["id"] for c in data["categories"]} == {10, 13, 16, 19, 22, 25, 28}
    check_annotations(data, lambda a: rle.decode(a["segmentation"]))
    api = coco.COCO(str(out))
    for a in api.loadAnns(api.getAnnIds()):
        assert api.annToMask(a).sum() == a["area"]
    if format == "coco":
        assert "neg_category_ids" not in data["images"][0]
        return
    by_id = {c["id"]: c for c in data["categories"]}
    for c, (images, instances) in counted(data).items():
        assert (by_id[c]["image_count"], by_id[c]["instance_count"]) == (images, instances)
    assert (by_id[10]["image_count"], by_id[10]["frequency"]) == (0, "r")
    assert by_id[19]["synonyms"] == ["dog", "canine"] and by_id[19]["def"] == "definition of dog"
    for image in data["images"]:
        assert image["neg_category_ids"] == image["not_exhaustive_category_ids"] == []
    import lvis

    api = lvis.LVIS(str(out))
    for a in api.load_anns(api.get_ann_ids()):
        assert api.ann_to_mask(a).sum() == a["area"]


def test_polygons_are_what_detectron2_asks_for(tmp_path):
    """`load_lvis_json` asserts even lists of at least six numbers, and reads `coco_url`."""
    out = tmp_path / "s.json"
    datasets.export(write_mosaics(tmp_path / "out", 3), out, masks="polygons")
    data = load(out)
    for a in data["annotations"]:
        assert a["segmentation"]
        assert all(len(p) % 2 == 0 and len(p) >= 6 for p in a["segmentation"])
    for image in data["images"]:
        folder, name = image["coco_url"].split("/")[-2:]
        assert f"{folder}/{name}" == image["file_name"]


def test_failed_regions_are_not_exhaustive(tmp_path):
    out = tmp_path / "s.json"
    folder = write_mosaics(tmp_path / "out", 1, fail={1, 3})
    write_mosaics(tmp_path / "none", 1, first=5, fail={0, 1, 2, 3})
    (tmp_path / "none" / "mosaics" / "m0005.json").rename(folder / "mosaics" / "m0005.json")
    assert datasets.export(folder, out) == (1, 2, 2, 1)
    data = load(out)
    ids = {c["name"]: c["id"] for c in data["categories"]}
    assert ids == {"banana": 1, "dog": 2, "school_bus": 3, "teapot": 4}
    assert data["images"][0]["not_exhaustive_category_ids"] == sorted(
        [ids["teapot"], ids["school_bus"]]
    )


def spoil(folder, change, name="m0000"):
    path = folder / "mosaics" / f"{name}.json"
    record = load(path)
    change(record)
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda r: r.update(format=2), "version 1"),
        (lambda r: r.update(colour=2), "unknown field `colour`"),
        (lambda r: r.update(id="../x"), "id: letters"),
        (lambda r: r.update(id="m0009"), "the file's name"),
        (lambda r: r.update(file_name="a/b.png"), "file_name: letters"),
        (lambda r: r.update(height=97), r"instances\[0\].rle"),
        (lambda r: r["instances"][1].update(area=3), r"instances\[1\].area: the mask's area"),
        (lambda r: r["instances"][1].update(bbox=[0, 0, 9, 9]), r"instances\[1\].bbox"),
        (lambda r: r["instances"][2]["rle"].update(counts="0"), "add up to"),
        (lambda r: r["instances"][2]["rle"].update(counts=[96 * 128]), "not empty"),
        (lambda r: r["regions"][0].update(box=[0, 0, 999, 9]), r"regions\[0\].box"),
        (lambda r: r["regions"][0].update(own=[0, 0, 65, 9]), r"regions\[0\].own"),
        (lambda r: r["regions"][0].update(verdict={"nice": {}}), "verdict|variant"),
        (lambda r: r["instances"][0]["provenance"].update(region=9), r"instances\[0\].region"),
        (lambda r: r.pop("seed"), "missing field `seed`"),
    ],
)
def test_bad_records_say_where(tmp_path, change, says):
    folder = write_mosaics(tmp_path / "out", 2)
    spoil(folder, change)
    with pytest.raises(ValueError, match=says) as e:
        datasets.export(folder, tmp_path / "s.json")
    assert "m0000.json" in str(e.value)
    assert not (tmp_path / "s.json").exists()


def test_export_refuses_what_does_not_fit(tmp_path):
    folder, out = write_mosaics(tmp_path / "out", 2), tmp_path / "s.json"
    with pytest.raises(FileNotFoundError, match="mosaicbank generate"):
        datasets.export(tmp_path, out)
    with pytest.raises(ValueError, match="lvis or coco"):
        datasets.export(folder, out, format="voc")
    for bad in ("/images", "../images"):
        with pytest.raises(ValueError, match="below the image root"):
            datasets.export(folder, out, image_folder=bad)
    with pytest.raises(FileNotFoundError):
        datasets.export(folder, tmp_path / "no" / "s.json")
    spoil(folder, lambda r: r["instances"][0].update(category="dgo"))
    with pytest.raises(KeyError, match="did you mean dog"):
        datasets.export(folder, out, categories=train_file(tmp_path / "t.json"))
    spoil(folder, lambda r: r["instances"][0].update(category="dog", category_id=5))
    with pytest.raises(ValueError, match="id 19"):
        datasets.export(folder, out, categories=tmp_path / "t.json")
    assert not out.exists()
    assert list(tmp_path.glob(".*")) == []


# Merge -----------------------------------------------------------------------------------


def exported(tmp_path, name, table=None, **how):
    out = tmp_path / f"{name}.json"
    folder = write_mosaics(tmp_path / name, **how)
    datasets.export(folder, out, categories=table, image_folder=name)
    return out


def test_merge(tmp_path):
    train = train_file(tmp_path / "t.json")
    a = exported(tmp_path, "a", train, count=3)
    # Without a table: other category ids, matched by name.
    b = exported(tmp_path, "b", count=2, first=3, fail={1})
    out = tmp_path / "merged.json"
    report = datasets.merge(train, [a, b], out)
    assert report[:3] == (5, 18, 0)
    before, data = load(train), load(out)
    assert list(data) == list(before)
    # The training records, unknown keys and all, are untouched.
    assert data["images"][:2] == before["images"]
    assert data["annotations"][:2] == before["annotations"]
    assert (data["info"], data["licenses"]) == (before["info"], before["licenses"])
    assert "123.456789012345" in out.read_text()
    assert [i["id"] for i in data["images"][2:]] == list(range(1_000_000, 1_000_005))
    assert [a["id"] for a in data["annotations"][2:]] == list(range(1270142, 1270160))
    added = {**data, "annotations": data["annotations"][2:], "images": data["images"][2:]}
    check_annotations(added, lambda a: masks.rle_decode(a["segmentation"]))
    names = {c["id"]: c["name"] for c in data["categories"]}
    counts = counted(added)
    assert {names[c]: n for c, n in counts.items()} == report.categories
    for old, new in zip(before["categories"], data["categories"]):
        images, instances = counts.get(old["id"], (0, 0))
        old["image_count"] += images
        old["instance_count"] += instances
        assert old == new
    # Category names of the synthetic annotations survive the new ids.
    prompts = {
        (names[a["category_id"]], a["mosaicbank"]["prompt"].split()[-1])
        for a in added["annotations"]
    }
    assert all(name == word for name, word in prompts)
    failed = data["images"][5]["not_exhaustive_category_ids"]
    assert [names[c] for c in failed] == [NAMES[(3 + 1) % 4]]


def test_merging_again_changes_nothing(tmp_path):
    train = train_file(tmp_path / "t.json")
    a = exported(tmp_path, "a", train, count=3)
    once, twice = tmp_path / "once.json", tmp_path / "twice.json"
    datasets.merge(train, [a], once)
    report = datasets.merge(once, [a, a], twice)
    assert report[:3] == (0, 0, 6)
    assert load(once) == load(twice)
    # In place, with some new ones.
    more = exported(tmp_path, "more", train, count=5)
    report = datasets.merge(once, [more], once)
    assert report[:3] == (2, 8, 3)
    assert [i["id"] for i in load(once)["images"][2:]] == list(range(1_000_000, 1_000_005))


def test_merge_into_a_file_without_counts_or_images(tmp_path):
    train = train_file(tmp_path / "t.json", counts=False, images=[], annotations=[])
    a = exported(tmp_path, "a", train, count=2)
    out = tmp_path / "m.json"
    assert datasets.merge(train, [a], out)[:2] == (2, 8)
    data = load(out)
    assert all("image_count" not in c for c in data["categories"])
    assert data["annotations"][0]["id"] == 1


def edit(path, change):
    data = load(path)
    change(data)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    "change, error, says",
    [
        (
            lambda d: d["images"][1].pop("mosaicbank"),
            ValueError,
            r"images\[1\], key \"mosaicbank\"",
        ),
        (lambda d: d["images"][1].update(id=1_000_000), ValueError, r"images\[1\], key \"id\""),
        (
            lambda d: d["images"][1].update(mosaicbank=3),
            ValueError,
            r"images\[1\]: key \"mosaicbank\"",
        ),
        (
            lambda d: d["annotations"][3].update(image_id=4),
            ValueError,
            r"annotations\[3\], key \"image_id\"",
        ),
        (
            lambda d: d["annotations"][3].update(category_id=4),
            ValueError,
            r"annotations\[3\], key \"category_id\"",
        ),
        (lambda d: d["categories"][1].update(name="kiwi"), KeyError, "kiwi"),
        (lambda d: d.pop("annotations"), ValueError, "annotations"),
    ],
)
def test_bad_synthetic_files_are_refused(tmp_path, change, error, says):
    train = train_file(tmp_path / "t.json")
    a = exported(tmp_path, "a", train, count=2)
    edit(a, change)
    with pytest.raises(error, match=says):
        datasets.merge(train, [a], tmp_path / "m.json")
    assert not (tmp_path / "m.json").exists()


def test_merge_refuses_real_files_and_taken_names(tmp_path):
    train = train_file(tmp_path / "t.json")
    with pytest.raises(ValueError, match="--synthetic"):
        datasets.merge(train, [train], tmp_path / "m.json")
    a = exported(tmp_path, "a", train, count=2)
    other = write_mosaics(tmp_path / "other", 2)
    spoil(other, lambda r: r.update(seed=99))
    datasets.export(other, tmp_path / "o.json", image_folder="a")
    with pytest.raises(ValueError, match="--image-folder"):
        datasets.merge(train, [a, tmp_path / "o.json"], tmp_path / "m.json")
    edit(train, lambda d: d["annotations"][0].update(id=-1))
    with pytest.raises(
        ValueError, match=r'annotations\[0\]: key "id": expected a whole number, got -1'
    ):
        datasets.merge(train, [a], tmp_path / "m.json")


def test_merge_with_real_annotations(tmp_path):
    path = shared("coco100/train.json")
    import lvis

    real = load(path)
    names = {c["name"] for c in real["categories"]}
    folder = write_mosaics(tmp_path / "out", 4)
    for k in range(4):
        text = (folder / "mosaics" / f"m{k:04}.json").read_text()
        for old, new in zip(NAMES, ["banana", "cup", "dog", "bus"]):
            assert new in names
            text = text.replace(old, new)
        (folder / "mosaics" / f"m{k:04}.json").write_text(text)
    synthetic, out = tmp_path / "s.json", tmp_path / "m.json"
    datasets.export(folder, synthetic, categories=path, masks="polygons")
    datasets.merge(path, [synthetic], out)
    api = lvis.LVIS(str(out))
    assert len(api.get_img_ids()) == len(real["images"]) + 4
    assert len(api.get_ann_ids()) == len(real["annotations"]) + 16
    for c in api.load_cats(None):
        images = api.cat_img_map[c["id"]]
        assert (c["image_count"], c["instance_count"]) == (len(set(images)), len(images))
