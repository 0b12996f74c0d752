"""Pasting against a straightforward whole-canvas version, one run, one core.

    python benches/paste.py [--images DIR] [--repeat 9] [--blend hard]

20 instances (crops of 150 to 400 px) on an 896 x 896 image with 12 objects, masks out as bool
[N, H, W]; both sides read and decode their crops (the bank's records; RGBA PNG files) and place
them by the same rules. There are two plain sides, both with Pillow, OpenCV and numpy:

* *straightforward*: as the public X-Paste code goes about it. The masks are one stack of whole
  canvases; for each pasted instance the composed mask is an integer plane, image and masks are
  recomputed by arithmetic over the whole canvas, and all boxes are taken from the masks again;
* *careful*: the same on whole canvases, but with boolean masks, in float32, and without copies that
  can be avoided.

``--images``: cut the crops and the canvas out of these photographs instead of synthetic
pictures. Prints medians and their ratio, and the parts of ours.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"

import cv2
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "python"))

from bank_helpers import ellipse, picture
from mosaicbank import _core

SIDE, OBJECTS, INSTANCES, CATEGORIES = 896, 12, 20, 10
FRACTION = (0.17, 0.40)  # sides of about 150 to 360 px on the canvas

cv2.setNumThreads(1)


def photographs(folder, rng):
    files = sorted(p for p in Path(folder).iterdir() if p.suffix in (".jpg", ".png"))
    while True:
        image = np.asarray(Image.open(files[rng.integers(len(files))]).convert("RGB"))
        if min(image.shape[:2]) >= 400:
            yield image


def crops(source, rng, n):
    for _ in range(n):
        h, w = (int(v) for v in rng.integers(150, 401, 2))
        if source is None:
            image = picture(rng, h, w)
        else:
            photo = next(source)
            y, x = rng.integers(photo.shape[0] - h + 1), rng.integers(photo.shape[1] - w + 1)
            image = np.ascontiguousarray(photo[y : y + h, x : x + w])
        yield image, ellipse(h, w, 4).astype(np.uint8) * 255


def place(pool, rng, height, width):
    """A random instance, resized, on its own canvas: ``(category, uint8 [H, W, 4])`` or None."""
    category = int(rng.integers(len(pool)))
    rgba = Image.open(pool[category][rng.integers(len(pool[category]))]).convert("RGBA")
    alpha = np.asarray(rgba)[:, :, 3] > 128
    scale = np.sqrt(rng.uniform(*FRACTION) ** 2 * height * width / alpha.sum())
    aspect = np.sqrt(rng.uniform(0.8, 1.2))
    w, h = round(rgba.width * scale * aspect), round(rgba.height * scale / aspect)
    rgba = rgba.resize((w, h), Image.Resampling.BILINEAR)
    if rng.random() < 0.5:
        rgba = rgba.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if w > width or h > height:
        return None
    x = int(rng.integers(-w // 4, width - w + w // 4 + 1))
    y = int(rng.integers(-h // 4, height - h + h // 4 + 1))
    canvas = Image.new("RGBA", (width, height))
    canvas.paste(rgba, (x, y))
    return category, np.asarray(canvas)


def largest(mask):
    """The largest 4-connected component, or None."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        mask.astype(np.uint8), connectivity=4
    )
    return labels == 1 + np.argmax(stats[1:, cv2.CC_STAT_AREA]) if count > 1 else None


def boxes_of_stack(masks):
    boxes = np.zeros((len(masks), 4), dtype=np.float32)
    rows, columns = np.any(masks, axis=2), np.any(masks, axis=1)
    for i in range(len(masks)):
        ys, xs = np.where(rows[i])[0], np.where(columns[i])[0]
        if len(ys) and len(xs):
            boxes[i] = xs[0], ys[0], xs[-1] + 1, ys[-1] + 1
    return boxes


def straightforward(image, masks, boxes, classes, pool, rng):
    """Stacks of whole canvases, recomputed for each instance."""
    height, width = image.shape[:2]
    masks = masks.astype(np.uint8)
    original = boxes.astype(np.float32)
    for _ in range(INSTANCES):
        placed = place(pool, rng, height, width)
        if placed is None:
            continue
        category, canvas = placed
        mask = largest(canvas[:, :, 3] > 128)
        if mask is None:
            continue
        composed = np.where(mask, 1, 0)
        image = image * (1 - composed[:, :, None]) + canvas[:, :, :3] * composed[:, :, None]
        masks = np.where(np.logical_and(masks, 1 - composed), 1, 0)
        boxes = boxes_of_stack(masks)
        moved = np.all(np.abs(boxes - original) <= 10, axis=1)
        areas = masks.sum(axis=(1, 2))
        keep = (moved | (areas > 300)) & (areas > 0)
        masks = np.concatenate([masks[keep], composed[None]])
        original = np.concatenate([original[keep], boxes_of_stack(composed[None])])
        classes = np.concatenate([classes[keep], [category]])
    return image.astype(np.uint8), masks.astype(bool), boxes_of_stack(masks), classes


def careful(image, masks, boxes, classes, pool, rng):
    """Boolean masks one by one, float32, no avoidable copies."""
    height, width = image.shape[:2]
    masks, classes, original = list(masks), list(classes), list(boxes)
    for _ in range(INSTANCES):
        placed = place(pool, rng, height, width)
        mask = largest(placed[1][:, :, 3] > 128) if placed else None
        if mask is None:
            continue
        category, canvas = placed
        image = np.where(mask[:, :, None], canvas[:, :, :3], image)
        masks = [m & ~mask for m in masks] + [mask]
        classes.append(category)
        new, keep = [], []
        for k, m in enumerate(masks):
            ys, xs = np.flatnonzero(m.any(1)), np.flatnonzero(m.any(0))
            if not len(ys):
                keep.append(False)
                new.append(None)
                continue
            box = np.array([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1])
            before = original[k] if k < len(original) else box
            keep.append(np.abs(box - before).max() <= 10 or np.count_nonzero(m) > 300)
            new.append(before)
        masks = [m for m, k in zip(masks, keep) if k]
        classes = [c for c, k in zip(classes, keep) if k]
        original = [b for b, k in zip(new, keep) if k]
    masks = np.stack(masks)
    return image, masks, boxes_of_stack(masks), np.array(classes)


def milliseconds(work, repeat):
    """Wall clock and processor time of each call, in ms."""
    wall, cpu = [], []
    for i in range(repeat):
        a, b = time.perf_counter(), time.thread_time()
        work(i)
        wall.append((time.perf_counter() - a) * 1e3)
        cpu.append((time.thread_time() - b) * 1e3)
    return statistics.median(wall), statistics.median(cpu)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", help="folder of photographs")
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--blend", default="hard")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    source = photographs(args.images, rng) if args.images else None
    with tempfile.TemporaryDirectory() as tmp:
        bank = _core.Bank.create(f"{tmp}/bank", [f"c{i}" for i in range(CATEGORIES)])
        pool = [[] for _ in range(CATEGORIES)]
        records = []
        for i, (image, alpha) in enumerate(crops(source, rng, 10 * CATEGORIES)):
            records.append({"image": image, "alpha": alpha, "category": i % CATEGORIES})
            path = f"{tmp}/{i}.png"
            Image.fromarray(np.dstack([image, alpha])).save(path)
            pool[i % CATEGORIES].append(path)
        bank.put_instances(records)
        if source is None:
            image = picture(rng, SIDE, SIDE)
        else:
            image = np.ascontiguousarray(cv2.resize(next(source), (SIDE, SIDE)))
        masks = np.zeros((OBJECTS, SIDE, SIDE), bool)
        for m in masks:
            h, w = (int(v) for v in rng.integers(60, 400, 2))
            y, x = int(rng.integers(SIDE - h)), int(rng.integers(SIDE - w))
            m[y : y + h, x : x + w] = ellipse(h, w)
        ys, xs = masks.any(2), masks.any(1)
        boxes = np.stack(
            [
                xs.argmax(1),
                ys.argmax(1),
                SIDE - xs[:, ::-1].argmax(1),
                SIDE - ys[:, ::-1].argmax(1),
            ],
            1,
        )
        classes = rng.integers(0, CATEGORIES, OBJECTS)
        drawn = []

        def ours(i, blend=args.blend):
            r = _core.paste(
                image,
                masks,
                boxes,
                classes,
                bank,
                i,
                min_instances=INSTANCES,
                max_instances=INSTANCES,
                size=FRACTION,
                blend=blend,
            )
            drawn.append(len(r.pasted))

        def reference(i, how=straightforward):
            how(image, masks, boxes, classes, pool, np.random.default_rng(i))

        ours(0)
        reference(0)
        mine = milliseconds(ours, args.repeat * 5)
        theirs = milliseconds(reference, max(args.repeat // 3, 3))
        tuned = milliseconds(lambda i: reference(i, careful), max(args.repeat // 3, 3))
        mine_again = milliseconds(ours, args.repeat * 5)
        mine = tuple(min(a, b) for a, b in zip(mine, mine_again))
        decode = milliseconds(
            lambda i: [bank.draw_instance(20 * i + k) for k in range(INSTANCES)], args.repeat * 5
        )
        empty = milliseconds(
            lambda i: _core.paste(image, masks, boxes, classes, bank, i, max_instances=1),
            args.repeat * 5,
        )
        print(
            f"{INSTANCES} instances on {SIDE} x {SIDE} with {OBJECTS} objects, blend {args.blend}"
        )
        print(f"  mosaicbank      {mine[0]:8.1f} ms wall {mine[1]:8.1f} ms processor")
        print(f"    of it: drawing and decoding {decode[1]:.1f}, masks in and out {empty[1]:.1f}")
        for name, (wall, cpu) in (("straightforward", theirs), ("careful", tuned)):
            print(f"  {name:15} {wall:8.1f} ms wall {cpu:8.1f} ms processor")
            print(f"    ratio         {wall / mine[0]:8.1f}         {cpu / mine[1]:8.1f}")
        for blend in ("hard", "alpha", "gaussian", "poisson"):
            wall, cpu = milliseconds(lambda i, b=blend: ours(i, b), args.repeat)
            print(f"  blend {blend:9} {wall:8.1f} ms wall {cpu:8.1f} ms processor")


if __name__ == "__main__":
    main()
