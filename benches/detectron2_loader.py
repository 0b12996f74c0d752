"""What mosaicbank costs in Detectron2, as ratios from one run.

    python benches/detectron2_loader.py [--annotations FILE]

Runs in the trainer's environment (Detectron2 and ``mosaicbank``). Times Detectron2's own loader and
ours alternately, with the same mapper on the same images, in this process (no worker hides
anything). Prints the ratio and where our time goes.

``--training 60`` instead trains a small Mask R-CNN on the CPU, one iteration with each loader
alternately, and compares the iteration times and the memory of the workers.
"""

from __future__ import annotations

import argparse
import collections
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
from typing import Any, Callable, Optional

import numpy as np
import torch
from detectron2.config import get_cfg
from detectron2.data import (
    DatasetMapper,
    build_detection_train_loader,
    detection_utils,
    get_detection_dataset_dicts,
)
from detectron2.data import transforms as T
from detectron2.engine import SimpleTrainer
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from PIL import Image

import mosaicbank
from mosaicbank.detectron2 import paste
from mosaicbank.detectron2.build import build_mosaic_train_loader
from mosaicbank.detectron2.config import add_mosaic_config
from mosaicbank.detectron2.hooks import MosaicHook

_ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_ROOT / "python" / "examples"))
import drawings  # noqa: E402
from folders import own_folder  # noqa: E402

_CONFIG = _ROOT / "configs" / "detectron2" / "demo_mask_rcnn_R_18_FPN.yaml"
_DATASET = "mosaicbank_bench"


def fill_bank(
    path: Path,
    categories: Sequence[dict[str, Any]],
    pictures: Sequence[Path],
    per_category: int = 4,
) -> None:
    """A bank whose mosaics are images of the training set, 384 x 512, with two masks of about a
    sixth of the area each: as hard to decode as generated ones."""
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
    """The usual augmentation of Detectron2's configs: short edge 640 to 800, flip."""
    cfg = get_cfg()
    add_mosaic_config(cfg)
    if options.training:
        cfg.merge_from_file(options.config)
        # No weights are loaded: with frozen statistics the network would diverge.
        cfg.MODEL.RESNETS.NORM, cfg.MODEL.BACKBONE.FREEZE_AT = "BN", 0
    cfg.DATASETS.TRAIN = (_DATASET,)
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    cfg.DATALOADER.NUM_WORKERS = options.workers if options.training else 0
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    cfg.INPUT.MASK_FORMAT = options.mask_format
    cfg.INPUT.MIN_SIZE_TRAIN = (
        (options.short_edge,) if options.training else (640, 672, 704, 736, 768, 800)
    )
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.DEVICE = "cpu"
    cfg.SOLVER.IMS_PER_BATCH = 2 if options.training else 1
    cfg.SEED = 0
    cfg.MOSAIC.ENABLED = True
    cfg.MOSAIC.BANK = str(bank)
    cfg.MOSAIC.MIX_RATIO = options.mix_ratio
    cfg.MOSAIC.PASTE.ENABLED = options.paste > 0
    cfg.MOSAIC.PASTE.STAGE = options.stage
    cfg.MOSAIC.ENGINE.SPAWN = False
    # Exactly so many: the upper end is exclusive.
    cfg.MOSAIC.PASTE.MIN_INSTANCES = options.paste
    cfg.MOSAIC.PASTE.MAX_INSTANCES = options.paste + 1
    return cfg


def mapper_of(cfg: Any, options: argparse.Namespace) -> DatasetMapper:
    """Detectron2's mapper with the augmentation of ``--augmentation``."""
    if options.augmentation == "edge":
        return DatasetMapper(cfg, is_train=True)
    side = 1024
    large_scale_jitter = [
        T.ResizeScale(min_scale=0.1, max_scale=2.0, target_height=side, target_width=side),
        T.FixedSizeCrop(crop_size=(side, side)),
        T.RandomFlip(),
    ]
    # Boxes are recomputed from the cropped polygons, as in Detectron2's configs.
    return DatasetMapper(cfg, is_train=True, augmentations=large_scale_jitter, recompute_boxes=True)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--annotations", type=Path, help="LVIS-style file with images/ beside it")
    made.add_argument("--out", type=Path, default=Path("out/bench-detectron2"))
    made.add_argument("--images", type=int, default=100, help="images per turn")
    made.add_argument("--turns", type=int, default=5)
    made.add_argument("--paste", type=int, default=20, help="instances per real image")
    made.add_argument("--stage", choices=("before", "after"), default="before")
    made.add_argument("--mix-ratio", type=float, default=0.1)
    made.add_argument("--mask-format", choices=("polygon", "bitmask"), default="polygon")
    made.add_argument(
        "--augmentation",
        choices=("edge", "lsj"),
        default="edge",
        help="short edge 640 to 800, or large-scale jitter at 1024",
    )
    made.add_argument("--training", type=int, default=0, help="pairs of training iterations")
    made.add_argument("--workers", type=int, default=1, help="of each loader, when training")
    made.add_argument("--short-edge", type=int, default=240, help="px, when training")
    made.add_argument("--config", default=str(_CONFIG))
    return made


def seconds_per_image(iterator: Any, images: int) -> float:
    """CPU time per image over the next ``images`` batches of one, of this process alone."""
    start = time.process_time()
    for _ in itertools.islice(iterator, images):
        pass
    return (time.process_time() - start) / images


def peak_mib() -> float:
    """Peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Clock:
    """CPU seconds by part; parts may be nested."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = collections.defaultdict(float)

    def timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        """``function``, with its time counted as ``part``."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[part] += time.process_time() - start

        return counted

    def watch(self, owner: Any, name: str, part: str) -> None:
        """Count the time of ``owner.name``."""
        setattr(owner, name, self.timed(getattr(owner, name), part))


def workers() -> set[int]:
    """Process ids of this process's children."""
    found: set[int] = set()
    for path in Path("/proc/self/task").glob("*/children"):
        found.update(int(pid) for pid in path.read_text().split())
    return found


def own_mib(pids: set[int], kind: str) -> float:
    """Mean private memory of the processes: all of it with ``Private_`` (USS), or with
    ``Private_Dirty`` without the page cache of files such as the bank."""
    private = []
    for pid in pids:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        private.append(sum(int(x.split()[1]) for x in lines if x.startswith(kind)) / 1024)
    return statistics.fmean(private)


def training(cfg: Any, options: argparse.Namespace) -> int:
    """Train with both loaders alternately, one iteration each, and compare."""
    torch.set_num_threads(1)
    model = build_model(cfg)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    pids: dict[str, set[int]] = {}
    trainers: dict[str, SimpleTrainer] = {}
    loader = build_mosaic_train_loader(cfg)
    records = get_detection_dataset_dicts(cfg.DATASETS.TRAIN)
    for name, made in (
        ("off", build_detection_train_loader(cfg, dataset=records)),
        ("on", loader),
    ):
        before = workers()
        trainers[name] = SimpleTrainer(model, made, optimizer)
        trainers[name].iter = trainers[name].start_iter = 0
        trainers[name].max_iter = options.training + 5
        trainers[name].storage = EventStorage()
        next(trainers[name]._data_loader_iter)
        pids[name] = workers() - before
    hook = MosaicHook(loader)
    hook.trainer = trainers["on"]
    cpu: dict[str, list[float]] = {"off": [], "on": []}
    wall: dict[str, list[float]] = {"off": [], "on": []}
    for i in range(options.training + 5):
        # The first one alternates, so that neither profits from the other's warm caches.
        for name in ("off", "on") if i % 2 else ("on", "off"):
            trainer = trainers[name]
            start = time.process_time(), time.perf_counter()
            with trainer.storage:
                trainer.iter = trainer.storage.iter = i
                trainer.run_step()
                if name == "on":
                    hook.after_step()
            if i >= 5:
                cpu[name].append(time.process_time() - start[0])
                wall[name].append(time.perf_counter() - start[1])
    for what, times in (("CPU time of the trainer", cpu), ("time on the clock", wall)):
        off, on = statistics.median(times["off"]), statistics.median(times["on"])
        print(
            f"{what:24} {1e3 * off:7.1f} ms without {1e3 * on:7.1f} ms with: {off / on:.1%} speed"
        )
    for name in ("off", "on"):
        positive = trainers[name].storage.history("roi_head/num_fg_samples").global_avg()
        print(f"positive proposals per image, {name:3}: {positive:.1f}")
        whole, dirty = (own_mib(pids[name], kind) for kind in ("Private_", "Private_Dirty"))
        print(f"a worker, {name:3}: USS {whole:.0f} MiB, {dirty:.0f} MiB without files' pages")
    counts = loader.counts
    print(
        f"pasted per sample {counts.pasted / counts.samples:.1f}; mosaics "
        f"{counts.mosaics / counts.samples:.0%}; failures {counts.errors}"
    )
    return 0


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Measure, print, and write ``result.json``."""
    options = parser().parse_args(argv)
    logging.getLogger("detectron2").setLevel(logging.WARNING)
    try:
        own_folder(options.out, "detectron2_loader.py")
    except (OSError, ValueError) as error:
        parser().error(f"--out: {error}")
    annotations = options.annotations or drawings.make_training_set(options.out / "data")
    drawings.register(_DATASET, annotations)
    bank = options.out / f"bank-{os.getpid()}"
    table = json.loads(annotations.read_text())["categories"]
    pictures = sorted((annotations.parent / "images").iterdir())
    fill_bank(bank, [{"id": c["id"], "name": c["name"]} for c in table], pictures)
    cfg = config(options, bank)
    if options.training:
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(table)
        return training(cfg, options)
    clock = Clock()
    clock.watch(detection_utils, "read_image", "reading the file")
    clock.watch(paste.Paster, "before", "all of the paste")
    clock.watch(paste.Paster, "after", "all of the paste")
    clock.watch(mosaicbank, "paste", "the paste's core")
    mapper = clock.timed(mapper_of(cfg, options), "the mapper")
    records = get_detection_dataset_dicts(cfg.DATASETS.TRAIN)
    own = iter(build_detection_train_loader(cfg, mapper=mapper, dataset=records, sampler=None))
    seconds_per_image(own, 5)
    before = peak_mib()
    loader = build_mosaic_train_loader(cfg, mapper=mapper, dataset=records)
    ours = iter(loader)
    seconds_per_image(ours, 5)
    times: dict[str, list[float]] = {"off": [], "on": []}
    parts: dict[str, dict[str, float]] = {"off": {}, "on": {}}
    for _ in range(options.turns):
        for name, iterator in (("off", own), ("on", ours)):
            clock.seconds.clear()
            times[name].append(seconds_per_image(iterator, options.images))
            for part, seconds in clock.seconds.items():
                parts[name][part] = parts[name].get(part, 0.0) + seconds
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
        "parts_ms": {
            name: {part: 1e3 * s / options.images / options.turns for part, s in found.items()}
            for name, found in parts.items()
        },
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
    for part in ("the mapper", "reading the file", "all of the paste", "the paste's core"):
        print(
            f"  {part:18} {result['parts_ms']['off'].get(part, 0):7.1f} ms without "
            f"{result['parts_ms']['on'].get(part, 0):7.1f} ms with"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
