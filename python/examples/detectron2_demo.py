"""A whole run on one small machine: ``make demo``.

Draws a small training set, fills a bank with the embedded model, and trains a small Mask R-CNN in
Detectron2 with mosaics and pasted instances while an engine keeps filling the bank. Then prints
what happened, and leaves pictures of what the trainer saw.
"""

from __future__ import annotations

import argparse
import collections
import importlib.metadata
import logging
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

# Before torch: the trainer and the engine share few cores, so waiting threads must not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import detectron2
import drawings
import torch
from detectron2.config import get_cfg
from detectron2.engine import HookBase
from folders import new_folder, next_folder

import mosaicbank
from mosaicbank.detectron2.config import add_mosaic_config
from mosaicbank.detectron2.pictures import picture_of, title_of
from mosaicbank.detectron2.sample import INFO, SampleInfo
from mosaicbank.detectron2.trainer import MosaicTrainer

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "detectron2" / "demo_mask_rcnn_R_18_FPN.yaml"
DATASET = "mosaicbank_demo"
# Images to keep of each kind of sample.
_KEPT = {"mosaic": 12, "pasted": 12, "real": 4}
_RULE = "-" * 78


def say(text: str = "") -> None:
    """Print and flush."""
    print(text, flush=True)


def log_to(path: Path) -> None:
    """Send Detectron2's log to a file: it is long."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
    for name in ("detectron2", "fvcore"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.addHandler(handler)
    warnings.filterwarnings("ignore", module="torch")


def which_detectron2() -> str:
    """Version and origin of the Detectron2 in use."""
    distributions = importlib.metadata.packages_distributions() if _py310() else {}
    names = distributions.get("detectron2", ["detectron2"])
    where = os.path.dirname(str(detectron2.__file__))
    text = f"Detectron2 {detectron2.__version__} from {', '.join(sorted(set(names)))} ({where})"
    if "sal-detectron2" in names:
        text += (
            "\n  a third-party build for CPython 3.10; for real work, install Detectron2 as its "
            "documentation says"
        )
    return text


def _py310() -> bool:
    return sys.version_info >= (3, 10)


class Watch(HookBase):  # type: ignore[misc]
    """Prints what each batch was made of, and saves images."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.saved: collections.Counter[str] = collections.Counter()
        self.lines = 0

    def after_step(self) -> None:
        loader = self.trainer.data_loader
        names = loader.classes.names
        loss = self.trainer.storage.latest().get("total_loss", (float("nan"), 0))[0]
        for place, sample in enumerate(loader.last_batch):
            info: SampleInfo = sample[INFO]
            kind = info["kind"] if info["kind"] == "mosaic" else "real"
            kind = "pasted" if kind == "real" and info["pasted"] else kind
            title = title_of(info, names)
            start = f"{self.trainer.iter:4}  loss {loss:6.3f}" if place == 0 else " " * 17
            say(f"  {start}  {title}"[:100])
            if self.saved[kind] < _KEPT[kind]:
                self.saved[kind] += 1
                name = f"{self.trainer.iter:03}-{place}-{kind}"
                if info["category"] is not None:
                    name += "-" + names[info["category"]]
                picture = picture_of(sample, names, loader.image_format, scale=2)
                _save(picture, self.folder / f"{name}.png")


def _save(picture: Any, path: Path) -> None:
    from PIL import Image

    Image.fromarray(picture).save(path)


def prewarm(python: str, bank: Path, annotations: Path, options: argparse.Namespace) -> None:
    """Fill the bank with ``mosaicbank prewarm`` in the engine's environment."""
    command = [
        python, "-m", "mosaicbank", "prewarm",
        "--bank", str(bank),
        "--annotations", str(annotations),
        "--categories", ",".join(drawings.RARE),
        "--per-category", str(options.per_category),
        "--model", options.model,
        "--device", "cpu",
    ]  # fmt: skip
    say(f"2. Prewarm the bank: {options.per_category} mosaics for each rare category, made with")
    say("   $ " + " ".join(command))
    subprocess.run(command, check=True)


def config(options: argparse.Namespace, bank: Path) -> Any:
    """The demo's training config with its paths."""
    cfg = get_cfg()
    add_mosaic_config(cfg)
    cfg.merge_from_file(options.config)
    cfg.DATASETS.TRAIN = (DATASET,)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(drawings.CATEGORIES)
    cfg.OUTPUT_DIR = str(options.out / "training")
    cfg.SOLVER.MAX_ITER = options.iterations
    cfg.MOSAIC.BANK = str(bank)
    cfg.MOSAIC.ENGINE.PYTHON = options.engine_python
    cfg.MOSAIC.ENGINE.MODEL = options.model
    # The engine makes only rare categories, far more than the bank starts with.
    cfg.MOSAIC.ENGINE.ARGS = [*cfg.MOSAIC.ENGINE.ARGS, "--categories", ",".join(drawings.RARE)]
    cfg.freeze()
    return cfg


def report(trainer: MosaicTrainer, bank: mosaicbank.Bank, before: dict[str, Any]) -> bool:
    """Print what happened; returns whether mosaics, pasting and an engine were all seen."""
    loader = trainer.data_loader
    counts, names = loader.counts, loader.classes.names
    infos = loader.recent()
    mosaics = collections.Counter(
        names[i["category"]] for i in infos if i["kind"] == "mosaic" and i["category"] is not None
    )
    pasted = collections.Counter(names[p["category"]] for i in infos for p in i["pasted"])
    after = bank.stats()
    engines = [s for s in mosaicbank.engine_status(bank.path) if s.command == "engine"]
    share = counts.mosaics / max(1, counts.samples)
    say(f"samples      {counts.samples}, of which {counts.mosaics} mosaics ({share:.0%})")
    say(f"mosaics for  {_listed(mosaics)}")
    say(f"pasted       {counts.pasted} instances: {_listed(pasted)}")
    say(f"first uses   {counts.fresh} of {counts.mosaics + counts.pasted} draws")
    say(f"misses       {counts.misses} (real images instead of mosaics)")
    say(f"failures     {counts.errors}")
    say(
        f"bank         {before['mosaics']} mosaics and {before['instances']} instances before, "
        f"{after['mosaics']} and {after['instances']} after"
    )
    for s in engines:
        say(
            f"engine       made {s.mosaics} mosaics with {s.instances} instances meanwhile, "
            f"{s.rejected} regions rejected; now {s.state}"
            + (f"; last error: {s.last_error}" if s.last_error else "")
        )
        if not s.mosaics:
            say("             (the machine was too busy; more --iterations give it more time)")
    if not engines:
        say("engine       none was seen; training ran without one")
    finished = trainer.iter >= trainer.max_iter
    return bool(finished and counts.mosaics and counts.pasted and engines)


def _listed(counter: collections.Counter[str]) -> str:
    return ", ".join(f"{name} {n}" for name, n in counter.most_common()) or "none"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument(
        "--out",
        type=Path,
        help="output folder, new or empty [default: out/demo, or out/demo-2, ...]",
    )
    made.add_argument(
        "--engine-python",
        default="",
        help="Python of the environment with the engine (default: this one)",
    )
    made.add_argument(
        "--config",
        default=str(CONFIG),
        help="training config",
    )
    made.add_argument("--model", default="embedded", help="embedded, or a model directory")
    made.add_argument("--iterations", type=int, default=40)
    made.add_argument(
        "--per-category", type=int, default=3, help="mosaics per rare category to prewarm"
    )
    return made


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the demo; returns 0 if mosaics, pasted instances and an engine were all seen."""
    options = parser().parse_args(argv)
    start = time.monotonic()
    try:
        out = new_folder(options.out) if options.out else next_folder(Path("out/demo"))
    except (OSError, ValueError) as error:
        parser().error(f"--out: {error}")
    out = options.out = out.resolve()
    saw = out / "saw"
    saw.mkdir()
    bank_path = out / "bank"
    log_to(out / "detectron2.log")
    say(which_detectron2())
    say(f"trainer: torch {torch.__version__}, Python {sys.version.split()[0]}")
    engine = options.engine_python or sys.executable
    say(f"engine:  {engine}")
    say(_RULE)
    annotations = drawings.make_training_set(out / "data")
    drawings.register(DATASET, annotations)
    rare = ", ".join(drawings.RARE)
    say(f"1. A training set of drawings, {annotations}")
    say(f"   {len(drawings.CATEGORIES)} categories; rare, in two pictures each: {rare}")
    prewarm(engine, bank_path, annotations, options)
    bank = mosaicbank.Bank.open(bank_path)
    before = dict(bank.stats())
    say(_RULE)
    trainer = MosaicTrainer(config(options, bank_path))
    trainer.register_hooks([Watch(saw)])
    say("3. Train while an engine keeps filling the bank. For each iteration, the images of its")
    say("   batch: a mosaic from the bank (and the category it was drawn for), or a real image,")
    say("   with instances from the bank pasted on it.")
    began = time.monotonic()
    trainer.train()
    say(f"{options.iterations} iterations in {time.monotonic() - began:.0f} s")
    say(_RULE)
    say("4. What happened")
    complete = report(trainer, bank, before)
    say(f"images       {sum(1 for _ in saw.iterdir())} samples as the trainer saw them, labelled:")
    say(f"             {saw} (iteration-place-kind.png)")
    say(f"total time   {time.monotonic() - start:.0f} s")
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
