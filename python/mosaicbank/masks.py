"""Masks on numpy arrays: from attention maps to masks, components, COCO RLE, polygons.

Arrays are row-major ``[height, width]``; boxes are ``(x0, y0, x1, y1)`` in pixels with
``x1`` and ``y1`` exclusive. An RLE is the dictionary of COCO's annotation files,
``{"size": [height, width], "counts": ...}``. These functions return compressed counts as ``str``
(ready for JSON and ``pycocotools``), and accept ``str``, ``bytes`` or a list of runs. Bad input
raises ``ValueError`` and says what was expected.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Optional, Union

import numpy as np
import numpy.typing as npt

from mosaicbank import _core

__all__ = [
    "RLE",
    "Box",
    "Component",
    "Solution",
    "aggregate_attention",
    "bilateral_solve",
    "components",
    "otsu_threshold",
    "refine_mask",
    "resize_bicubic",
    "rle_area",
    "rle_box",
    "rle_counts",
    "rle_decode",
    "rle_encode",
    "rle_from_polygons",
    "rle_iou",
    "rle_merge",
    "rle_to_polygons",
    "threshold_map",
]

Box = tuple[int, int, int, int]
RLE = dict[str, Any]


class Component(NamedTuple):
    """One 4-connected component of a mask."""

    label: int
    area: int
    box: Box


def _bytes(mask: npt.ArrayLike, what: str = "mask") -> "npt.NDArray[np.uint8]":
    array = np.asarray(mask)
    if array.ndim != 2:
        raise ValueError(f"{what}: expected [height, width], got shape {list(array.shape)}")
    if array.dtype != np.bool_:
        array = array != 0
    return np.ascontiguousarray(array).view(np.uint8)


def _rle_in(rle: Mapping[str, Any]) -> tuple[int, int, Union[str, list[int]]]:
    try:
        (height, width), counts = rle["size"], rle["counts"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f'RLE: expected {{"size": [height, width], "counts": ...}}, got {rle!r:.80}'
        ) from None
    if isinstance(counts, bytes):
        counts = counts.decode("latin-1")
    elif not isinstance(counts, str):
        counts = [int(c) for c in counts]
    try:
        return int(height), int(width), counts
    except OverflowError:
        raise ValueError(f"RLE size: expected 32-bit numbers, got {rle['size']!r}") from None


def _rle_out(parts: tuple[int, int, str]) -> RLE:
    height, width, counts = parts
    return {"size": [height, width], "counts": counts}


def rle_encode(mask: npt.ArrayLike) -> RLE:
    """COCO's compressed RLE of a mask ``[height, width]``; every value except 0 is foreground."""
    return _rle_out(_core.mask_rle_encode(_bytes(mask)))


def rle_decode(rle: Mapping[str, Any]) -> "npt.NDArray[np.bool_]":
    """The mask, bool ``[height, width]``, of an RLE."""
    return _core.mask_rle_decode(_rle_in(rle)).view(np.bool_)


def rle_area(rle: Mapping[str, Any]) -> int:
    """Number of foreground pixels."""
    return _core.mask_rle_facts(_rle_in(rle))[0]


def rle_box(rle: Mapping[str, Any]) -> Optional[Box]:
    """The tight box around the foreground; ``None`` for an empty mask."""
    return _core.mask_rle_facts(_rle_in(rle))[1]


def rle_counts(rle: Mapping[str, Any]) -> list[int]:
    """The uncompressed run lengths in column order, background first."""
    return _core.mask_rle_facts(_rle_in(rle))[2]


def rle_from_polygons(polygons: Sequence[Sequence[float]], height: int, width: int) -> RLE:
    """The union of COCO polygons, each a flat ``[x0, y0, x1, y1, ...]`` of at least six numbers.

    Gives the same mask, bit for bit, as ``pycocotools``.
    """
    return _rle_out(_core.mask_rle_from_polygons(polygons, height, width))


def rle_to_polygons(rle: Mapping[str, Any]) -> list[list[float]]:
    """The outer outline of each 4-connected component; holes are filled.

    :func:`rle_from_polygons` is the exact inverse for masks without holes.
    """
    return _core.mask_rle_to_polygons(_rle_in(rle))


def rle_merge(rles: Sequence[Mapping[str, Any]], intersect: bool = False) -> RLE:
    """The union (or the intersection) of one or more RLEs of the same size."""
    if not rles:
        raise ValueError("rles: expected at least one, got none")
    first, *rest = (_rle_in(r) for r in rles)
    return _rle_out(_core.mask_rle_merge(first, rest, intersect))


def rle_iou(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    """Intersection over union of two masks of the same size; 0 if both are empty."""
    return _core.mask_rle_iou(_rle_in(a), _rle_in(b))


def components(mask: npt.ArrayLike) -> tuple["npt.NDArray[np.uint32]", list[Component]]:
    """The 4-connected components of a mask ``[height, width]``.

    Returns labels, uint32 ``[height, width]`` with 0 for background, and the components, ordered by
    their first pixel in row order; ``items[i].label == i + 1``.
    """
    labels, items = _core.mask_components(_bytes(mask))
    return labels, [Component(i + 1, area, box) for i, (area, box) in enumerate(items)]


class Solution(NamedTuple):
    """The result of :func:`bilateral_solve`, with solver statistics."""

    #: float32 ``[height, width]``, on the target's scale.
    map: "npt.NDArray[np.float32]"
    #: Vertices of the image's bilateral grid.
    vertices: int
    #: Iterations of conjugate gradients.
    iterations: int
    #: Norm of the last residual relative to that of the right-hand side.
    residual: float


def _floats(array: npt.ArrayLike, what: str) -> "npt.NDArray[np.float32]":
    out = np.ascontiguousarray(array, dtype=np.float32)
    if out.ndim != 2:
        raise ValueError(f"{what}: expected [height, width], got shape {list(out.shape)}")
    return out


def _picture(rgb: npt.ArrayLike) -> "npt.NDArray[np.uint8]":
    out = np.asarray(rgb)
    if out.dtype != np.uint8 or out.ndim != 3:
        raise ValueError(
            f"rgb: expected uint8 [height, width, 3], got {out.dtype} {list(out.shape)}"
        )
    return np.ascontiguousarray(out)


def aggregate_attention(
    maps: Sequence[npt.ArrayLike], height: int, width: int, aggregation: str = "float"
) -> "npt.NDArray[np.float32]":
    """One map, float32 ``[height, width]`` in 0..1, from mean attention maps of any sizes.

    Each map is divided by its maximum and resized (bicubic); the mean over the maps is divided
    by its maximum (MosaicFusion, arXiv 2309.13042). With ``"float"`` as torch resizes, in floating
    point; with ``"paper"`` as the authors' code does it: each map is cut to 8 bits and resized as
    Pillow does, and so is the result. Raises ``ValueError`` for NaN, infinite or negative values.
    """
    if aggregation not in ("float", "paper"):
        raise ValueError(f'aggregation: expected "float" or "paper", got {aggregation!r}')
    arrays = [_floats(m, f"attention map {i}") for i, m in enumerate(maps)]
    return _core.mask_aggregate(arrays, height, width, aggregation == "paper")


def resize_bicubic(map: npt.ArrayLike, height: int, width: int) -> "npt.NDArray[np.float32]":
    """Resize a map like torch's ``interpolate(mode="bicubic", align_corners=False)``."""
    return _core.mask_resize_bicubic(_floats(map, "map"), height, width)


def otsu_threshold(values: npt.ArrayLike) -> int:
    """Otsu's threshold of uint8 values of any shape, equal to OpenCV's ``THRESH_OTSU``.

    Values above it are foreground.
    """
    array = np.asarray(values)
    if array.dtype != np.uint8:
        raise ValueError(f"values: expected uint8, got {array.dtype}")
    return _core.mask_otsu(np.ascontiguousarray(array).ravel())


def threshold_map(map: npt.ArrayLike, fixed: Optional[float] = None) -> "npt.NDArray[np.bool_]":
    """The mask, bool ``[height, width]``, of a map in 0..1.

    A pixel is foreground if it is above Otsu's threshold of ``uint8(255 * map)``, or above
    ``fixed`` if that is given.
    """
    return _core.mask_threshold(_floats(map, "attention map"), fixed).view(np.bool_)


def bilateral_solve(
    rgb: npt.ArrayLike,
    target: npt.ArrayLike,
    confidence: Optional[npt.ArrayLike] = None,
    **params: float,
) -> Solution:
    """The bilateral solver (Barron and Poole, arXiv 1511.03296) on the simplified grid.

    Args:
        rgb: the guide, uint8 ``[height, width, 3]``.
        target: ``[height, width]``, any scale.
        confidence: ``[height, width]`` in 0..1; None: ``params["confidence"]`` everywhere.
        params: keys of the recipe's ``refine``: ``sigma_spatial`` 16, ``sigma_luma`` 16,
            ``sigma_chroma`` 8, ``lambda`` 256 (as ``**{"lambda": 256}``), ``confidence``
            0.999, ``diagonal_floor`` 1e-5, ``tolerance`` 1e-5, ``max_iterations`` 25,
            ``bistochastize`` 10.
    """
    guide, wanted = _picture(rgb), _floats(target, "target")
    trust = None if confidence is None else _floats(confidence, "confidence")
    return Solution(*_core.mask_bilateral_solve(guide, wanted, trust, json.dumps(params)))


def refine_mask(
    mask: npt.ArrayLike, rgb: npt.ArrayLike, **params: float
) -> "npt.NDArray[np.bool_]":
    """Refine a mask with the bilateral solver; returns bool ``[height, width]``.

    The solver runs ``passes`` times (2). The first target is 255 inside the mask; the result,
    divided by its maximum, is foreground above ``threshold`` (0.5).

    ``rgb`` is the image, uint8 ``[height, width, 3]``. ``params`` are those of
    :func:`bilateral_solve`, and ``passes`` and ``threshold``.
    """
    return _core.mask_refine(_bytes(mask), _picture(rgb), json.dumps(params)).view(np.bool_)
