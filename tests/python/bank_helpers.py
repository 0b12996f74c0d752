"""Synthetic banks for the tests of the trainer's side."""

import numpy as np

from mosaicbank import _core


def ellipse(height, width, margin=0):
    """A filled ellipse, bool [height, width]."""
    y, x = np.mgrid[:height, :width]
    a = (y + 0.5 - height / 2) / max(height / 2 - margin, 0.5)
    b = (x + 0.5 - width / 2) / max(width / 2 - margin, 0.5)
    return a * a + b * b < 1


def picture(rng, height, width):
    """A smooth coloured picture with a little noise, uint8 [height, width, 3]."""
    coarse = rng.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3)).astype(np.float32)
    y = np.linspace(0, coarse.shape[0] - 1.001, height)
    x = np.linspace(0, coarse.shape[1] - 1.001, width)
    y0, x0 = y.astype(int), x.astype(int)
    fy, fx = (y - y0)[:, None, None], (x - x0)[None, :, None]
    top = coarse[y0][:, x0] * (1 - fx) + coarse[y0][:, x0 + 1] * fx
    bottom = coarse[y0 + 1][:, x0] * (1 - fx) + coarse[y0 + 1][:, x0 + 1] * fx
    smooth = top * (1 - fy) + bottom * fy + rng.normal(0, 2, (height, width, 3))
    return np.ascontiguousarray(smooth.clip(0, 255).astype(np.uint8))


def instance(rng, category, low=40, high=120):
    height, width = (int(n) for n in rng.integers(low, high, 2))
    return {
        "image": picture(rng, height, width),
        "alpha": ellipse(height, width, 4).astype(np.uint8) * 255,
        "category": category,
    }


def mosaic(rng, classes, seed, size=(96, 128)):
    """A mosaic with one ellipse per class, side by side."""
    height, width = size
    masks = np.zeros((len(classes), height, width), bool)
    step = width // max(len(classes), 1)
    for i in range(len(classes)):
        masks[i, 4 : height - 4, i * step + 2 : (i + 1) * step - 2] = ellipse(height - 8, step - 4)
    return {
        "image": picture(rng, height, width),
        "masks": masks,
        "classes": list(classes),
        "scores": [0.5 + 0.1 * i for i in range(len(classes))],
        "seed": seed,
        "recipe": "recipe",
        "weights": "weights",
        "model": "test",
    }


def make_bank(path, categories=5, instances=20, mosaics=6, seed=0, **limits):
    rng = np.random.default_rng(seed)
    bank = _core.Bank.create(str(path), [f"thing_{i}" for i in range(categories)], **limits)
    if instances:
        bank.put_instances([instance(rng, i % categories) for i in range(instances)])
    if mosaics:
        bank.put_mosaics(
            [mosaic(rng, [i % categories, (i + 1) % categories], i) for i in range(mosaics)]
        )
    return bank
