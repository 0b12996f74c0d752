"""Train with mosaics: ``python -m mosaicbank.detectron2.train_net --config-file FILE [opts]``.

It takes the options of Detectron2's ``tools/train_net.py`` (``--num-gpus``, ``--resume``,
``--eval-only``, ``KEY VALUE`` pairs); for a ``.py`` file, those of
``tools/lazyconfig_train_net.py`` (``key=value`` pairs).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, Optional

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, get_cfg
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.utils import comm

from mosaicbank.detectron2.config import add_mosaic_config, validate
from mosaicbank.detectron2.lazy import train as train_lazily
from mosaicbank.detectron2.trainer import MosaicTrainer


def setup(args: argparse.Namespace) -> Any:
    """The frozen, checked config of a command line, with Detectron2's logging and seeds set up."""
    cfg = get_cfg()
    add_mosaic_config(cfg)
    if args.config_file:
        cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    validate(cfg)
    cfg.freeze()
    default_setup(cfg, args)
    return cfg


def main(args: argparse.Namespace) -> Any:
    """Train (or evaluate) in this process; returns the evaluation results."""
    if args.config_file.endswith(".py"):
        cfg = LazyConfig.load(args.config_file)
        cfg = LazyConfig.apply_overrides(cfg, args.opts)
        default_setup(cfg, args)
        return train_lazily(cfg, resume=args.resume, eval_only=args.eval_only)
    cfg = setup(args)
    if args.eval_only:
        model = MosaicTrainer.build_model(cfg)
        DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(
            cfg.MODEL.WEIGHTS, resume=args.resume
        )
        return MosaicTrainer.test(cfg, model)
    trainer = MosaicTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def run(argv: Optional[Sequence[str]] = None) -> int:
    """The command line; returns the exit status."""
    args = default_argument_parser(epilog="See the README of mosaicbank.").parse_args(argv)
    try:
        launch(
            main,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )
    except ValueError as error:
        if comm.get_world_size() > 1 or not str(error).startswith("MOSAIC"):
            raise
        print(f"mosaicbank: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(run())
