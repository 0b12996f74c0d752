"""Does it help? AP with and without mosaicbank.

    python python/examples/detectron2_experiment.py [--art art.zip] [--engine-python PYTHON]

Trains a small Mask R-CNN from scratch on a long-tailed set of drawings, with the same schedule and
seeds in two arms: Detectron2's repeat-factor sampling alone, and with mosaics and pasted instances
from a prewarmed bank. Evaluates on a balanced set of other drawings and prints AP.

With ``--art art.zip`` (of ``python/train_embedded/prepare.py``) the objects are the drawings that
the embedded model was trained on, as a model for photographs knows the world of its training set;
six of sixteen categories are in two training images each. Without it, the objects are the drawings
of ``make demo`` (three of eight), in a style that the embedded model has never seen.

Run again in the same ``--out`` with the same options, it resumes; at most a tenth of one training
is repeated.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import art_drawings
import drawings
from detectron2.config import get_cfg
from detectron2.utils.env import seed_all_rng
from detectron2_demo import CONFIG, log_to, say, which_detectron2
from folders import own_folder

from mosaicbank.detectron2.config import add_mosaic_config
from mosaicbank.detectron2.evaluation import category_ap
from mosaicbank.detectron2.trainer import MosaicTrainer

ARMS = ("without", "with")
_TRAIN, _VAL = "mosaicbank_experiment_train", "mosaicbank_experiment_val"
_VAL_SEED = 1_000_003
# Options that do not change the result of a run.
_FREE = ("out", "engine_python", "seeds")


@dataclasses.dataclass(frozen=True)
class Material:
    """The drawings: annotation files, and which categories are in few training images."""

    train: Path
    val: Path
    names: tuple[str, ...]
    rare: tuple[str, ...]


def material(options: argparse.Namespace) -> Material:
    """Draw the training and the validation set, and register them."""
    train, val = options.out / "train", options.out / "val"
    if options.art is None:
        made = Material(
            drawings.make_training_set(train),
            drawings.make_training_set(val, _VAL_SEED, balanced=True),
            tuple(drawings.CATEGORIES),
            drawings.RARE,
        )
    else:
        made = Material(
            art_drawings.make_training_set(train, options.art),
            art_drawings.make_training_set(val, options.art, _VAL_SEED, balanced=True),
            (*art_drawings.FREQUENT, *art_drawings.RARE),
            art_drawings.RARE,
        )
    drawings.register(_TRAIN, made.train)
    drawings.register(_VAL, made.val)
    return made


def config(options: argparse.Namespace, data: Material, arm: str, seed: int, bank: Path) -> Any:
    """The demo's model, trained longer and evaluated at the end."""
    cfg = get_cfg()
    add_mosaic_config(cfg)
    cfg.merge_from_file(options.config)
    cfg.SEED = seed
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (_TRAIN,), (_VAL,)
    cfg.MODEL.DEVICE = options.device
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(data.names)
    edge = options.short_edge
    cfg.INPUT.MIN_SIZE_TRAIN = (edge * 6 // 7, edge, edge * 8 // 7)
    cfg.INPUT.MIN_SIZE_TEST = edge
    cfg.SOLVER.MAX_ITER = options.iterations
    cfg.SOLVER.STEPS = (options.iterations * 3 // 4,)
    cfg.SOLVER.WARMUP_ITERS = options.iterations // 10
    cfg.SOLVER.BASE_LR = options.lr
    cfg.SOLVER.IMS_PER_BATCH = options.batch
    # In both arms: from scratch, with a short warm-up, a run may diverge.
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "norm"
    cfg.SOLVER.CHECKPOINT_PERIOD = max(1, options.iterations // 10)
    cfg.OUTPUT_DIR = str(options.out / f"{arm}-{seed}")
    cfg.MOSAIC.ENABLED = arm == "with"
    cfg.MOSAIC.BANK = str(bank)
    cfg.MOSAIC.MIX_RATIO = options.mix_ratio
    cfg.MOSAIC.ENGINE.SPAWN = False
    cfg.MOSAIC.FEEDBACK = False
    cfg.MOSAIC.PASTE.MIN_INSTANCES = 0
    cfg.MOSAIC.PASTE.MAX_INSTANCES = 4
    cfg.MOSAIC.PASTE.CATEGORIES = list(data.rare)
    cfg.freeze()
    return cfg


def scores(results: Mapping[str, Any], rare_names: Sequence[str]) -> dict[str, float]:
    """AP, AP_r and AP_f, percent, of masks."""
    _, per_category = category_ap(results)
    rare = [per_category[name] for name in rare_names]
    return {
        "AP": float(results["segm"]["AP"]),
        "AP_r": statistics.fmean(rare),
        "AP_f": statistics.fmean(ap for n, ap in per_category.items() if n not in rare_names),
    }


def one_run(
    options: argparse.Namespace, data: Material, arm: str, seed: int, bank: Path
) -> dict[str, float]:
    """Train and evaluate one arm with one seed."""
    cfg = config(options, data, arm, seed, bank)
    Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    seed_all_rng(seed)  # the initial weights are the same in both arms
    trainer = MosaicTrainer(cfg)
    trainer.resume_or_load(resume=True)
    trainer.train()
    return scores(trainer._last_eval_results, data.rare)


def finished(results: Path, settings: Mapping[str, str]) -> list[dict[str, Any]]:
    """The runs that ``results`` already holds.

    Raises:
        ValueError: they were made with other options.
    """
    if not results.exists():
        return []
    before = json.loads(results.read_text())
    if before["options"] != settings:
        raise ValueError(
            f"{results}: expected runs with {settings}, got {before['options']}\n"
            "  give another --out, or the same options to resume"
        )
    return list(before["runs"])


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--out", type=Path, default=Path("out/experiment"))
    made.add_argument("--art", type=Path, help="art.zip of python/train_embedded/prepare.py")
    made.add_argument("--engine-python", default="", help="Python that has the engine")
    made.add_argument("--config", default=str(CONFIG))
    made.add_argument("--model", default="embedded")
    made.add_argument("--device", default="cpu", help="of the trainer")
    made.add_argument("--iterations", type=int, default=400)
    made.add_argument("--batch", type=int, default=4)
    made.add_argument("--short-edge", type=int, default=224, help="of the pictures, in pixels")
    made.add_argument("--lr", type=float, default=0.01)
    made.add_argument("--seeds", type=int, default=3)
    made.add_argument("--mix-ratio", type=float, default=0.1)
    made.add_argument("--per-category", type=int, default=25, help="mosaics in the bank")
    return made


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run everything and print a table; ``results.json`` grows with every run."""
    options = parser().parse_args(argv)
    try:
        out = options.out = own_folder(options.out.resolve(), "detectron2_experiment.py")
    except (OSError, ValueError) as error:
        parser().error(f"--out: {error}")
    log_to(out / "detectron2.log")
    say(which_detectron2())
    data = material(options)
    bank = out / "bank"
    subprocess.run(
        [
            options.engine_python or sys.executable, "-m", "mosaicbank", "prewarm",
            "--bank", str(bank), "--annotations", str(data.train), "--model", options.model,
            "--categories", ",".join(data.rare),
            "--per-category", str(options.per_category),
        ],
        check=True,
    )  # fmt: skip
    settings = {n: str(value) for n, value in vars(options).items() if n not in _FREE}
    results = out / "results.json"
    runs = finished(results, settings)

    def keep() -> None:
        results.write_text(json.dumps({"options": settings, "runs": runs}, indent=1))

    keep()
    for seed in range(1, options.seeds + 1):
        for arm in ARMS:
            run: Optional[dict[str, Any]] = next(
                (r for r in runs if (r["arm"], r["seed"]) == (arm, seed)), None
            )
            if run is None:
                start = time.monotonic()
                run = {"arm": arm, "seed": seed, **one_run(options, data, arm, seed, bank)}
                run["seconds"] = time.monotonic() - start
                runs.append(run)
                keep()
            say(
                f"{arm:8} seed {seed}: AP {run['AP']:5.1f}  AP_r {run['AP_r']:5.1f}  "
                f"AP_f {run['AP_f']:5.1f}  ({run['seconds']:.0f} s)"
            )
    say()
    say(f"{'':8} {'AP':>14} {'AP_r':>14} {'AP_f':>14}   mean and standard deviation")
    for arm in ARMS:
        row = []
        for name in ("AP", "AP_r", "AP_f"):
            values = [run[name] for run in runs if run["arm"] == arm]
            spread = statistics.stdev(values) if len(values) > 1 else float("nan")
            row.append(f"{statistics.fmean(values):6.1f} +- {spread:4.1f}")
        say(f"{arm:8} " + " ".join(f"{cell:>14}" for cell in row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
