"""mosaicbank in a Detectron2 training run: config, loader, hooks, trainer.

Nothing outside this package imports Detectron2. Nothing in it needs another libtorch than the
trainer's: the engine is a separate process, if necessary in another environment.
"""

from __future__ import annotations

from mosaicbank.detectron2.build import build_mosaic_train_loader, mosaic_train_loader
from mosaicbank.detectron2.config import add_mosaic_config, resolve_settings, validate
from mosaicbank.detectron2.evaluation import LVISCategoryEvaluator
from mosaicbank.detectron2.hooks import EngineHook, FeedbackHook, MosaicHook, mosaic_hooks
from mosaicbank.detectron2.lazy import with_mosaics
from mosaicbank.detectron2.loader import MosaicLoader
from mosaicbank.detectron2.trainer import MosaicTrainer

__all__ = [
    "EngineHook",
    "FeedbackHook",
    "LVISCategoryEvaluator",
    "MosaicHook",
    "MosaicLoader",
    "MosaicTrainer",
    "add_mosaic_config",
    "build_mosaic_train_loader",
    "mosaic_hooks",
    "mosaic_train_loader",
    "resolve_settings",
    "validate",
    "with_mosaics",
]
