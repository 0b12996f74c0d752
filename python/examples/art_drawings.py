"""Scenes of the pictures that the embedded model was trained on, with exact masks.

``python/train_embedded/prepare.py`` makes ``art.zip`` from openly licensed packages. It is not part
of mosaicbank.
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import drawings
import numpy as np

from mosaicbank import masks

#: Categories in many training images.
FREQUENT = (
    "apple",
    "banana",
    "carrot",
    "doughnut",
    "hamburger",
    "mushroom",
    "owl",
    "strawberry",
    "taco",
    "umbrella",
)
#: Categories in two training images each.
RARE = ("boxing_glove", "cassette", "hippopotamus", "race_car", "saxophone", "violin")

_PICTURES = 120
_FREQUENT_PICTURES, _RARE_PICTURES, _BALANCED = 40, 2, 24
_LARGEST, _SMALLEST = 96, 48
# Styles that the embedded model was trained on.
_STYLES = ("fluent3d", "fluent", "twemoji", "noto")
_TURN = 20
_FOREGROUND = 128


def _pictures(art: Path) -> tuple[dict[str, list[Any]], dict[str, int]]:
    """RGBA pictures, and LVIS ids, by category."""
    from PIL import Image

    pictures: dict[str, list[Any]] = {name: [] for name in (*FREQUENT, *RARE)}
    ids: dict[str, int] = {}
    with zipfile.ZipFile(art) as archive:
        for entry in json.loads(archive.read("index.json")):
            name = entry["category"]
            if name in pictures and entry["style"] in _STYLES:
                data = io.BytesIO(archive.read(entry["file"]))
                pictures[name].append(Image.open(data).convert("RGBA"))
                ids[name] = int(entry["category_id"])
    missing = [name for name, found in pictures.items() if not found]
    if missing:
        raise ValueError(f"{art}: expected pictures of {missing[0]!r}, got none")
    return pictures, ids


def _paint(canvas: Any, picture: Any, cell: int, rng: np.random.Generator) -> dict[str, Any]:
    """Draw one object in a cell of the canvas; returns its annotation."""
    from PIL import Image

    side = int(rng.integers(_SMALLEST, _LARGEST))
    turned = picture.rotate(rng.uniform(-_TURN, _TURN), Image.Resampling.BICUBIC, expand=True)
    if rng.random() < 0.5:
        turned = turned.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    turned.thumbnail((side, side))
    w, h = turned.size
    wide, high = drawings.WIDTH // 3, drawings.HEIGHT // 2
    x = cell % 3 * wide + int(rng.integers(0, max(1, wide - w)))
    y = cell // 3 * high + int(rng.integers(0, max(1, high - h)))
    canvas.paste(turned, (x, y), turned)
    solid = np.zeros((drawings.HEIGHT, drawings.WIDTH), dtype=bool)
    solid[y : y + h, x : x + w] = np.asarray(turned)[:, :, 3] >= _FOREGROUND
    rle = masks.rle_encode(solid)
    box = masks.rle_box(rle)
    assert box is not None
    return {
        "segmentation": masks.rle_to_polygons(rle),
        "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
        "area": masks.rle_area(rle),
        "iscrowd": 0,
    }


def make_training_set(folder: Path, art: Path, seed: int = 0, balanced: bool = False) -> Path:
    """Compose the images and write an LVIS annotation file.

    Args:
        folder: gets ``train.json`` and ``images/``.
        art: ``art.zip``.
        seed: the same seed gives the same set.
        balanced: every category is in 24 images, for an evaluation.

    Returns:
        the annotation file.
    """
    from PIL import Image

    rng = np.random.default_rng(seed)
    pictures, ids = _pictures(art)
    counts = dict.fromkeys(FREQUENT, _FREQUENT_PICTURES) | dict.fromkeys(RARE, _RARE_PICTURES)
    if balanced:
        counts = dict.fromkeys(counts, _BALANCED)
    contents = drawings.spread(counts, _PICTURES, rng)
    images, annotations = [], []
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for i, names in enumerate(contents):
        canvas = Image.fromarray(drawings.background(rng))
        for name, cell in zip(names, rng.permutation(6).tolist()):
            choice = pictures[name]
            made = _paint(canvas, choice[int(rng.integers(len(choice)))], cell, rng)
            annotations.append({"image_id": i + 1, "category_id": ids[name], **made})
        file_name = f"{i + 1:04}.jpg"
        canvas.save(folder / "images" / file_name, quality=92)
        images.append(file_name)
    table = {name: (ids[name], n) for name, n in counts.items()}
    return drawings.write(folder, images, annotations, table)
