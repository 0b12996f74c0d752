"""Paste bank instances on samples, before or after the mapper."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Optional

import numpy as np
import numpy.typing as npt
import torch
from detectron2.data import detection_utils
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, Keypoints, PolygonMasks

import mosaicbank
from mosaicbank import masks as rle
from mosaicbank.detectron2.categories import CategoryMap, DatasetClasses
from mosaicbank.detectron2.config import PasteSettings
from mosaicbank.detectron2.sample import PastedInfo

# Fields of Instances that pasting after the mapper can fill for a new object.
_KNOWN_FIELDS = ("gt_boxes", "gt_classes", "gt_masks", "gt_keypoints")
# Coordinates of a triangle, the smallest polygon with an area.
_TRIANGLE = 6
# Objects per class that the size statistics are computed from.
_SIZE_SAMPLES = 200


def update_federated(
    record: dict[str, Any], classes: Sequence[int], had: set[int], table: DatasetClasses
) -> None:
    """Update LVIS's per-image lists after objects were added, in place.

    A pasted category is no longer absent. If the annotators did not look for it in this image, it
    becomes not exhaustively annotated: the image may show more of it, unlabelled.

    Args:
        record: with ``neg_category_ids`` and ``not_exhaustive_category_ids``, or without.
        classes: contiguous, of the pasted objects.
        had: contiguous classes of the image's annotations before.
        table: gives the dataset's ids.
    """
    if "neg_category_ids" not in record and "not_exhaustive_category_ids" not in record:
        return
    negative = list(record.get("neg_category_ids", []))
    partial = list(record.get("not_exhaustive_category_ids", []))
    for c in sorted(set(classes)):
        dataset_id = table.ids[c]
        if dataset_id in negative:
            negative = [n for n in negative if n != dataset_id]
        elif c not in had and dataset_id not in partial:
            partial.append(dataset_id)
    record["neg_category_ids"] = negative
    record["not_exhaustive_category_ids"] = partial


def polygon_area(polygon: Sequence[float]) -> float:
    """Area of a flat ``[x0, y0, x1, y1, ...]``, in square pixels."""
    points = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
    x, y = points[:, 0], points[:, 1]
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def size_statistics(
    records: Sequence[Mapping[str, Any]], num_classes: int
) -> npt.NDArray[np.float32]:
    """Mean and spread of the object size of each class.

    Args:
        records: Detectron2 dataset dictionaries.
        num_classes: contiguous classes.

    Returns:
        float32 [C, 2], mean and standard deviation of sqrt(area / image area). A class without
        objects gets those of all classes together. At most 200 objects per class are used.
    """
    sides: list[list[float]] = [[] for _ in range(num_classes)]
    for record in records:
        image_area = record["height"] * record["width"]
        for annotation in record.get("annotations", ()):
            mine = sides[annotation["category_id"]]
            if len(mine) >= _SIZE_SAMPLES or annotation.get("iscrowd", 0):
                continue
            segmentation = annotation.get("segmentation")
            if isinstance(segmentation, list):
                area = sum(polygon_area(p) for p in segmentation if len(p) >= _TRIANGLE)
            elif isinstance(segmentation, Mapping):
                area = rle.rle_area(segmentation)
            else:
                box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
                area = (box[2] - box[0]) * (box[3] - box[1])
            if area > 0 and image_area > 0:
                mine.append(min(1.0, (area / image_area) ** 0.5))
    every = list(itertools.chain.from_iterable(sides))
    whole = (float(np.mean(every)), float(np.std(every))) if every else (np.nan, np.nan)
    rows = []
    for mine in sides:
        rows.append(whole if not mine else (float(np.mean(mine)), float(np.std(mine))))
    return np.asarray(rows, dtype=np.float32).reshape(num_classes, 2)


@dataclasses.dataclass
class Paster:
    """Pastes instances according to ``MOSAIC.PASTE``.

    Attributes:
        bank: the source of instances.
        settings: ``MOSAIC.PASTE``.
        categories: bank categories <-> classes.
        classes: of the training set.
        sizes: float32 [bank categories, 2], for ``SIZE: category``.
        image_format: channel order of the mapper's images, ``RGB`` or ``BGR``.
        mask_format: ``polygon`` or ``bitmask``; None without masks.
        keypoints: number of keypoints that every annotation must have; 0: none.
        ignore_label: the ignore label of semantic segmentation.
    """

    bank: mosaicbank.Bank
    settings: PasteSettings
    categories: CategoryMap
    classes: DatasetClasses
    sizes: npt.NDArray[np.float32]
    image_format: str
    mask_format: Optional[str]
    keypoints: int = 0
    ignore_label: int = 255

    def __post_init__(self) -> None:
        self._drawn_from: Optional[list[int]] = None
        usable = [int(i) for i in np.flatnonzero(self.categories.to_class >= 0)]
        if self.settings.categories:
            wanted = [self.bank.category_index(name) for name in self.settings.categories]
            self._drawn_from = [c for c in wanted if c in set(usable)]
            if not self._drawn_from:
                raise ValueError(
                    "MOSAIC.PASTE.CATEGORIES: expected classes of the training set, got "
                    f"{list(self.settings.categories)}"
                )
        elif not self.categories.complete:
            self._drawn_from = usable

    def stocked(self) -> bool:
        """Whether the bank has anything to paste."""
        return int(self.bank.stats()["instances"]) > 0

    def _paste(
        self, image: npt.NDArray[np.uint8], masks: Any, boxes: Any, seed: int, **options: Any
    ) -> Any:
        s = self.settings
        # Checked by `paste`, which lists what it accepts.
        size: Any = s.size_range if s.size == "range" else s.size
        mode: Any = s.mode
        blend: list[Any] = list(s.blend)
        result = mosaicbank.paste(
            image,
            masks,
            boxes,
            np.zeros(len(boxes), dtype=np.int64),
            self.bank,
            seed,
            min_instances=s.min_instances,
            max_instances=s.max_instances,
            mode=mode,
            categories=self._drawn_from,
            size=size,
            size_stats=self.sizes if s.size == "category" else None,
            aspect_jitter=s.aspect_jitter,
            flip=s.flip,
            vertical_flip=s.vertical_flip,
            rotation=s.rotation,
            blend=blend,
            outside=s.outside,
            box_tolerance=s.box_tolerance,
            keep_area=s.keep_area,
            **options,
        )
        if len(result.masks) != len(result.boxes):
            raise RuntimeError(
                f"paste: expected a mask for each of {len(result.boxes)} objects, got "
                f"{len(result.masks)}"
            )
        return result

    def _pasted(self, result: Any) -> list[PastedInfo]:
        return [
            PastedInfo(
                id=p["id"],
                category=int(self.categories.to_class[p["category"]]),
                uses=int(p["uses"]),
            )
            for p in result.pasted
        ]

    # --- before the mapper -------------------------------------------------------------------

    def before(
        self, record: dict[str, Any], image: Optional[npt.NDArray[np.uint8]], seed: int
    ) -> tuple[dict[str, Any], Optional[npt.NDArray[np.uint8]], list[PastedInfo]]:
        """Paste on an image as read from its file.

        Args:
            record: dataset dictionary; not changed.
            image: ``uint8 [H, W, 3]`` RGB, or None to read ``file_name``.
            seed: for everything that is drawn.

        Returns:
            the record with updated annotations, the new image, and what was pasted; the unchanged
            record and image if nothing was.
        """
        pixels = image
        if pixels is None:
            pixels = detection_utils.read_image(record["file_name"], format="RGB")
            if pixels.shape[:2] != (record["height"], record["width"]):
                return record, image, []  # the mapper reports the mismatch
        annotations = record.get("annotations", [])
        things = [a for a in annotations if not a.get("iscrowd", 0)]
        crowds = [a for a in annotations if a.get("iscrowd", 0)]
        boxes = [BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in things]
        given = [_outline(a, box) for a, box in zip(things, boxes)]
        polygons = self.mask_format == "polygon" or any(isinstance(g, list) for g in given)
        result = self._paste(
            np.ascontiguousarray(pixels),
            given,
            np.asarray(boxes, dtype=np.float32).reshape(-1, 4),
            seed,
            mask_format="arrays" if polygons else "rle",
        )
        pasted = self._pasted(result)
        if not pasted:
            return record, image, []
        made: list[dict[str, Any]] = []
        kept = [int(k) for k in result.kept]
        for place, k in enumerate(kept):
            annotation = dict(things[k])
            if result.masks[place] is not given[k]:
                annotation.pop("area", None)
                annotation["bbox"] = [float(v) for v in result.boxes[place]]
                annotation["bbox_mode"] = BoxMode.XYXY_ABS
                if "segmentation" in annotation:
                    annotation["segmentation"] = result.masks[place]
            made.append(annotation)
        for place, one in enumerate(pasted, start=len(kept)):
            annotation = {
                "bbox": [float(v) for v in result.boxes[place]],
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": one["category"],
                "segmentation": result.masks[place],
                "iscrowd": 0,
            }
            if self.keypoints:
                annotation["keypoints"] = [0.0] * (3 * self.keypoints)
            made.append(annotation)
        new = dict(record)
        new["annotations"] = made + crowds
        had = {int(a["category_id"]) for a in things}
        update_federated(new, [p["category"] for p in pasted], had, self.classes)
        if "sem_seg_file_name" in record:
            new["sem_seg"] = self._semantic_before(record, result, len(kept))
        return new, result.image, pasted

    def _semantic_before(
        self, record: Mapping[str, Any], result: Any, first: int
    ) -> npt.NDArray[np.uint8]:
        labels = detection_utils.read_image(record["sem_seg_file_name"], "L").squeeze(2).copy()
        for mask in result.masks[first:]:
            if isinstance(mask, list):
                mask = rle.rle_from_polygons(mask, *labels.shape)
            labels[rle.rle_decode(mask)] = self.ignore_label
        return np.asarray(labels, dtype=np.uint8)

    # --- after the mapper --------------------------------------------------------------------

    def check_fields(self, sample: Mapping[str, Any]) -> None:
        """Refuse samples that cannot be pasted on after the mapper.

        Raises:
            ValueError: an annotation field whose value for a pasted object is unknown.
        """
        if "instances" not in sample:
            raise ValueError(
                "MOSAIC.PASTE.STAGE 'after': expected a mapper whose samples have 'instances', got "
                f"{sorted(map(str, sample))}\n  MOSAIC.PASTE.STAGE: 'before' works with any mapper"
            )
        unknown = [n for n in sample["instances"].get_fields() if n not in _KNOWN_FIELDS]
        if unknown:
            raise ValueError(
                f"MOSAIC.PASTE.STAGE 'after': expected instances with {', '.join(_KNOWN_FIELDS)}, "
                f"got also {', '.join(unknown)}\n"
                "  MOSAIC.PASTE.STAGE: 'before' works with any mapper"
            )

    def after(self, sample: dict[str, Any], seed: int) -> list[PastedInfo]:
        """Paste on a mapped sample, in place.

        Args:
            sample: with ``image``, a tensor [3, H, W] of ``image_format`` with values 0..255, and
                ``instances``.
            seed: for everything that is drawn.

        Returns:
            what was pasted.
        """
        tensor = sample["image"]
        instances = sample["instances"]
        array = tensor if tensor.dtype == torch.uint8 else tensor.round().clamp(0, 255).byte()
        boxes = instances.gt_boxes.tensor.numpy().astype(np.float32).reshape(-1, 4)
        old = instances.gt_masks if instances.has("gt_masks") else None
        given: Any
        if isinstance(old, BitMasks):
            given, mask_format = np.ascontiguousarray(old.tensor.numpy()), "bool"
        elif isinstance(old, PolygonMasks):
            given = [
                _outline({"segmentation": polygons}, box)
                for polygons, box in zip(old.polygons, boxes.tolist())
            ]
            mask_format = "arrays"
        elif old is None:
            given, mask_format = [_rectangle(box) for box in boxes.tolist()], "arrays"
            if self.mask_format == "bitmask" and not given:
                mask_format = "bool"  # an image without objects has no gt_masks to go by
        else:
            raise TypeError(
                f"gt_masks: expected BitMasks or PolygonMasks, got {type(old).__name__}"
            )
        result = self._paste(
            np.ascontiguousarray(array.numpy()),
            given,
            boxes,
            seed,
            channels=self.image_format.lower(),
            layout="chw",
            mask_format=mask_format,
        )
        pasted = self._pasted(result)
        if not pasted:
            return []
        kept = torch.as_tensor(np.asarray(result.kept, dtype=np.int64))
        new_classes = torch.tensor([p["category"] for p in pasted], dtype=torch.int64)
        target = Instances(instances.image_size)
        target.gt_boxes = Boxes(torch.from_numpy(np.asarray(result.boxes, dtype=np.float32)))
        target.gt_classes = torch.cat([instances.gt_classes[kept], new_classes])
        if old is not None or (len(boxes) == 0 and self.mask_format):
            target.gt_masks = self._masks_after(old, given, result)
        if instances.has("gt_keypoints") or (self.keypoints and len(boxes) == 0):
            blank = torch.zeros(len(pasted), self.keypoints, 3)
            points = [blank]
            if instances.has("gt_keypoints"):
                points = [instances.gt_keypoints.tensor[kept], blank]
            target.gt_keypoints = Keypoints(torch.cat(points))
        sample["image"] = torch.from_numpy(result.image).to(tensor.dtype)
        sample["instances"] = target
        if "sem_seg" in sample:
            self._semantic_after(sample, result, len(kept))
        had = {int(c) for c in instances.gt_classes}
        update_federated(sample, [p["category"] for p in pasted], had, self.classes)
        return pasted

    @staticmethod
    def _masks_after(old: Any, given: Any, result: Any) -> Any:
        if isinstance(result.masks, np.ndarray):
            return BitMasks(torch.from_numpy(result.masks))
        polygons = []
        kept = [int(k) for k in result.kept]
        for place, mask in enumerate(result.masks):
            untouched = place < len(kept) and mask is given[kept[place]]
            if untouched and isinstance(old, PolygonMasks):
                polygons.append(old.polygons[kept[place]])
            else:
                polygons.append(mask)
        return PolygonMasks(polygons)

    def _semantic_after(self, sample: dict[str, Any], result: Any, first: int) -> None:
        labels = sample["sem_seg"].clone()
        for mask in result.masks[first:]:
            if isinstance(mask, list):
                mask = rle.rle_decode(rle.rle_from_polygons(mask, *labels.shape[-2:]))
            labels[..., torch.from_numpy(np.ascontiguousarray(mask))] = self.ignore_label
        sample["sem_seg"] = labels


def _rectangle(box: Sequence[float]) -> list[list[float]]:
    x0, y0, x1, y1 = (float(v) for v in box)
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def _outline(annotation: Mapping[str, Any], box: Sequence[float]) -> Any:
    """Polygons or RLE of an object; its box if it has neither."""
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, Mapping):
        return segmentation if isinstance(segmentation, dict) else dict(segmentation)
    polygons = [p for p in segmentation or () if len(p) >= _TRIANGLE and len(p) % 2 == 0]
    return polygons or _rectangle(box)
