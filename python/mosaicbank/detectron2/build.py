"""From a training config to a training loader."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, Optional, Union

import numpy as np
import numpy.typing as npt
import torch.utils.data as torchdata
from detectron2.data import (
    DatasetFromList,
    DatasetMapper,
    MetadataCatalog,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.utils import comm

import mosaicbank
from mosaicbank.detectron2.categories import CategoryMap, DatasetClasses
from mosaicbank.detectron2.config import (
    SAMPLERS,
    MosaicSettings,
    check_after,
    resolve_settings,
    validate,
)
from mosaicbank.detectron2.dataset import MosaicDataset
from mosaicbank.detectron2.loader import MosaicLoader
from mosaicbank.detectron2.paste import Paster, size_statistics
from mosaicbank.detectron2.sampler import MosaicTrainingSampler, slot_categories

logger = logging.getLogger(__name__)

Mapper = Callable[[dict[str, Any]], Optional[dict[str, Any]]]

# The file that makes a directory a bank.
_BANK_FILE = "bank.toml"


def machine_rank() -> int:
    """The number of this machine among those that train together."""
    local = getattr(comm, "get_local_size", comm.get_world_size)()
    return int(comm.get_rank()) // max(1, int(local))


def bank_path(settings: MosaicSettings) -> Path:
    """Where this machine's bank is."""
    return Path(settings.bank.replace("{machine}", str(machine_rank())))


def open_bank(
    settings: MosaicSettings,
    classes: DatasetClasses,
    image_counts: Optional[npt.NDArray[np.int64]] = None,
) -> Optional[mosaicbank.Bank]:
    """This machine's bank; local rank 0 makes it where there is none, and sets its limits.

    A bank that cannot be made or opened is no reason not to train: then there is a warning, and
    None comes back. All ranks must call this.

    Args:
        settings: ``MOSAIC``.
        classes: the category table of a bank that is made.
        image_counts: int64 [C], training images of each class.
    """
    path = bank_path(settings)
    limits = settings.limits.given()
    if comm.get_local_rank() == 0 and (path / _BANK_FILE).exists():
        _set_limits(path, limits)
    elif comm.get_local_rank() == 0:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            mosaicbank.Bank.create(path, classes.table(image_counts), "", **limits)
            logger.warning(
                "mosaicbank: made an empty bank in %s; training runs on real data until an "
                "engine fills it",
                path,
            )
        except (OSError, RuntimeError, ValueError) as error:
            logger.warning("mosaicbank: cannot make a bank in %s: %s", path, error)
    comm.synchronize()
    try:
        return mosaicbank.Bank.open(path)
    except (OSError, RuntimeError, ValueError) as error:
        logger.warning(
            "mosaicbank: cannot open the bank in %s; training runs on real data alone: %s",
            path,
            error,
        )
        return None


def _set_limits(path: Path, limits: Mapping[str, int]) -> None:
    """Give an existing bank the limits of ``MOSAIC.LIMITS``."""
    if not limits:
        return
    try:
        before, after = mosaicbank.Bank.open(path).set_limits(**limits)
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        logger.warning("mosaicbank: MOSAIC.LIMITS do not act on the bank in %s: %s", path, error)
        return
    changed = [
        f"{name} {before[name]} -> {after[name]}" for name in after if before[name] != after[name]
    ]
    if changed:
        logger.info("mosaicbank: limits of the bank in %s: %s", path, ", ".join(changed))


def _factors(
    records: Sequence[Mapping[str, Any]],
    num_classes: int,
    sampler: str,
    threshold: float,
    sqrt: bool,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Repeat factors, float32 [N], and training images per class, int64 [C]."""
    offsets, classes = mosaicbank.class_arrays(records)
    factors, counts = mosaicbank.repeat_factors(offsets, classes, num_classes, threshold)
    if sampler == "TrainingSampler":
        return np.ones(len(records), dtype=np.float32), counts
    if not sqrt:
        # max over categories of max(1, sqrt(x)), and sqrt is monotonic.
        factors = np.maximum(1.0, factors**2).astype(np.float32)
    return factors, counts


def mosaic_train_loader(
    dataset: Sequence[dict[str, Any]],
    *,
    mapper: Mapper,
    total_batch_size: int,
    names: Union[str, Sequence[str]],
    settings: Union[MosaicSettings, Mapping[str, Any], None] = None,
    sampler: str = "RepeatFactorTrainingSampler",
    repeat_threshold: float = 0.001,
    repeat_sqrt: bool = True,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    image_format: str = "BGR",
    mask_format: Optional[str] = "polygon",
    keypoint_on: bool = False,
    seed: int = -1,
    **options: Any,
) -> Any:
    """A training loader with mosaics and pasted instances, on Detectron2's own.

    :func:`build_mosaic_train_loader` calls this with what a ``CfgNode`` says; a LazyConfig names it
    in place of ``build_detection_train_loader``.

    Args:
        dataset: dataset dictionaries, of ``get_detection_dataset_dicts``.
        mapper: any Detectron2 mapper; it is called with mosaics as with files.
        total_batch_size: over all ranks.
        names: of the dataset, for its metadata.
        settings: ``MOSAIC``; missing keys have their defaults.
        sampler: how real images are drawn: ``RepeatFactorTrainingSampler`` or
            ``TrainingSampler``.
        repeat_threshold: of the repeat factors.
        repeat_sqrt: take the square root of threshold over frequency, as LVIS does.
        aspect_ratio_grouping: as Detectron2's.
        num_workers: as Detectron2's.
        image_format: ``INPUT.FORMAT``, what the mapper's images are.
        mask_format: ``INPUT.MASK_FORMAT``; None when masks are off.
        keypoint_on: ``MODEL.KEYPOINT_ON``.
        seed: of the stream where ``MOSAIC.SEED`` is -1; -1: random, the same on all ranks.
        options: more arguments for ``build_detection_train_loader``.

    Returns:
        :class:`~.loader.MosaicLoader`.

    Raises:
        ValueError: a setting is impossible, or the bank is of another dataset.
    """
    settings = resolve_settings(settings)
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler: expected one of {', '.join(SAMPLERS)}, got {sampler!r}")
    if settings.paste.enabled and settings.paste.stage == "after":
        check_after(image_format)
    name = names if isinstance(names, str) else names[0]
    metadata = MetadataCatalog.get(name)
    classes = DatasetClasses.from_metadata(metadata)
    _check_records(dataset)
    num_classes = len(classes.names)
    factors, image_counts = _factors(dataset, num_classes, sampler, repeat_threshold, repeat_sqrt)
    bank = open_bank(settings, classes, image_counts)
    categories = None
    to_class: Sequence[int] = range(num_classes)
    if bank is not None:
        categories = CategoryMap(bank.categories, classes, settings.match, str(bank.path))
        to_class = categories.to_class.tolist()
    keypoints = len(metadata.keypoint_names) if keypoint_on else 0
    ignore_label = int(metadata.get("ignore_label", 255))
    paster = None
    if settings.paste.enabled and bank is not None and categories is not None:
        sizes = np.full((len(to_class), 2), np.nan, dtype=np.float32)
        if settings.paste.size == "category":
            known = categories.to_class >= 0
            sizes[known] = size_statistics(dataset, num_classes)[categories.to_class[known]]
        paster = Paster(
            bank,
            settings.paste,
            categories,
            classes,
            sizes,
            image_format,
            mask_format,
            keypoints,
            ignore_label,
        )
    base = settings.seed if settings.seed >= 0 else seed
    if base < 0:
        base = int(comm.shared_random_seed())
    counts, allowed = slot_categories(image_counts.tolist(), to_class, _wanted(settings, classes))
    stream = mosaicbank.MosaicSampler(
        factors,
        mix_ratio=settings.mix_ratio,
        image_counts=np.asarray(counts, dtype=np.int64),
        categories=allowed,
        bank=bank,
        threshold=repeat_threshold,
        seed=base,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
        keyed=True,
    )
    if settings.slot_weights == "fixed":
        stream = _with_fixed_weights(stream)
    supply_said = bank is None or _say_supply(bank, settings, allowed)
    training_sampler = MosaicTrainingSampler(
        stream, total_batch_size // comm.get_world_size(), aspect_ratio_grouping
    )
    semantic = ignore_label if "sem_seg_file_name" in dataset[0] else None
    mapped = MosaicDataset(
        DatasetFromList(list(dataset), copy=False),
        mapper,
        factors=factors,
        num_slots=len(to_class),
        seed=base,
        classes=classes,
        bank=bank,
        rarity=stream.rarity,
        categories=categories,
        paster=paster,
        paste_stage=settings.paste.stage,
        paste_probability=settings.paste.probability,
        paste_on_mosaics=settings.paste.on_mosaics,
        rejected_regions=settings.rejected_regions,
        reproducible=settings.reproducible,
        mask_format=mask_format,
        keypoints=keypoints,
        semantic=semantic,
    )
    loader = build_detection_train_loader(
        mapped,
        mapper=None,
        sampler=training_sampler,
        total_batch_size=total_batch_size,
        aspect_ratio_grouping=aspect_ratio_grouping,
        num_workers=num_workers,
        **options,
    )
    return MosaicLoader(
        loader,
        training_sampler,
        settings=settings,
        bank=bank,
        classes=classes,
        image_format=image_format,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
        slot_categories=allowed,
        supply_said=supply_said,
    )


def _with_fixed_weights(stream: mosaicbank.MosaicSampler) -> mosaicbank.MosaicSampler:
    """A stream whose weights stay as they are now.

    Where nothing is supplied yet, slots ask for every category: the bank may be filled later.
    """
    arguments, keywords = stream.__getnewargs_ex__()
    weights = stream.weights
    if not weights.any():
        weights = mosaicbank.MosaicSampler(*arguments, **{**keywords, "bank": None}).weights
    return mosaicbank.MosaicSampler(*arguments, **{**keywords, "slot_weights": weights})


def _check_records(records: Sequence[Mapping[str, Any]]) -> None:
    if isinstance(records, torchdata.IterableDataset):
        raise ValueError(
            "dataset: expected a list of dataset dictionaries, got an IterableDataset (it has no "
            "order for a sampler to choose)"
        )
    if "annotations" not in records[0]:
        raise ValueError("dataset: expected dictionaries with 'annotations', got none in the first")
    if "pan_seg_file_name" in records[0]:
        raise ValueError(
            "dataset: expected instance annotations, got panoptic ones (pan_seg_file_name), which "
            "mosaics do not have"
        )


def _wanted(settings: MosaicSettings, classes: DatasetClasses) -> Optional[set[int]]:
    """Classes that slots are drawn for; None: all."""
    if not settings.categories:
        return None
    index = {name: i for i, name in enumerate(classes.names)}
    missing = [name for name in settings.categories if name not in index]
    if missing:
        raise ValueError(
            f"MOSAIC.CATEGORIES: expected names of the training set ({classes.names[0]!r}, ...), "
            f"got {missing[0]!r}"
        )
    return {index[name] for name in settings.categories}


def _say_supply(bank: mosaicbank.Bank, settings: MosaicSettings, wanted: Sequence[bool]) -> bool:
    """Log once what cannot be supplied; False while nothing is, so that it is too early to say."""
    stats = bank.stats()
    if settings.mix_ratio > 0:
        nothing = not bank.supply().any()
    else:
        nothing = int(stats["mosaics"]) + int(stats["instances"]) == 0
    if nothing and comm.is_main_process():
        logger.warning(
            "mosaicbank: the bank in %s has nothing to draw, and no engine feeds it; training runs "
            "on real data until %s",
            bank.path,
            "its engine has started" if settings.engine.spawn else "one is started",
        )
    if settings.mix_ratio == 0:
        return True
    if not nothing and comm.is_main_process():
        log_shortfall(bank, wanted)
    return not nothing


def log_shortfall(bank: mosaicbank.Bank, wanted: Sequence[bool]) -> None:
    """Log the categories that neither the bank nor a running engine supplies, in one line."""
    line = bank.shortfall(wanted)
    if line is not None:
        logger.warning(
            "mosaicbank: %s (neither in the bank nor drawn by a running engine; no slots for them)",
            line,
        )


def build_mosaic_train_loader(
    cfg: Any,
    mapper: Optional[Mapper] = None,
    *,
    dataset: Optional[Sequence[dict[str, Any]]] = None,
    **options: Any,
) -> Any:
    """A training loader with mosaics and pasted instances, from a training config.

    Args:
        cfg: with the block of :func:`~.config.add_mosaic_config`.
        mapper: any Detectron2 mapper; ``DatasetMapper(cfg, is_train=True)`` when not given.
        dataset: dataset dictionaries; those of ``cfg.DATASETS.TRAIN`` when not given.
        options: more arguments for ``build_detection_train_loader``.

    Returns:
        :class:`~.loader.MosaicLoader`; Detectron2's own loader when ``MOSAIC.ENABLED`` is False.

    Raises:
        ValueError: a setting is impossible, or the bank is of another dataset.
    """
    settings = validate(cfg)
    if not settings.enabled:
        return build_detection_train_loader(cfg, mapper=mapper, **options)
    if dataset is None:
        dataset = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            min_keypoints=(
                cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0
            ),
        )
    return mosaic_train_loader(
        dataset,
        mapper=DatasetMapper(cfg, is_train=True) if mapper is None else mapper,
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        names=cfg.DATASETS.TRAIN,
        settings=settings,
        sampler=cfg.DATALOADER.SAMPLER_TRAIN,
        repeat_threshold=cfg.DATALOADER.REPEAT_THRESHOLD,
        repeat_sqrt=cfg.DATALOADER.get("REPEAT_SQRT", True),
        aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        image_format=cfg.INPUT.FORMAT,
        mask_format=cfg.INPUT.MASK_FORMAT if cfg.MODEL.MASK_ON else None,
        keypoint_on=cfg.MODEL.KEYPOINT_ON,
        seed=cfg.SEED,
        **options,
    )
