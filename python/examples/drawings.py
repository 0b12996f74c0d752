"""A small training set of simple drawings, generated on the spot: no downloads, no licences.

Five categories are in many images, three are rare, in two images each. The embedded model knows all
of them, so a bank can supply the rare ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Points = list[tuple[float, float]]

#: By name: LVIS id and number of images.
CATEGORIES: dict[str, tuple[int, int]] = {
    "apple": (12, 30),
    "carrot": (217, 30),
    "doughnut": (387, 25),
    "umbrella": (1133, 25),
    "mushroom": (709, 20),
    "die": (365, 2),
    "hourglass": (574, 2),
    "softball": (983, 2),
}
#: Those in two images.
RARE = ("die", "hourglass", "softball")

WIDTH, HEIGHT = 320, 240
_PICTURES = 48
_BALANCED = 20
_LARGEST = 90
_SMALLEST = 44


def _ellipse(
    x: float, y: float, rx: float, ry: float, start: float = 0, end: float = 360
) -> Points:
    n = max(8, int(abs(end - start) / 12))
    turns = (math.radians(start + (end - start) * i / n) for i in range(n + (end - start < 360)))
    return [(x + rx * math.cos(t), y + ry * math.sin(t)) for t in turns]


def _shade(colour: tuple[int, int, int], by: int) -> tuple[int, ...]:
    return tuple(max(0, min(255, c + by)) for c in colour)


def _draw(draw: Any, name: str, x: float, y: float, s: float, rng: np.random.Generator) -> Points:
    """Draw one object in the square (x, y, x + s, y + s); returns its outline."""
    by = int(rng.integers(-25, 26))

    def at(points: Points) -> Points:
        return [(x + s * px, y + s * py) for px, py in points]

    def fill(points: Points, colour: tuple[int, int, int], shade: bool = True) -> None:
        draw.polygon(at(points), fill=_shade(colour, by if shade else 0))

    if name == "apple":
        outline = _ellipse(0.5, 0.55, 0.42, 0.42)
        fill(outline, (205, 40, 40))
        fill(_ellipse(0.36, 0.42, 0.1, 0.12), (240, 130, 120))
        fill([(0.48, 0.2), (0.52, 0.2), (0.52, 0.34), (0.48, 0.34)], (90, 60, 30))
    elif name == "carrot":
        outline = [(0.2, 0.25), (0.45, 0.08), (0.75, 0.2), (0.9, 0.95), (0.8, 0.98)]
        fill(outline, (235, 125, 30))
        fill([(0.2, 0.25), (0.45, 0.08), (0.42, 0.2), (0.3, 0.3)], (60, 150, 60))
    elif name == "doughnut":
        outline = _ellipse(0.5, 0.5, 0.47, 0.4)
        fill(outline, (190, 130, 70))
        fill(_ellipse(0.5, 0.46, 0.4, 0.32), (230, 120, 170))
        fill(_ellipse(0.5, 0.48, 0.13, 0.1), (110, 70, 40))
    elif name == "umbrella":
        outline = [
            *_ellipse(0.5, 0.5, 0.47, 0.42, 180, 360),
            (0.53, 0.5), (0.53, 0.95), (0.47, 0.95), (0.47, 0.5),
        ]  # fmt: skip
        fill(outline, (90, 60, 160))
        fill([*_ellipse(0.5, 0.5, 0.16, 0.42, 180, 360)], (200, 190, 230))
    elif name == "mushroom":
        outline = [
            *_ellipse(0.5, 0.5, 0.45, 0.4, 180, 360),
            (0.65, 0.5), (0.62, 0.95), (0.38, 0.95), (0.35, 0.5),
        ]  # fmt: skip
        fill(outline, (235, 225, 205))
        fill(_ellipse(0.5, 0.5, 0.45, 0.4, 180, 360), (200, 60, 45))
        fill(_ellipse(0.4, 0.3, 0.07, 0.06), (250, 240, 235))
        fill(_ellipse(0.63, 0.36, 0.06, 0.05), (250, 240, 235))
    elif name == "die":
        outline = [(0.08, 0.08), (0.92, 0.08), (0.92, 0.92), (0.08, 0.92)]
        fill(outline, (240, 240, 235))
        for px, py in [(0.3, 0.3), (0.7, 0.3), (0.5, 0.5), (0.3, 0.7), (0.7, 0.7)]:
            fill(_ellipse(px, py, 0.08, 0.08), (30, 30, 35), shade=False)
    elif name == "hourglass":
        outline = [
            (0.15, 0.05), (0.85, 0.05), (0.85, 0.14), (0.55, 0.5), (0.85, 0.86), (0.85, 0.95),
            (0.15, 0.95), (0.15, 0.86), (0.45, 0.5), (0.15, 0.14),
        ]  # fmt: skip
        fill(outline, (150, 95, 50))
        fill([(0.24, 0.16), (0.76, 0.16), (0.5, 0.46)], (200, 225, 235))
        fill([(0.5, 0.58), (0.76, 0.86), (0.24, 0.86)], (235, 205, 120))
    else:  # softball
        outline = _ellipse(0.5, 0.5, 0.46, 0.46)
        fill(outline, (225, 230, 120))
        for side in (-1, 1):
            arc = at(_ellipse(0.5 + 0.62 * side, 0.5, 0.4, 0.5, 120, 240))
            arc = arc if side > 0 else [(2 * (x + s / 2) - px, py) for px, py in arc]
            draw.line(arc, fill=(190, 50, 50), width=max(1, int(s / 24)))
    return [(min(max(px, 0.0), WIDTH), min(max(py, 0.0), HEIGHT)) for px, py in at(outline)]


def background(rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """A gradient with grain, ``uint8 [240, 320, 3]``."""
    ends = rng.integers(60, 200, (2, 3)).astype(np.float64)
    turn = rng.uniform(0, 2 * math.pi)
    ys, xs = np.mgrid[0:HEIGHT, 0:WIDTH]
    along = (xs / WIDTH - 0.5) * math.cos(turn) + (ys / HEIGHT - 0.5) * math.sin(turn)
    mixed = np.clip(along + 0.5, 0, 1)[..., None]
    grain = rng.normal(0, 6, (HEIGHT, WIDTH, 1))
    pixels = ends[0] * (1 - mixed) + ends[1] * mixed + grain
    return np.asarray(pixels.clip(0, 255), dtype=np.uint8)


def make_training_set(folder: Path, seed: int = 0, balanced: bool = False) -> Path:
    """Draw the images and write an LVIS annotation file.

    Args:
        folder: gets ``train.json`` and ``images/``.
        seed: the same seed gives the same set.
        balanced: every category is in 20 images, for an evaluation.

    Returns:
        the annotation file.
    """
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    counts = {name: _BALANCED if balanced else n for name, (_, n) in CATEGORIES.items()}
    contents = spread(counts, _PICTURES, rng)
    images: list[str] = []
    annotations: list[dict[str, Any]] = []
    for i, names in enumerate(contents):
        picture = Image.fromarray(background(rng))
        draw = ImageDraw.Draw(picture)
        # One object in each of six cells, so that none hides another.
        cells = rng.permutation(6)
        for name, cell in zip(names, cells):
            s = float(rng.integers(_SMALLEST, _LARGEST))
            x = (cell % 3) * WIDTH / 3 + rng.uniform(2, WIDTH / 3 - s - 2)
            y = (cell // 3) * HEIGHT / 2 + rng.uniform(2, HEIGHT / 2 - s - 2)
            outline = _draw(draw, name, x, y, s, rng)
            xs, ys = [p[0] for p in outline], [p[1] for p in outline]
            area = abs(sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in _pairs(outline)) / 2)
            annotations.append(
                {
                    "image_id": i + 1,
                    "category_id": CATEGORIES[name][0],
                    "segmentation": [[round(v, 2) for p in outline for v in p]],
                    "bbox": [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)],
                    "area": area,
                    "iscrowd": 0,
                }
            )
        file_name = f"{i + 1:04}.jpg"
        picture.save(folder / "images" / file_name, quality=92)
        images.append(file_name)
    return write(folder, images, annotations, CATEGORIES)


def spread(counts: Mapping[str, int], pictures: int, rng: np.random.Generator) -> list[list[str]]:
    """Distribute categories over images: each into its number of images, all evenly filled."""
    contents: list[list[str]] = [[] for _ in range(pictures)]
    for name, n in counts.items():
        # Into the images that hold the fewest so far.
        order = sorted(range(pictures), key=lambda i: (len(contents[i]), rng.random()))
        for i in order[:n]:
            contents[i].append(name)
    return contents


def write(
    folder: Path,
    file_names: Sequence[str],
    annotations: Sequence[Mapping[str, Any]],
    table: Mapping[str, tuple[int, int]],
) -> Path:
    """Write an LVIS annotation file, ``train.json``.

    Args:
        folder: with ``images/``.
        file_names: of the images, which get ids from 1.
        annotations: without ids.
        table: LVIS id and number of training images by name.

    Returns:
        the file.
    """
    images = [
        {
            "id": i,
            "file_name": name,
            "coco_url": f"images/{name}",
            "width": WIDTH,
            "height": HEIGHT,
            "neg_category_ids": [],
            "not_exhaustive_category_ids": [],
        }
        for i, name in enumerate(file_names, start=1)
    ]
    numbered = [{"id": i, **a} for i, a in enumerate(annotations, start=1)]
    path = folder / "train.json"
    path.write_text(
        json.dumps({"images": images, "annotations": numbered, "categories": category_table(table)})
    )
    return path


def _pairs(points: Points) -> Any:
    return zip(points, [*points[1:], points[0]])


def category_table(
    table: Mapping[str, tuple[int, int]] = CATEGORIES,
) -> list[dict[str, Any]]:
    """``categories`` of an LVIS annotation file, from id and number of images by name."""
    return sorted(
        (
            {
                "id": dataset_id,
                "name": name,
                "synset": f"{name}.n.01",
                "synonyms": [name],
                "def": "",
                "frequency": "r" if pictures <= 10 else "c" if pictures <= 100 else "f",
                "image_count": pictures,
                "instance_count": pictures,
            }
            for name, (dataset_id, pictures) in table.items()
        ),
        key=lambda row: int(str(row["id"])),
    )


def load(path: Path) -> list[dict[str, Any]]:
    """Load an annotation file with its ``images/`` as Detectron2 dataset dictionaries."""
    from detectron2.structures import BoxMode

    data = json.loads(path.read_text())
    contiguous = _contiguous(data)
    of: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in data["images"]}
    for a in data["annotations"]:
        of[a["image_id"]].append(
            {
                "bbox": a["bbox"],
                "bbox_mode": BoxMode.XYWH_ABS,
                "segmentation": a["segmentation"],
                "category_id": contiguous[a["category_id"]],
                "iscrowd": a["iscrowd"],
            }
        )
    return [
        {
            "file_name": str(path.parent / "images" / image["file_name"]),
            "image_id": image["id"],
            "height": image["height"],
            "width": image["width"],
            "neg_category_ids": image["neg_category_ids"],
            "not_exhaustive_category_ids": image["not_exhaustive_category_ids"],
            "annotations": of[image["id"]],
        }
        for image in data["images"]
    ]


def _contiguous(data: Mapping[str, Any]) -> dict[int, int]:
    return {c["id"]: i for i, c in enumerate(data["categories"])}


def register(name: str, path: Path) -> None:
    """Register an annotation file with Detectron2 under ``name``."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    data = json.loads(path.read_text())
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, lambda: load(path))
    MetadataCatalog.get(name).set(
        thing_classes=[c["name"] for c in data["categories"]],
        thing_dataset_id_to_contiguous_id=_contiguous(data),
        json_file=str(path),
        image_root=str(path.parent / "images"),
        evaluator_type="coco",
    )
