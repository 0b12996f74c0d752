"""LazyConfig: mosaics for configs in Python.

A config names :func:`~.build.mosaic_train_loader` as its ``dataloader.train`` (see
``configs/detectron2/*.py``). :func:`with_mosaics` converts a config that names Detectron2's own
loader. ``python -m mosaicbank.detectron2.train_net --config-file X.py`` trains it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyCall, instantiate
from detectron2.engine import AMPTrainer, SimpleTrainer, default_writers
from detectron2.engine import hooks as d2_hooks
from detectron2.engine.defaults import create_ddp_model
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm

from mosaicbank.detectron2.build import mosaic_train_loader
from mosaicbank.detectron2.hooks import FeedbackHook, mosaic_hooks


def with_mosaics(dataloader: Any, settings: Mapping[str, Any], **options: Any) -> Any:
    """Add mosaics to a LazyConfig's ``dataloader``, in place.

    Args:
        dataloader: with ``train``, a lazy ``build_detection_train_loader`` of a dataset by name.
        settings: ``MOSAIC``; missing keys get their defaults. ``ENABLED`` is ignored.
        options: more arguments for :func:`~.build.mosaic_train_loader` (``repeat_threshold``,
            ``seed``, ...).

    Returns:
        the same ``dataloader``.
    """
    train = dataloader.train
    mapper = train.mapper
    arguments = {
        "dataset": train.dataset,
        "mapper": mapper,
        "total_batch_size": train.total_batch_size,
        "names": train.dataset.names,
        "settings": dict(settings),
        "num_workers": train.get("num_workers", 0),
        "aspect_ratio_grouping": train.get("aspect_ratio_grouping", True),
        "image_format": mapper.get("image_format", "BGR"),
        "mask_format": (
            mapper.get("instance_mask_format", "polygon")
            if mapper.get("use_instance_mask", False)
            else None
        ),
        "keypoint_on": mapper.get("use_keypoint", False),
    }
    if "sampler" in train and "RepeatFactor" not in str(train.sampler.get("_target_", "")):
        arguments["sampler"] = "TrainingSampler"
    dataloader.train = LazyCall(mosaic_train_loader)(**{**arguments, **options})
    return dataloader


def evaluate(cfg: Any, model: Any) -> Any:
    """Evaluate ``model`` with ``cfg.dataloader.test`` and ``.evaluator``; None without them."""
    if "evaluator" not in cfg.dataloader or "test" not in cfg.dataloader:
        return None
    results = inference_on_dataset(
        model, instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator)
    )
    if comm.is_main_process():
        print_csv_format(results)
    return results


def train(cfg: Any, resume: bool = False, eval_only: bool = False) -> Any:
    """Train a LazyConfig that has the keys of Detectron2's ``configs/common``.

    Args:
        cfg: with ``model``, ``optimizer``, ``lr_multiplier``, ``dataloader`` and ``train``.
        resume: continue from the last checkpoint in ``train.output_dir``.
        eval_only: evaluate ``train.init_checkpoint`` (or the last checkpoint) and return.

    Returns:
        the latest evaluation results; None without an evaluator.
    """
    model = instantiate(cfg.model).to(cfg.train.device)
    output, newest = cfg.train.output_dir, [None]
    if eval_only:
        model = create_ddp_model(model)
        checkpointer = DetectionCheckpointer(model, output)
        checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=resume)
        return evaluate(cfg, model)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    loader = instantiate(cfg.dataloader.train)
    model = create_ddp_model(model, **cfg.train.ddp)
    make = AMPTrainer if cfg.train.amp.enabled else SimpleTrainer
    trainer = make(model, loader, optimizer)
    checkpointer = DetectionCheckpointer(model, output, trainer=trainer)

    def test() -> Any:
        newest[0] = evaluate(cfg, model)
        return newest[0]

    ours = mosaic_hooks(
        loader, checkpoint_period=cfg.train.checkpointer.period, results=lambda: newest[0]
    )
    main = comm.is_main_process()
    trainer.register_hooks(
        [
            d2_hooks.IterationTimer(),
            d2_hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            *(hook for hook in ours if not isinstance(hook, FeedbackHook)),
            d2_hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer) if main else None,
            d2_hooks.EvalHook(cfg.train.eval_period, test),
            *(hook for hook in ours if isinstance(hook, FeedbackHook)),
            d2_hooks.PeriodicWriter(
                default_writers(output, cfg.train.max_iter), period=cfg.train.log_period
            )
            if main
            else None,
        ]
    )
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=resume)
    start = trainer.iter + 1 if resume and checkpointer.has_checkpoint() else 0
    trainer.train(start, cfg.train.max_iter)
    results: Optional[Any] = newest[0]
    return results
