"""Data sets of others that some tests read, and how to get them.

They are in ``../shared/data`` beside the repository, or in ``data`` under ``MOSAICBANK_SHARED``.
Tests that need one that is missing are skipped; the reason says what is expected where.

    python tests/python/shared_data.py --coco DIR

writes ``coco100``: the first hundred images of COCO's train2017 with their polygons, as an
LVIS-style file. ``DIR`` holds ``annotations/instances_train2017.json`` and ``train2017/`` from
https://cocodataset.org/#download. COCO's terms apply.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(os.environ.get("MOSAICBANK_SHARED", Path(__file__).resolve().parents[3] / "shared"))
HOW_TO_GET = {
    "coco100/train.json": (
        "100 COCO images and polygons; `python tests/python/shared_data.py --coco DIR` writes them"
    ),
    "lvis_v1_train_cat_info.json": (
        "LVIS's categories; the list under `categories` of lvis_v1_train.json (lvisdataset.org)"
    ),
}
IMAGES = 100


def shared(name: str) -> Path:
    """The file ``name`` of :data:`HOW_TO_GET`. Skips the test where it is missing."""
    path = SHARED / "data" / name
    if not path.is_file():
        pytest.skip(
            f"expected {path} ({HOW_TO_GET[name]}; MOSAICBANK_SHARED names another folder than "
            f"{SHARED})"
        )
    return path


def coco100(instances: Mapping[str, Any]) -> dict[str, Any]:
    """The first images of a COCO instances file in LVIS v1 form.

    Crowd regions are left out. The frequency bands are scaled to the size of the file: r up to 2
    images, c up to 10, f above.
    """
    chosen = sorted(instances["images"], key=lambda image: image["id"])[:IMAGES]
    ids = {image["id"] for image in chosen}
    annotations = [a for a in instances["annotations"] if a["image_id"] in ids and not a["iscrowd"]]
    annotations.sort(key=lambda a: (a["image_id"], a["id"]))
    categories = []
    for c in instances["categories"]:
        name = c["name"].replace(" ", "_")
        shown = [a["image_id"] for a in annotations if a["category_id"] == c["id"]]
        images = len(set(shown))
        categories.append(
            {
                "id": c["id"],
                "name": name,
                "synonyms": [name],
                "synset": "",
                "def": "",
                "image_count": images,
                "instance_count": len(shown),
                "frequency": "r" if images <= 2 else "c" if images <= 10 else "f",
            }
        )
    kept = ("image_id", "category_id", "segmentation", "area", "bbox", "iscrowd")
    return {
        "info": {"description": "100 COCO 2017 images, polygons, in LVIS v1 form"},
        "licenses": [],
        "images": [
            {
                **{key: image[key] for key in ("id", "file_name", "coco_url", "width", "height")},
                "neg_category_ids": [],
                "not_exhaustive_category_ids": [],
            }
            for image in chosen
        ],
        "annotations": [
            {"id": i, **{key: a[key] for key in kept}} for i, a in enumerate(annotations, start=1)
        ],
        "categories": categories,
    }


def main() -> None:
    """Write ``coco100``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--coco", type=Path, required=True, help="a copy of COCO 2017")
    parser.add_argument("--out", type=Path, default=SHARED / "data" / "coco100")
    options = parser.parse_args()
    source = options.coco / "annotations" / "instances_train2017.json"
    data = coco100(json.loads(source.read_text(encoding="utf-8")))
    (options.out / "images").mkdir(parents=True, exist_ok=True)
    for image in data["images"]:
        name = image["file_name"]
        shutil.copyfile(options.coco / "train2017" / name, options.out / "images" / name)
    (options.out / "train.json").write_text(json.dumps(data), encoding="utf-8")
    print(f"{options.out}: {len(data['images'])} images, {len(data['annotations'])} polygons")


if __name__ == "__main__":
    main()
