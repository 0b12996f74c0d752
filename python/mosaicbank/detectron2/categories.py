"""Match classes of the training set with categories of the bank."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Optional

import numpy as np
import numpy.typing as npt

logger = logging.getLogger(__name__)

# How many categories an error message shows.
_SHOWN = 3


def _normal(name: str) -> str:
    return name.replace("_", " ").casefold().strip()


@dataclasses.dataclass(frozen=True)
class DatasetClasses:
    """The classes of a training set, as Detectron2's metadata have them.

    Attributes:
        names: ``thing_classes``, by contiguous class.
        ids: the dataset's own id of each class.
        ids_known: False if the metadata have no ids; ``ids`` then counts from 1.
        frequencies: ``r``, ``c``, ``f`` by contiguous class, or None.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...]
    ids_known: bool
    frequencies: Optional[tuple[str, ...]] = None

    @staticmethod
    def from_metadata(metadata: Any) -> DatasetClasses:
        """Read them from ``MetadataCatalog.get(name)``.

        Raises:
            ValueError: there are no ``thing_classes``.
        """
        names = metadata.get("thing_classes", None)
        where = metadata.get("name", "the training set")
        if not names:
            raise ValueError(
                f"metadata of {where}: expected thing_classes, got none\n"
                f"  MetadataCatalog.get({where!r}).thing_classes = [...] sets the names"
            )
        to_contiguous: Optional[Mapping[int, int]] = metadata.get(
            "thing_dataset_id_to_contiguous_id", None
        )
        counts = metadata.get("class_image_count", None)
        known = True
        if to_contiguous:
            of = {contiguous: dataset_id for dataset_id, contiguous in to_contiguous.items()}
            if sorted(of) != list(range(len(names))):
                raise ValueError(
                    f"metadata of {where}: expected thing_dataset_id_to_contiguous_id to reach "
                    f"every class 0..{len(names) - 1} once, got {len(of)} classes"
                )
            ids = tuple(int(of[i]) for i in range(len(names)))
        else:
            # Detectron2's LVIS loader: no mapping, the contiguous class is the id less one.
            known = metadata.get("evaluator_type", None) == "lvis" or counts is not None
            ids = tuple(range(1, len(names) + 1))
        return DatasetClasses(tuple(names), ids, known)

    def table(self, image_counts: Optional[npt.NDArray[np.int64]] = None) -> list[dict[str, Any]]:
        """The category table for a new bank: one dictionary per class.

        Args:
            image_counts: int64 [C], training images that contain each class.
        """
        rows: list[dict[str, Any]] = []
        for i, (dataset_id, name) in enumerate(zip(self.ids, self.names)):
            row: dict[str, Any] = {"id": dataset_id, "name": name}
            if image_counts is not None:
                n = int(image_counts[i])
                # LVIS: rare up to 10 images, common up to 100, frequent above.
                row["image_count"] = n
                row["frequency"] = "r" if n <= 10 else "c" if n <= 100 else "f"
            rows.append(row)
        return rows


class CategoryMap:
    """Translates between bank categories and contiguous classes.

    Attributes:
        to_class: int64 [bank categories], the contiguous class, or -1 if the training set has none.
        to_bank: int64 [classes], the bank's category, or -1.
    """

    def __init__(
        self,
        bank_categories: Sequence[Mapping[str, Any]],
        classes: DatasetClasses,
        match: str = "id_and_name",
        where: str = "bank",
    ) -> None:
        """Match the tables.

        Args:
            bank_categories: ``bank.categories``.
            classes: of the training set.
            match: ``id_and_name``, or ``name`` alone.
            where: the bank's path, for messages.

        Raises:
            ValueError: an id stands for different names, a name for different ids, or the tables
                have nothing in common.
        """
        by_name = {_normal(name): i for i, name in enumerate(classes.names)}
        by_id = {dataset_id: i for i, dataset_id in enumerate(classes.ids)}
        ids_count = match == "id_and_name" and classes.ids_known
        self.to_class = np.full(len(bank_categories), -1, dtype=np.int64)
        self.to_bank = np.full(len(classes.names), -1, dtype=np.int64)
        wrong = []
        for index, category in enumerate(bank_categories):
            found = by_name.get(_normal(category["name"]))
            if ids_count:
                same_id = by_id.get(category["id"])
                if found != same_id:
                    wrong.append(self._difference(category, found, same_id, classes))
                    continue
            if found is not None:
                self.to_class[index] = found
                self.to_bank[found] = index
        if wrong:
            more = f" (and {len(wrong) - _SHOWN} more)" if len(wrong) > _SHOWN else ""
            raise ValueError(
                f"{where}: expected the ids and names of the training set's categories, got "
                f"{'; '.join(wrong[:_SHOWN])}{more}\n"
                "  the bank was made for another dataset, or a damaged table; MOSAIC.MATCH: "
                "'name' matches by name alone"
            )
        self.shared = int((self.to_class >= 0).sum())
        if self.shared == 0:
            theirs = ", ".join(repr(c["name"]) for c in bank_categories[:_SHOWN])
            ours = ", ".join(repr(n) for n in classes.names[:_SHOWN])
            raise ValueError(
                f"{where}: expected categories of the training set ({ours}, ...), got {theirs}, ..."
            )
        if self.shared < len(bank_categories):
            logger.info(
                "%s: %d of %d categories are classes of the training set; the others are not drawn",
                where,
                self.shared,
                len(bank_categories),
            )

    @staticmethod
    def _difference(
        category: Mapping[str, Any],
        found: Optional[int],
        same_id: Optional[int],
        classes: DatasetClasses,
    ) -> str:
        mine = f"{category['name']!r} with id {category['id']}"
        if found is not None:
            return f"{mine} (there it has id {classes.ids[found]})"
        assert same_id is not None
        return f"{mine} (there that id is {classes.names[same_id]!r})"

    @property
    def complete(self) -> bool:
        """Whether every bank category is a class of the training set."""
        return self.shared == len(self.to_class)
