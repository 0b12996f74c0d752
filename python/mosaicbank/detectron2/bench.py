"""What mosaicbank costs a Detectron2 loader: ``python -m mosaicbank.detectron2.bench``.

Times Detectron2's own loader and ours in turns, with the same mapper on the same images, in this
process (no workers hide anything), and prints the ratio.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np
from detectron2.config import get_cfg
from detectron2.data import build_detection_train_loader, get_detection_dataset_dicts
from PIL import Image

import mosaicbank
from mosaicbank.detectron2 import demo_data
from mosaicbank.detectron2.build import build_mosaic_train_loader
from mosaicbank.detectron2.config import add_mosaic_config

_DATASET = "mosaicbank_bench"


def fill_bank(
    path: Path,
    categories: Sequence[dict[str, Any]],
    pictures: Sequence[Path],
    per_category: int = 4,
) -> None:
    """A bank of mosaics that are pictures of the training set, 384 x 512, with two masks of about a
    sixth of the area each: what they show is as hard to decode as what a model makes."""
    bank = mosaicbank.Bank.create(path, categories, max_uses=0)
    rng = np.random.default_rng(0)
    ys, xs = np.mgrid[0:384, 0:512]
    seed = 0
    for start in range(0, len(categories), 16):
        made = []
        for c in range(start, min(start + 16, len(categories))):
            for _ in range(per_category):
                seed += 1
                with Image.open(pictures[seed % len(pictures)]) as picture:
                    image = np.asarray(picture.convert("RGB").resize((512, 384)))
                masks = []
                for side in (0, 1):
                    cx, cy = 128 + 256 * side, 192
                    rx, ry = rng.uniform(70, 115), rng.uniform(90, 150)
                    wave = 1 + 0.15 * np.sin(5 * np.arctan2(ys - cy, xs - cx))
                    masks.append((((xs - cx) / rx) ** 2 + ((ys - cy) / ry) ** 2) < wave)
                other = (c + seed) % len(categories)
                names = [categories[c]["name"], categories[other]["name"]]
                made.append(
                    {"image": image, "masks": np.stack(masks), "classes": names, "seed": seed}
                )
        bank.put_mosaics(made)


def config(options: argparse.Namespace, bank: Path) -> Any:
    """The usual augmentation of Detectron2's recipes: short edge 640 to 800, flip."""
    cfg = get_cfg()
    add_mosaic_config(cfg)
    cfg.DATASETS.TRAIN = (_DATASET,)
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    cfg.INPUT.MASK_FORMAT = options.mask_format
    cfg.INPUT.MIN_SIZE_TRAIN = (640, 672, 704, 736, 768, 800)
    cfg.MODEL.MASK_ON = True
    cfg.SOLVER.IMS_PER_BATCH = 1
    cfg.SEED = 0
    cfg.MOSAIC.ENABLED = True
    cfg.MOSAIC.BANK = str(bank)
    cfg.MOSAIC.MIX_RATIO = options.mix_ratio
    cfg.MOSAIC.PASTE.ENABLED = options.paste > 0
    cfg.MOSAIC.PASTE.STAGE = options.stage
    # Exactly so many: the upper end is exclusive.
    cfg.MOSAIC.PASTE.MIN_INSTANCES = options.paste
    cfg.MOSAIC.PASTE.MAX_INSTANCES = options.paste + 1
    return cfg


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="mosaicbank.detectron2.bench", description=__doc__)
    made.add_argument("--annotations", type=Path, help="LVIS-style file with images/ beside it")
    made.add_argument("--out", type=Path, default=Path("out/bench-detectron2"))
    made.add_argument("--images", type=int, default=100, help="per turn")
    made.add_argument("--turns", type=int, default=5)
    made.add_argument("--paste", type=int, default=20, help="instances per real image")
    made.add_argument("--stage", choices=("before", "after"), default="before")
    made.add_argument("--mix-ratio", type=float, default=0.1)
    made.add_argument("--mask-format", choices=("polygon", "bitmask"), default="polygon")
    return made


def seconds_per_image(iterator: Any, images: int) -> float:
    """CPU time of the next ``images`` batches of one; other processes do not count."""
    start = time.process_time()
    for _ in itertools.islice(iterator, images):
        pass
    return (time.process_time() - start) / images


def peak_mib() -> float:
    """Most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Measure and print; also writes ``result.json``."""
    options = parser().parse_args(argv)
    logging.getLogger("detectron2").setLevel(logging.WARNING)
    options.out.mkdir(parents=True, exist_ok=True)
    annotations = options.annotations or demo_data.make_training_set(options.out / "data")
    demo_data.register(_DATASET, annotations)
    bank = options.out / f"bank-{os.getpid()}"
    table = json.loads(annotations.read_text())["categories"]
    pictures = sorted((annotations.parent / "images").iterdir())
    fill_bank(bank, [{"id": c["id"], "name": c["name"]} for c in table], pictures)
    cfg = config(options, bank)
    own = iter(
        build_detection_train_loader(
            cfg, dataset=get_detection_dataset_dicts(cfg.DATASETS.TRAIN), sampler=None
        )
    )
    seconds_per_image(own, 5)
    before = peak_mib()
    loader = build_mosaic_train_loader(cfg)
    ours = iter(loader)
    seconds_per_image(ours, 5)
    times: dict[str, list[float]] = {"off": [], "on": []}
    for _ in range(options.turns):
        times["off"].append(seconds_per_image(own, options.images))
        times["on"].append(seconds_per_image(ours, options.images))
    off, on = (statistics.median(times[name]) for name in ("off", "on"))
    result = {
        "off_ms": 1e3 * off,
        "on_ms": 1e3 * on,
        "ratio": on / off,
        "ratios": [b / a for a, b in zip(times["off"], times["on"])],
        "pasted_per_sample": loader.counts.pasted / loader.counts.samples,
        "mosaic_share": loader.counts.mosaics / loader.counts.samples,
        "errors": loader.counts.errors,
        "more_memory_mib": peak_mib() - before,
        "options": {k: str(v) for k, v in vars(options).items()},
    }
    (options.out / "result.json").write_text(json.dumps(result, indent=1))
    print(f"Detectron2's loader   {1e3 * off:7.1f} ms of CPU time per image")
    print(f"with mosaicbank       {1e3 * on:7.1f} ms of CPU time per image, {on / off:.2f} times")
    print(
        f"pasted per sample     {result['pasted_per_sample']:7.1f}; mosaics "
        f"{result['mosaic_share']:.0%}; failures {loader.counts.errors}; "
        f"{result['more_memory_mib']:.0f} MiB more"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
