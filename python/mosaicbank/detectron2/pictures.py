"""Draw what the trainer saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from detectron2.utils.visualizer import Visualizer

from mosaicbank.detectron2.sample import INFO, SampleInfo

# Opacity of a mask's colour.
_ALPHA = 0.25


def title_of(info: SampleInfo, names: Sequence[str]) -> str:
    """One line about a sample: ``mosaic for zebra (drawn 2 times before), 3 pasted``."""
    text = info["kind"]
    if info["category"] is not None:
        text += f" for {names[info['category']]}"
    if info["kind"] == "mosaic":
        uses = info["uses"]
        text += (
            f" (drawn {uses} time{'s' if uses > 1 else ''} before)"
            if uses
            else " (never drawn before)"
        )
    if info["pasted"]:
        text += f", {len(info['pasted'])} pasted"
    return text


def picture_of(
    sample: Mapping[str, Any],
    names: Sequence[str],
    image_format: str = "BGR",
    scale: float = 1.0,
) -> npt.NDArray[np.uint8]:
    """Draw boxes, masks and names on a mapped sample.

    Args:
        sample: with ``image``, a tensor [3, H, W] of 0..255, and ``instances``.
        names: of the contiguous classes.
        image_format: channel order of the image.
        scale: enlarges the image.

    Returns:
        ``uint8 [H', W', 3]``, RGB.
    """
    image = sample["image"].numpy().transpose(1, 2, 0)
    if image_format != "RGB":
        image = image[:, :, ::-1]
    instances = sample["instances"]
    masks = instances.gt_masks if instances.has("gt_masks") else None
    if masks is not None:
        masks = masks.polygons if hasattr(masks, "polygons") else masks.tensor.numpy()
    drawn = Visualizer(np.ascontiguousarray(image).clip(0, 255).astype(np.uint8), scale=scale)
    output = drawn.overlay_instances(
        boxes=instances.gt_boxes.tensor.numpy(),
        labels=[names[int(c)] for c in instances.gt_classes],
        masks=masks,
        alpha=_ALPHA,
    )
    return np.ascontiguousarray(output.get_image())


def injected(batch: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The samples of a batch that are mosaics or have pasted instances."""
    return [s for s in batch if s[INFO]["kind"] == "mosaic" or s[INFO]["pasted"]]
