"""Per-category AP for the bank's feedback.

Detectron2's COCO evaluator reports it; its LVIS evaluator does not, so
:class:`LVISCategoryEvaluator` takes it from the evaluation that runs anyway.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Optional

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, LVISEvaluator

from mosaicbank.detectron2.categories import DatasetClasses

FEEDBACK_VERSION = 1
#: Prefix of a category's entry in the results, as in the COCO evaluator.
PREFIX = "AP-"
# Tasks in order of preference.
_TASKS = ("segm", "bbox")


class LVISCategoryEvaluator(LVISEvaluator):  # type: ignore[misc]
    """Detectron2's LVIS evaluator that also reports ``AP-<name>`` for every category."""

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Like ``LVISEvaluator.evaluate``; a category without ground truth gets NaN."""
        with _recorded_precisions() as precisions:
            results = super().evaluate(*args, **kwargs)
        if not results:
            return results
        names = list(self._metadata.thing_classes)
        for task, precision in precisions.items():
            if task in results:
                per_category = _category_ap(precision, len(names))
                results[task].update({PREFIX + name: ap for name, ap in zip(names, per_category)})
        return results


def _category_ap(precision: Any, categories: int) -> list[float]:
    """Percent; ``precision`` is [IoU, recall, category, area, ...], -1 where there is none."""
    aps = []
    for c in range(categories):
        values = np.asarray(precision)[:, :, c, 0]
        values = values[values > -1]
        aps.append(float(values.mean() * 100) if values.size else float("nan"))
    return aps


@contextlib.contextmanager
def _recorded_precisions() -> Iterator[dict[str, Any]]:
    """Precisions by task of every ``lvis.LVISEval`` that runs inside the ``with`` block."""
    import lvis

    precisions: dict[str, Any] = {}
    original = lvis.LVISEval

    class Recording(original):  # type: ignore[misc, valid-type]
        def accumulate(self) -> None:
            super().accumulate()
            precisions[self.params.iou_type] = self.eval["precision"]

    lvis.LVISEval = Recording
    try:
        yield precisions
    finally:
        lvis.LVISEval = original


def evaluator_for(cfg: Any, name: str, output_dir: Optional[str] = None) -> Any:
    """The evaluator of a dataset by its metadata's ``evaluator_type``: ``coco`` or ``lvis``.

    Raises:
        NotImplementedError: another type; override ``build_evaluator`` of your trainer.
    """
    kind = MetadataCatalog.get(name).get("evaluator_type", None)
    output_dir = output_dir or os.path.join(cfg.OUTPUT_DIR, "inference")
    if kind == "coco":
        return COCOEvaluator(name, output_dir=output_dir)
    if kind == "lvis":
        return LVISCategoryEvaluator(name, output_dir=output_dir)
    raise NotImplementedError(
        f"evaluator_type of {name}: expected 'coco' or 'lvis', got {kind!r}; override "
        "build_evaluator of your trainer"
    )


def category_ap(results: Mapping[str, Any]) -> tuple[Optional[str], dict[str, float]]:
    """Per-category AP from a trainer's evaluation results.

    Args:
        results: of ``DefaultTrainer.test``: by task, or by dataset and task (the first with
            per-category entries is used).

    Returns:
        the task (``segm`` before ``bbox``) and percent by category name; None and an empty dict if
        there is none.
    """
    for task in _TASKS:
        metrics = results.get(task)
        if isinstance(metrics, Mapping):
            found = {
                name[len(PREFIX) :]: float(value)
                for name, value in metrics.items()
                if str(name).startswith(PREFIX)
            }
            if found:
                return task, found
    for inner in results.values():
        if isinstance(inner, Mapping):
            task_of, found = category_ap(inner)
            if found:
                return task_of, found
    return None, {}


def write_feedback(
    bank: Path, iteration: int, task: str, aps: Mapping[str, float], classes: DatasetClasses
) -> Path:
    """Write ``feedback/evaluation-<iteration>.json`` in a bank: to a temporary file, then renamed.

    Content: ``{"version", "iteration", "time", "task", "categories": [{"id", "name", "ap"}]}``;
    ``ap`` is in percent, null where it cannot be computed; ``id`` is the dataset's.

    Returns:
        the file's path.
    """
    ids = dict(zip(classes.names, classes.ids))
    rows = [
        {"id": ids[name], "name": name, "ap": None if math.isnan(ap) else ap}
        for name, ap in aps.items()
        if name in ids
    ]
    folder = bank / "feedback"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"evaluation-{iteration:08}.json"
    content = {
        "version": FEEDBACK_VERSION,
        "iteration": iteration,
        "time": time.time(),
        "task": task,
        "categories": rows,
    }
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=folder, suffix=".tmp", delete=False
    ) as file:
        json.dump(content, file, indent=1)
    os.replace(file.name, target)
    return target
