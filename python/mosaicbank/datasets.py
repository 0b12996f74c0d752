"""Annotation files: read categories, export LVIS or COCO files, merge training files.

The commands ``mosaicbank export`` and ``mosaicbank merge`` do the same from a shell.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple, Optional, Union

from mosaicbank import _core

__all__ = [
    "Category",
    "ExportReport",
    "MergeReport",
    "export",
    "find_category",
    "merge",
    "read_categories",
]

_Path = Union[str, "os.PathLike[str]"]


class Category(NamedTuple):
    """A class of a dataset."""

    id: int
    name: str
    synset: str
    definition: str
    synonyms: list[str]
    #: ``r`` (at most 10 training images), ``c`` (11 to 100) or ``f``.
    frequency: str
    image_count: int
    instance_count: int


class ExportReport(NamedTuple):
    """What an exported file holds."""

    images: int
    annotations: int
    categories: int
    #: Mosaics left out because they have no instance.
    empty: int


class MergeReport(NamedTuple):
    """What a merge added."""

    images: int
    annotations: int
    #: Synthetic images that were already in the file and were not added again.
    already: int
    #: Images and instances added, by category name.
    categories: dict[str, tuple[int, int]]


def read_categories(path: _Path) -> list[Category]:
    """The categories of an LVIS or COCO annotation file, or of a bare JSON list of categories.

    Counts and frequencies that are missing from the file are computed from its annotations.
    """
    return [Category(*c) for c in _core.dataset_categories(path)]


def find_category(path: _Path, name: str) -> Category:
    """The category with this name or synonym; case, and ``_`` for a space, do not matter.

    Raises ``KeyError`` with suggestions if there is none, or if several share the synonym.
    """
    return Category(*_core.dataset_find_category(path, name))


def export(
    folder: _Path,
    out: _Path,
    categories: Optional[_Path] = None,
    format: str = "lvis",
    masks: str = "rle",
    image_folder: str = "images",
) -> ExportReport:
    """Write an annotation file for a folder of mosaics.

    ``categories`` is the training set's annotation file; without it, names and ids come from the
    mosaics. ``format`` is ``lvis`` or ``coco``. ``masks`` is ``rle`` (exact) or ``polygons``
    (holes filled): Detectron2's ``load_lvis_json`` and ``INPUT.MASK_FORMAT: polygon`` take
    polygons only. ``image_folder`` is the images' folder relative to the training run's image root.
    """
    return ExportReport(*_core.dataset_export(folder, out, categories, format, masks, image_folder))


def merge(train: _Path, synthetic: Sequence[_Path], out: _Path) -> MergeReport:
    """Merge exported files into a training annotation file; ``out`` may be ``train``.

    The training file's records are copied unchanged. Synthetic images that it already holds are
    recognized and not added again.
    """
    return MergeReport(*_core.dataset_merge(train, list(synthetic), out))
