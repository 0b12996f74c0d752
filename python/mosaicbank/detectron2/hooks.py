"""Hooks for Detectron2's trainers: state and scalars, pictures, the engine, feedback.

None of them raises into the training: what fails is said once, and training goes on.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, Optional

from detectron2.engine import HookBase
from detectron2.utils import comm

import mosaicbank
from mosaicbank import _core
from mosaicbank.detectron2.build import bank_path, log_shortfall
from mosaicbank.detectron2.config import EngineSettings
from mosaicbank.detectron2.evaluation import category_ap, write_feedback
from mosaicbank.detectron2.loader import Counts, MosaicLoader
from mosaicbank.detectron2.pictures import injected, picture_of, title_of
from mosaicbank.detectron2.sample import INFO

logger = logging.getLogger(__name__)

# What the scalar `mosaic/engine_state` stands for; 0 is none.
ENGINE_STATES = ("none", *_core.ENGINE_STATES)
# The longest that the start of an engine's process is waited for, seconds.
_START = 10.0


class MosaicHook(HookBase):  # type: ignore[misc]
    """Scalars, pictures, and the sample stream's state in checkpoints.

    Must come before the checkpointer, and on all ranks.

    Args:
        loader: of :func:`~.build.build_mosaic_train_loader`.
        checkpoint_period: iterations between checkpoints, at which the ranks' states are
            gathered; 0: only the state of the rank that writes checkpoints is saved, which is
            all with one rank.
    """

    def __init__(self, loader: MosaicLoader, checkpoint_period: int = 0) -> None:
        self._loader = loader
        self._checkpoint_period = checkpoint_period
        self._logged = Counts()
        self._gathered: Optional[tuple[int, list[dict[str, Any]]]] = None
        self._failed = False
        self._last_picture: Optional[int] = None

    # --- state -------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        iteration = int(self.trainer.iter)
        if self._gathered is not None and self._gathered[0] == iteration:
            return {"ranks": self._gathered[1]}
        own = self._loader.state_dict()
        if self._loader.world_size > 1:
            logger.warning(
                "mosaicbank: a checkpoint outside of CHECKPOINT_PERIOD has the sample stream of "
                "one of %d ranks; a resumed run starts a new stream in the others",
                self._loader.world_size,
            )
        return {"ranks": [own]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._loader.load_states(state_dict["ranks"])

    def _gather(self) -> None:
        period, now = self._checkpoint_period, int(self.trainer.iter)
        last = now + 1 >= int(self.trainer.max_iter)
        if self._loader.world_size > 1 and (last or (period > 0 and (now + 1) % period == 0)):
            self._gathered = now, comm.all_gather(self._loader.state_dict())

    # --- scalars and pictures ----------------------------------------------------------------

    def after_step(self) -> None:
        self._gather()
        try:
            self._report()
        except Exception:
            if not self._failed:
                self._failed = True
                logger.warning("mosaicbank: reporting failed (said once)", exc_info=True)

    def _report(self) -> None:
        settings, now = self._loader.settings, int(self.trainer.iter)
        if (now + 1) % settings.log_period == 0:
            self.trainer.storage.put_scalars(smoothing_hint=False, **self.scalars())
            self._say_supply()
        due = settings.picture_period > 0 and (
            self._last_picture is None or now - self._last_picture >= settings.picture_period
        )
        if due and comm.is_main_process():
            samples = injected(self._loader.last_batch)
            if samples:
                self._last_picture = now
                picture = picture_of(
                    samples[0], self._loader.classes.names, self._loader.image_format
                )
                title = title_of(samples[0][INFO], self._loader.classes.names)
                logger.debug("mosaicbank: picture of a %s", title)
                self.trainer.storage.put_image("mosaic/sample", picture.transpose(2, 0, 1))

    def _say_supply(self) -> None:
        """Log what cannot be supplied as soon as anything can: the engine started later."""
        loader = self._loader
        if loader.supply_said or loader.bank is None or not loader.bank.supply().any():
            return
        loader.supply_said = True
        if comm.is_main_process():
            log_shortfall(loader.bank, loader.slot_categories)

    def scalars(self) -> dict[str, float]:
        """What goes into the event storage, of this rank, since the last call.

        ``share``: samples that are mosaics. ``pasted_per_sample``: pasted instances over samples.
        ``fresh_share``: drawn mosaics and instances that had never been used. ``reuse``: mean
        number of their earlier uses. ``replaced`` (slots that got another category, as theirs was
        not in stock), ``misses`` and ``errors``: since the start of the run.
        ``stock`` and ``stock_instances``: in the bank. ``generation_rate``: mosaics per minute
        of all its engines. ``engine_state``: an index into ``ENGINE_STATES``, of the newest
        engine.
        """
        counts = self._loader.counts
        recent = counts.since(self._logged)
        self._logged = counts.copy()
        drawn = recent.mosaics + recent.pasted
        scalars = {
            "mosaic/share": recent.mosaics / max(1, recent.samples),
            "mosaic/pasted_per_sample": recent.pasted / max(1, recent.samples),
            "mosaic/fresh_share": recent.fresh / max(1, drawn),
            "mosaic/reuse": recent.reuses / max(1, drawn),
            "mosaic/replaced": float(counts.replaced),
            "mosaic/misses": float(counts.misses),
            "mosaic/errors": float(counts.errors),
        }
        if self._loader.bank is not None:
            stats = self._loader.bank.stats()
            engines = mosaicbank.engine_status(self._loader.bank.path)
            rate = sum(engine.mosaics_per_second for engine in engines if engine.alive)
            state = engines[-1].state if engines else "none"
            scalars["mosaic/stock"] = float(stats["mosaics"])
            scalars["mosaic/stock_instances"] = float(stats["instances"])
            scalars["mosaic/generation_rate"] = 60 * rate
            scalars["mosaic/engine_state"] = float(ENGINE_STATES.index(state))
        return scalars


class EngineHook(HookBase):  # type: ignore[misc]
    """Starts an engine with the training and ends it with it.

    Args:
        bank: the bank's directory.
        settings: ``MOSAIC.ENGINE``.
        aliases: ``MOSAIC.ALIASES``.
        start: makes the handle; for trainers that supervise in their own way.
    """

    def __init__(
        self,
        bank: Path,
        settings: EngineSettings,
        start: Optional[Callable[[Path, EngineSettings], Any]] = None,
        aliases: Sequence[str] = (),
    ) -> None:
        self._bank = bank
        self._settings = settings
        self._start = start or functools.partial(start_engine, aliases=aliases)
        self.handle: Any = None

    def before_train(self) -> None:
        if comm.get_local_rank() not in self._settings.local_ranks:
            return
        try:
            self.handle = self._start(self._bank, self._settings)
            self._wait_for_start()
        except Exception:
            logger.warning(
                "mosaicbank: the engine did not start; training goes on with what the bank has",
                exc_info=True,
            )

    def _wait_for_start(self) -> None:
        """Until there is a process, some milliseconds: the loader is about to fork its workers.

        A worker that is forked while another thread starts a process inherits the pipe through
        which that process reports its start, and the thread would wait for the worker's end.
        """
        end = time.monotonic() + _START
        while time.monotonic() < end:
            status = self.handle.status()
            if status["pid"] is not None or status["state"] != "starting":
                return
            time.sleep(0.005)

    def after_train(self) -> None:
        handle, self.handle = self.handle, None
        if handle is None:
            return
        try:
            handle.stop()
        except Exception:
            logger.warning("mosaicbank: the engine did not stop as it should", exc_info=True)


def start_engine(bank: Path, settings: EngineSettings, aliases: Sequence[str] = ()) -> Any:
    """Start a supervised engine as ``MOSAIC.ENGINE`` and ``MOSAIC.ALIASES`` say.

    Returns:
        ``mosaicbank.EngineHandle``.
    """
    return mosaicbank.EngineHandle(
        bank,
        model=settings.model,
        device=settings.device.replace("{local_rank}", str(comm.get_local_rank())),
        duty=settings.duty,
        python=settings.python,
        extra_args=[
            *settings.args,
            *(word for alias in aliases for word in ("--aliases", alias)),
        ],
    )


class FeedbackHook(HookBase):  # type: ignore[misc]
    """Hands per-category AP to the bank after each evaluation.

    Must come after the evaluation.

    Args:
        loader: whose bank it is, and whose classes.
        results: gives the newest evaluation results, or None when there are none.
    """

    def __init__(self, loader: MosaicLoader, results: Callable[[], Optional[Any]]) -> None:
        self._loader = loader
        self._results = results
        self._seen: Any = None

    def after_step(self) -> None:
        self._hand_over()

    def after_train(self) -> None:
        self._hand_over()

    def _hand_over(self) -> None:
        results = self._results()
        bank = self._loader.bank
        if bank is None or not results or results is self._seen:
            return
        self._seen = results
        if comm.get_local_rank() != 0 or not isinstance(results, Mapping):
            return
        task, aps = category_ap(results)
        if task is None:
            return
        try:
            write_feedback(Path(bank.path), int(self.trainer.iter), task, aps, self._loader.classes)
        except OSError as error:
            logger.warning("mosaicbank: cannot write the feedback: %s", error)


def mosaic_hooks(
    loader: Any,
    *,
    checkpoint_period: int = 0,
    results: Optional[Callable[[], Optional[Any]]] = None,
) -> list[Any]:
    """The hooks for a training with mosaics.

    Args:
        loader: of :func:`~.build.build_mosaic_train_loader`; with Detectron2's own loader
            (mosaicbank is off) there are no hooks.
        checkpoint_period: ``SOLVER.CHECKPOINT_PERIOD``; matters with several ranks.
        results: gives the newest evaluation results.

    Returns:
        hooks, to be registered before the checkpointer. The last, when ``results`` is given, is a
        :class:`FeedbackHook`, which belongs after the evaluation.
    """
    if not isinstance(loader, MosaicLoader):
        return []
    settings = loader.settings
    hooks: list[Any] = [MosaicHook(loader, checkpoint_period)]
    if settings.engine.spawn and loader.bank is not None:
        hooks.append(EngineHook(bank_path(settings), settings.engine, aliases=settings.aliases))
    if settings.feedback and results is not None:
        hooks.append(FeedbackHook(loader, results))
    return hooks
