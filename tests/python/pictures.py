"""Pictures for the mask tests: seeded synthetic ones, and real ones where the shared data is."""

import json

import numpy as np

from shared_data import shared


def synthetic(height, width, seed, noise=6.0):
    """uint8 ``[height, width, 3]``: a smooth background, a few discs, some noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    picture = np.stack(
        [128 + 90 * np.sin(x / (20 + 7 * k) + k) * np.cos(y / (31 - 3 * k)) for k in range(3)], -1
    )
    for _ in range(5):
        cy, cx = rng.integers(height), rng.integers(width)
        radius = rng.integers(3, max(4, min(height, width) // 3))
        picture[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = rng.integers(0, 256, 3)
    picture = picture + rng.normal(0, noise, picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8)


def blob(height, width, seed):
    """A rough bool mask: an ellipse with a ragged edge."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    cy, cx = height * rng.uniform(0.35, 0.65), width * rng.uniform(0.35, 0.65)
    edge = ((y - cy) / (0.3 * height)) ** 2 + ((x - cx) / (0.3 * width)) ** 2
    return edge + rng.normal(0, 0.15, edge.shape) < 1


def real(count):
    """``count`` real pictures (uint8 RGB) with a coarse mask of their largest object each."""
    import cv2

    path = shared("coco100/train.json")
    data = json.loads(path.read_text())
    for image in data["images"][:count]:
        picture = cv2.imread(str(path.parent / "images" / image["file_name"]))
        own = [a for a in data["annotations"] if a["image_id"] == image["id"]]
        mask = np.zeros(picture.shape[:2], np.uint8)
        if own:
            x, y, w, h = map(int, max(own, key=lambda a: a["area"])["bbox"])
            cv2.ellipse(mask, (x + w // 2, y + h // 2), (w // 3 + 1, h // 3 + 1), 0, 0, 360, 1, -1)
        yield cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), mask > 0
