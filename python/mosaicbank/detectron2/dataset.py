"""The dataset behind Detectron2's loader: takes the sampler's indices, returns mapped samples."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from typing import Any, Callable, Optional

import numpy as np
import numpy.typing as npt
import torch.utils.data as torchdata
from detectron2.structures import BoxMode
from detectron2.utils.serialize import PicklableWrapper

import mosaicbank
from mosaicbank.detectron2.categories import CategoryMap, DatasetClasses
from mosaicbank.detectron2.memory_images import held
from mosaicbank.detectron2.paste import Paster
from mosaicbank.detectron2.sample import INFO, SampleInfo, seed_of, seeded

logger = logging.getLogger(__name__)

# The colour that covers rejected regions: the mean pixel of ImageNet, RGB.
FILL = (124, 116, 104)
# The verdict of a region whose object has a label.
_KEPT = "kept"
# Images to try if the mapper returns None.
_MAX_TRIES = 1000


class MosaicDataset(torchdata.Dataset):  # type: ignore[type-arg]
    """Resolves slots to mosaics, pastes, and maps.

    Args:
        records: a map-style dataset of Detectron2 dataset dictionaries.
        mapper: any Detectron2 mapper.
        factors: float32 [N], repeat factors; images that stand in for missing mosaics are drawn by
            them.
        num_slots: number of categories in the sampler's indices.
        seed: for everything that is drawn here.
        classes: of the training set.
        bank: the source of mosaics; None: every slot is a miss.
        rarity: float64 [bank categories], see ``MosaicSampler.rarity``: how a stand-in is drawn
            for a slot whose category is not in stock; None: such a slot is a miss.
        categories: bank categories <-> classes; None without a bank.
        paster: pastes instances; None: no pasting.
        paste_stage: ``before`` or ``after`` the mapper.
        paste_probability: share of the images that are pasted on.
        paste_on_mosaics: paste on mosaics too.
        rejected_regions: ``fill`` or ``keep``.
        reproducible: seed the mapper per sample.
        mask_format: ``polygon`` or ``bitmask``: the form of the masks that the mapper gets.
        keypoints: number of keypoints that every annotation must have; 0: none.
        semantic: ignore label for mosaics if the dataset has semantic labels, else None.
    """

    def __init__(
        self,
        records: Any,
        mapper: Callable[[dict[str, Any]], Optional[dict[str, Any]]],
        *,
        factors: npt.NDArray[np.float32],
        num_slots: int,
        seed: int,
        classes: DatasetClasses,
        bank: Optional[mosaicbank.Bank] = None,
        rarity: Optional[npt.NDArray[np.float64]] = None,
        categories: Optional[CategoryMap] = None,
        paster: Optional[Paster] = None,
        paste_stage: str = "before",
        paste_probability: float = 1.0,
        paste_on_mosaics: bool = False,
        rejected_regions: str = "fill",
        reproducible: bool = True,
        mask_format: Optional[str] = "polygon",
        keypoints: int = 0,
        semantic: Optional[int] = None,
    ) -> None:
        self._records = records
        self._mapper = PicklableWrapper(mapper)
        self._sums = np.cumsum(factors, dtype=np.float64)
        self._num_slots = num_slots
        self._seed = seed
        self._classes = classes
        self._bank = bank
        self._rarity = rarity
        self._categories = categories
        self._paster = paster
        self._stage = paste_stage
        self._probability = paste_probability
        self._on_mosaics = paste_on_mosaics
        self._rejected = rejected_regions
        self._reproducible = reproducible
        self._mask_format = mask_format
        self._keypoints = keypoints
        self._semantic = semantic
        self._warned = False
        self._checked = False

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The mapped sample for ``index`` of the sampler.

        Its ``mosaicbank`` entry is a :class:`~.sample.SampleInfo`.
        """
        index = int(index)
        image, slot, key = mosaicbank.decode_index(index, len(self._records), self._num_slots)
        info = SampleInfo(
            index=index,
            kind="real",
            category=None,
            instead_of=None,
            mosaic=None,
            uses=0,
            pasted=[],
            errors=0,
        )
        if slot is not None:
            info["category"] = self._class_of(slot)
            mosaic = self._draw(slot, key, info)
            if mosaic is not None:
                made = self._map(*self._mosaic_record(mosaic, info), key, 0, info)
                if made is not None:
                    return made
            info.update({"kind": "miss", "mosaic": None, "uses": 0, "pasted": []})
            info["instead_of"] = None
            image = None
        # Like Detectron2: if the mapper returns None for an image, try another one.
        for attempt in range(_MAX_TRIES):
            if image is None or attempt > 0:
                image = self._stand_in(key, attempt)
            made = self._map(dict(self._records[image]), None, key, attempt, info)
            if made is not None:
                return made
        raise RuntimeError(
            f"the mapper: expected a sample for one of {_MAX_TRIES} images, got None for each"
        )

    def _stand_in(self, key: int, attempt: int) -> int:
        """A real image, drawn by the repeat factors."""
        u = seed_of(self._seed, f"stand-in {attempt}", key) / (1 << 63)
        return int(np.searchsorted(self._sums, u * self._sums[-1], side="right"))

    def _failed(self, what: str, info: SampleInfo) -> None:
        """Count a failure after which the sample continues without it; log it once per process."""
        info["errors"] += 1
        if not self._warned:
            self._warned = True
            logger.warning(
                "mosaicbank: %s failed; training continues without it (logged once)",
                what,
                exc_info=True,
            )

    def _draw(self, slot: int, key: int, info: SampleInfo) -> Optional[mosaicbank.BankMosaic]:
        if self._bank is None:
            return None
        try:
            # A category that is not in stock is noted on the demand board.
            mosaic = mosaicbank.draw_mosaic(self._bank, slot, seed_of(self._seed, "mosaic", key))
            if mosaic is not None:
                return mosaic
            instead = self._in_stock(key)
            if instead is None:
                return None
            info["category"] = self._class_of(instead)
            info["instead_of"] = self._class_of(slot)
            return mosaicbank.draw_mosaic(self._bank, instead, seed_of(self._seed, "instead", key))
        except Exception:  # training continues, whatever happened to the bank
            self._failed("drawing a mosaic", info)
            return None

    def _class_of(self, slot: int) -> Optional[int]:
        """The contiguous class of a bank category."""
        found = slot if self._categories is None else int(self._categories.to_class[slot])
        return found if found >= 0 else None

    def _in_stock(self, key: int) -> Optional[int]:
        """A bank category that slots may ask for and that is in stock, drawn by rarity."""
        if self._bank is None or self._rarity is None:
            return None
        sums = np.cumsum(np.where(self._bank.stock()["mosaics"] > 0, self._rarity, 0.0))
        if sums[-1] <= 0.0:
            return None
        u = seed_of(self._seed, "category instead", key) / (1 << 63)
        return int(np.searchsorted(sums, u * sums[-1], side="right"))

    def _mosaic_record(
        self, mosaic: mosaicbank.BankMosaic, info: SampleInfo
    ) -> tuple[dict[str, Any], npt.NDArray[np.uint8]]:
        assert self._bank is not None and self._categories is not None
        info.update({"kind": "mosaic", "mosaic": mosaic.id, "uses": int(mosaic.uses)})
        return mosaic_record(
            mosaic,
            self._bank,
            self._categories,
            self._classes,
            mask_format=self._mask_format,
            rejected_regions=self._rejected,
            keypoints=self._keypoints,
            semantic=self._semantic,
        )

    def _map(
        self,
        record: dict[str, Any],
        image: Optional[npt.NDArray[np.uint8]],
        key: int,
        attempt: int,
        info: SampleInfo,
    ) -> Optional[dict[str, Any]]:
        """Paste before, map, paste after.

        Args:
            record: dataset dictionary; may be changed.
            image: ``uint8 [H, W, 3]`` RGB of a mosaic; None: the mapper reads the file.
            key: the sample's place in the stream.
            attempt: number of images tried at this place before.
            info: filled in here.
        """
        paster = self._paster if self._pasted_on(key, info) else None
        paste_seed = seed_of(self._seed, f"paste {attempt}", key)
        if paster is not None and self._stage == "before":
            try:
                if paster.stocked():
                    record, image, info["pasted"] = paster.before(record, image, paste_seed)
            except Exception:
                self._failed("pasting", info)
        name = record.get("file_name")
        with contextlib.ExitStack() as stack:
            if image is not None:
                record["file_name"] = stack.enter_context(held(image, info["mosaic"] or "pasted"))
            semantic = record.pop("sem_seg", None)
            if semantic is not None:
                record["sem_seg_file_name"] = stack.enter_context(held(semantic, "semantic"))
            if self._reproducible:
                stack.enter_context(seeded(seed_of(self._seed, f"mapper {attempt}", key)))
            sample: Optional[dict[str, Any]] = self._mapper(record)
        if sample is None:
            return None
        if paster is not None and self._stage == "after":
            if not self._checked:
                paster.check_fields(sample)
                self._checked = True
            try:
                if paster.stocked():
                    info["pasted"] = paster.after(sample, paste_seed)
            except Exception:
                self._failed("pasting", info)
        if "file_name" in sample:
            sample["file_name"] = name
        sample[INFO] = info
        return sample

    def _pasted_on(self, key: int, info: SampleInfo) -> bool:
        if self._paster is None or (info["kind"] == "mosaic" and not self._on_mosaics):
            return False
        return seed_of(self._seed, "whether to paste", key) / (1 << 63) < self._probability


def mosaic_record(
    mosaic: mosaicbank.BankMosaic,
    bank: mosaicbank.Bank,
    categories: CategoryMap,
    classes: DatasetClasses,
    *,
    mask_format: Optional[str] = "polygon",
    rejected_regions: str = "fill",
    keypoints: int = 0,
    semantic: Optional[int] = None,
) -> tuple[dict[str, Any], npt.NDArray[np.uint8]]:
    """A mosaic as a Detectron2 dataset dictionary.

    Regions without a label are painted over (``fill``), so that no visible object counts as
    background. If they are kept, their categories become ``not_exhaustive_category_ids``.

    Args:
        mosaic: from the bank.
        bank: its bank.
        categories: bank categories <-> classes. Objects whose category is no class of the training
            set count as regions without a label.
        classes: of the training set.
        mask_format: ``polygon`` or ``bitmask``; None without masks.
        rejected_regions: ``fill`` or ``keep``.
        keypoints: number of (unlabelled) keypoints for every object.
        semantic: value of a semantic label map; None: no map is made.

    Returns:
        the dictionary, and the image, ``uint8 [H, W, 3]`` RGB.
    """
    image = mosaic.image
    labelled = categories.to_class[mosaic.classes]
    rles = mosaic.rles
    outlines: Any = rles
    if mask_format == "polygon":
        # `paste` cuts open masks with holes; nothing is pasted.
        outlines = mosaicbank.paste(
            image, rles, mosaic.boxes, mosaic.classes, bank, 0,
            min_instances=0, max_instances=0, mask_format="arrays",
        ).masks  # fmt: skip
    annotations = []
    for place, (c, box) in enumerate(zip(labelled.tolist(), mosaic.boxes.tolist())):
        if c < 0:
            continue
        annotation: dict[str, Any] = {
            "bbox": box,
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": c,
            "iscrowd": 0,
        }
        if mask_format is not None:
            annotation["segmentation"] = outlines[place]
        if keypoints:
            annotation["keypoints"] = [0.0] * (3 * keypoints)
        annotations.append(annotation)
    rejected = _without_label(mosaic, labelled)
    partial: set[int] = set()
    if rejected and rejected_regions == "fill":
        keep = np.logical_or.reduce(mosaic.masks[labelled >= 0], axis=0)
        for region in rejected:
            x0, y0, x1, y1 = region["box"]
            part = image[y0:y1, x0:x1]
            part[~keep[y0:y1, x0:x1]] = FILL
    else:
        seen = (int(categories.to_class[region["category"]]) for region in rejected)
        partial = {classes.ids[c] for c in seen if c >= 0}
    record: dict[str, Any] = {
        "file_name": f"mosaic {mosaic.id}",
        "image_id": f"mosaic {mosaic.id}",
        "height": mosaic.height,
        "width": mosaic.width,
        "annotations": annotations,
        "neg_category_ids": [],
        "not_exhaustive_category_ids": sorted(partial),
    }
    if semantic is not None:
        record["sem_seg"] = np.full((mosaic.height, mosaic.width), semantic, dtype=np.uint8)
    return record, image


def _without_label(
    mosaic: mosaicbank.BankMosaic, labelled: npt.NDArray[np.int64]
) -> list[Mapping[str, Any]]:
    """Regions that hold an object without a label."""
    regions: list[Mapping[str, Any]] = [r for r in mosaic.regions if r["verdict"] != _KEPT]
    if (labelled < 0).any():
        unknown = {int(c) for c in mosaic.classes[labelled < 0]}
        regions += [r for r in mosaic.regions if r["verdict"] == _KEPT and r["category"] in unknown]
    return regions
