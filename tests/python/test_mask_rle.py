"""Run-length masks against pycocotools, bit for bit."""

import numpy as np
import pytest
from pycocotools import mask as coco

from mosaicbank import masks

SIZES = [(1, 1), (1, 7), (7, 1), (2, 2), (5, 3), (33, 17), (64, 48), (127, 255), (384, 512)]


def random_masks(h, w, seed):
    rng = np.random.default_rng(seed)
    yield np.zeros((h, w), bool)
    yield np.ones((h, w), bool)
    one = np.zeros((h, w), bool)
    one[rng.integers(h), rng.integers(w)] = True
    yield one
    yield ~one
    for density in (0.02, 0.5, 0.9):
        yield rng.random((h, w)) < density
    cell = max(1, min(h, w) // 4)
    blobs = rng.random((h // cell + 1, w // cell + 1)) < 0.4
    yield np.kron(blobs, np.ones((cell, cell)))[:h, :w] > 0


def reference(mask):
    rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def coco_box(box):
    return [0, 0, 0, 0] if box is None else [box[0], box[1], box[2] - box[0], box[3] - box[1]]


@pytest.mark.parametrize("size", SIZES)
def test_encode_decode_area_box(size):
    for i, mask in enumerate(random_masks(*size, seed=sum(size))):
        expected = reference(mask)
        rle = masks.rle_encode(mask)
        assert rle == expected, (size, i)
        assert masks.rle_area(rle) == coco.area(expected) == mask.sum()
        assert coco_box(masks.rle_box(rle)) == coco.toBbox(expected).tolist()
        decoded = masks.rle_decode(expected)
        assert decoded.dtype == np.bool_ and (decoded == mask).all()
        plain = {"size": list(size), "counts": masks.rle_counts(rle)}
        assert coco.frPyObjects(plain, *size)["counts"].decode() == rle["counts"]
        assert masks.rle_encode(masks.rle_decode(plain)) == rle


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("intersect", [False, True])
def test_merge_and_iou(size, intersect):
    all_masks = list(random_masks(*size, seed=3))
    for a in all_masks:
        for b in all_masks:
            ra, rb = reference(a), reference(b)
            expected = coco.merge([ra, rb], intersect)
            merged = masks.rle_merge([ra, rb], intersect)
            assert merged["counts"] == expected["counts"].decode()
            union = (a | b).sum()
            iou = (a & b).sum() / union if union else 0.0
            assert masks.rle_iou(ra, rb) == pytest.approx(iou, abs=1e-12)


def polygons(rng, h, w, kind):
    n = int(rng.integers(3, 12))
    scale = np.array([w, h])
    if kind == "inside":
        points = rng.random((n, 2)) * scale
    elif kind == "outside":
        points = (rng.random((n, 2)) * 3 - 1) * scale
    elif kind == "integer":
        points = rng.integers(0, max(h, w) + 1, (n, 2)).astype(float)
    elif kind == "fifths":
        points = rng.integers(-5, 5 * max(h, w), (n, 2)) / 5 + rng.choice([0, 0.1], (n, 2))
    elif kind == "repeated":
        points = np.repeat(rng.random((n, 2)) * scale, 2, axis=0)
    else:
        angle = np.sort(rng.random(n)) * 2 * np.pi
        points = scale / 2 + np.stack([np.cos(angle), np.sin(angle)], 1) * scale * 0.45
    return points.ravel().tolist()


@pytest.mark.parametrize("kind", ["inside", "outside", "integer", "fifths", "repeated", "star"])
@pytest.mark.parametrize("size", SIZES)
def test_polygons(size, kind):
    h, w = size
    rng = np.random.default_rng(h * 1000 + w)
    for _ in range(60):
        parts = [polygons(rng, h, w, kind) for _ in range(int(rng.integers(1, 4)))]
        expected = coco.merge(coco.frPyObjects(parts, h, w))
        rle = masks.rle_from_polygons(parts, h, w)
        assert rle == {"size": [h, w], "counts": expected["counts"].decode()}, parts


@pytest.mark.parametrize("size", SIZES[:7])
def test_outlines_draw_the_same_mask_in_pycocotools(size):
    for mask in random_masks(*size, seed=11):
        labels, items = masks.components(mask)
        outlines = masks.rle_to_polygons(masks.rle_encode(mask))
        assert len(outlines) == len(items)
        if not outlines:
            continue
        assert min(map(len, outlines)) >= 6
        drawn = coco.decode(coco.merge(coco.frPyObjects(outlines, *size))).astype(bool)
        # Holes are filled, nothing else changes.
        assert (drawn | mask == drawn).all()
        from scipy import ndimage

        filled = np.zeros_like(mask)
        for item in items:
            filled |= ndimage.binary_fill_holes(labels == item.label, np.ones((3, 3)))
        assert (drawn == filled).all()


@pytest.mark.parametrize("size", SIZES[:7])
def test_components_against_scipy(size):
    from scipy import ndimage

    for mask in random_masks(*size, seed=5):
        labels, items = masks.components(mask)
        expected, count = ndimage.label(mask)
        assert labels.dtype == np.uint32 and len(items) == count
        # The same partition, whatever the numbering.
        pairs = np.unique(np.stack([labels.ravel(), expected.ravel()]), axis=1)
        assert pairs.shape[1] == len(np.unique(expected))
        for item, (ys, xs) in zip(items, ndimage.find_objects(labels.astype(int))):
            assert item.area == (labels == item.label).sum()
            assert tuple(item.box) == (xs.start, ys.start, xs.stop, ys.stop)


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: masks.rle_decode({"size": [4, 5], "counts": "4"}), "add up to 4"),
        (lambda: masks.rle_decode({"size": [4, 5], "counts": [3]}), "add up to 3"),
        (lambda: masks.rle_decode({"size": [4, 5], "counts": b"\xff"}), "character 0"),
        (lambda: masks.rle_decode({"size": [1 << 20, 1 << 20], "counts": ""}), "at most"),
        (lambda: masks.rle_decode({"counts": ""}), "size"),
        (lambda: masks.rle_encode(np.zeros((2, 2, 2))), "[2, 2, 2]"),
        (lambda: masks.rle_from_polygons([[0, 0, 1, 1]], 4, 4), "at least six"),
        (lambda: masks.rle_from_polygons([[0, 0, 1, 1, float("nan"), 2]], 4, 4), "number 4"),
        (lambda: masks.rle_merge([]), "at least one"),
    ],
)
def test_bad_input_says_what_is_wrong(call, says):
    with pytest.raises(ValueError, match=says.replace("[", r"\[")):
        call()
