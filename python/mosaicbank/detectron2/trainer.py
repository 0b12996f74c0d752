"""``DefaultTrainer`` with mosaics."""

from __future__ import annotations

from typing import Any, Optional

from detectron2.engine import DefaultTrainer
from detectron2.engine import hooks as d2_hooks

from mosaicbank.detectron2.build import build_mosaic_train_loader
from mosaicbank.detectron2.config import validate
from mosaicbank.detectron2.evaluation import evaluator_for
from mosaicbank.detectron2.hooks import FeedbackHook, mosaic_hooks


class MosaicTrainer(DefaultTrainer):  # type: ignore[misc]
    """Detectron2's default trainer with the loader and the hooks for ``cfg.MOSAIC``.

    With ``MOSAIC.ENABLED: False`` it is the default trainer with COCO's or LVIS's evaluator.

    Args:
        cfg: with the block of :func:`~.config.add_mosaic_config`.

    Raises:
        ValueError: a setting is invalid, or the bank belongs to another dataset.
    """

    def __init__(self, cfg: Any) -> None:
        validate(cfg)
        super().__init__(cfg)

    @classmethod
    def build_train_loader(cls, cfg: Any) -> Any:
        """See :func:`~.build.build_mosaic_train_loader`; override it to use your own mapper."""
        return build_mosaic_train_loader(cfg)

    @classmethod
    def build_evaluator(cls, cfg: Any, dataset_name: str) -> Any:
        """COCO's or LVIS's evaluator, by the dataset's metadata; reports AP per category."""
        return evaluator_for(cfg, dataset_name)

    def build_hooks(self) -> list[Any]:
        """Detectron2's hooks, with ours before the checkpointer and after the evaluation."""
        hooks = [hook for hook in super().build_hooks() if hook is not None]
        ours = mosaic_hooks(
            self.data_loader,
            checkpoint_period=self.cfg.SOLVER.CHECKPOINT_PERIOD,
            results=self._results,
        )
        before = [hook for hook in ours if not isinstance(hook, FeedbackHook)]
        after = [hook for hook in ours if isinstance(hook, FeedbackHook)]
        savers = (d2_hooks.PeriodicCheckpointer, d2_hooks.EvalHook)
        first = _place(hooks, savers)
        # Writers come last, so that they see what all others logged.
        end = max(first, _place(hooks, d2_hooks.PeriodicWriter))
        return [*hooks[:first], *before, *hooks[first:end], *after, *hooks[end:]]

    def _results(self) -> Optional[Any]:
        return getattr(self, "_last_eval_results", None)


def _place(hooks: list[Any], kinds: Any) -> int:
    """Index of the first hook of these kinds; the end if there is none."""
    return next((i for i, hook in enumerate(hooks) if isinstance(hook, kinds)), len(hooks))
