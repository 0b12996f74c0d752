"""The training loader: Detectron2's own, with counts of what it produced and a saved state."""

from __future__ import annotations

import collections
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from typing import Any, Optional

import mosaicbank
from mosaicbank.detectron2.categories import DatasetClasses
from mosaicbank.detectron2.config import MosaicSettings
from mosaicbank.detectron2.sample import INFO, SampleInfo
from mosaicbank.detectron2.sampler import MosaicTrainingSampler

logger = logging.getLogger(__name__)

Batch = list[dict[str, Any]]

_STATE_VERSION = 1


@dataclasses.dataclass
class Counts:
    """What this rank's loader has produced since the start of the run."""

    samples: int = 0
    mosaics: int = 0
    #: Slots for which the bank had nothing; they became real images.
    misses: int = 0
    #: Slots that were answered with a mosaic of another category, as theirs was not in stock.
    replaced: int = 0
    pasted: int = 0
    #: Mosaics and pasted instances used for the first time.
    fresh: int = 0
    #: Sum of the earlier uses of mosaics and pasted instances.
    reuses: int = 0
    #: Failures after which a sample continued without mosaicbank.
    errors: int = 0

    def add(self, info: SampleInfo) -> None:
        self.samples += 1
        self.errors += info["errors"]
        self.misses += info["kind"] == "miss"
        self.replaced += info["instead_of"] is not None
        drawn = [p["uses"] for p in info["pasted"]]
        self.pasted += len(drawn)
        if info["kind"] == "mosaic":
            self.mosaics += 1
            drawn.append(info["uses"])
        self.fresh += sum(uses == 0 for uses in drawn)
        self.reuses += sum(drawn)

    def since(self, before: Counts) -> Counts:
        """The difference from an earlier copy."""
        return Counts(
            **{
                field.name: getattr(self, field.name) - getattr(before, field.name)
                for field in dataclasses.fields(self)
            }
        )

    def copy(self) -> Counts:
        return dataclasses.replace(self)


class MosaicLoader:
    """Batches for Detectron2's trainers, from :func:`~.build.build_mosaic_train_loader`.

    Endless; a batch is a list of mapped samples, each with a ``mosaicbank`` entry
    (:class:`~.sample.SampleInfo`). A new iterator continues where the last one's batches ended.

    Attributes:
        settings: ``MOSAIC``.
        bank: None if there is none; then all samples are real.
        classes: of the training set.
        counts: what it has produced so far.
        image_format: channel order of the samples' images.
        last_batch: the latest batch.
        slot_categories: [bank categories] whether slots may ask for it.
        supply_said: whether the categories without a supply were logged.
    """

    def __init__(
        self,
        loader: Any,
        sampler: MosaicTrainingSampler,
        *,
        settings: MosaicSettings,
        bank: Optional[mosaicbank.Bank],
        classes: DatasetClasses,
        image_format: str,
        rank: int,
        world_size: int,
        slot_categories: Sequence[bool] = (),
        supply_said: bool = True,
    ) -> None:
        self.loader = loader
        self.sampler = sampler
        self.settings = settings
        self.bank = bank
        self.classes = classes
        self.image_format = image_format
        self.rank = rank
        self.world_size = world_size
        self.slot_categories = list(slot_categories)
        self.supply_said = supply_said
        self.counts = Counts()
        self.last_batch: Batch = []
        # How far in the stream samples have arrived, and which of them are in no batch yet: those
        # wait for others of their aspect ratio.
        self._arrived = sampler.start
        self._waiting: set[int] = set()
        self._recent: collections.deque[SampleInfo] = collections.deque(maxlen=4096)

    def __iter__(self) -> Iterator[Batch]:
        if self._arrived != self.sampler.start or self._waiting:
            self.load_state_dict(self.state_dict())
        # Detectron2's grouping keeps what an earlier iterator left over; it is drawn again.
        for bucket in getattr(self.loader, "_buckets", ()):
            bucket.clear()
        self.sampler.freeze_start()
        for batch in self.loader:
            self._seen(batch)
            yield batch

    def _seen(self, batch: Batch) -> None:
        self.last_batch = batch
        places = []
        for sample in batch:
            info: SampleInfo = sample[INFO]
            self.counts.add(info)
            self._recent.append(info)
            places.append(self.sampler.position_of(info["index"]))
        last = max(places)
        if last >= self._arrived:
            self._waiting.update(range(self._arrived, last + 1))
            self._arrived = last + 1
        self._waiting.difference_update(places)

    def recent(self) -> list[SampleInfo]:
        """Info on the latest samples, oldest first; at most 4096."""
        return list(self._recent)

    def state_dict(self) -> dict[str, Any]:
        """The state from which the stream continues after the last batch."""
        state = self.sampler.state_at(self._arrived, sorted(self._waiting))
        state["version"] = _STATE_VERSION
        state["drawn"] = self._arrived - len(self._waiting)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of :meth:`state_dict`, starting with the next iterator.

        Raises:
            ValueError: it belongs to another stream.
        """
        version = state.get("version")
        if version != _STATE_VERSION:
            raise ValueError(f"loader state: expected version {_STATE_VERSION}, got {version!r}")
        self.sampler.load_state(state)
        self._arrived = self.sampler.start
        self._waiting = {self.sampler.position_of(i) for i in self.sampler.pending}

    def load_states(self, states: Sequence[dict[str, Any]]) -> None:
        """Continue from the states of all ranks of a checkpoint.

        If the number of ranks, the training set or the bank has changed, the same samples cannot
        be drawn again. Then this run's own stream continues at the same place, with a warning.
        """
        try:
            if len(states) != self.world_size:
                raise ValueError(
                    f"loader state: expected {self.world_size} ranks, got {len(states)}"
                )
            self.load_state_dict(states[self.rank])
        except (KeyError, TypeError, ValueError) as error:
            drawn = sum(int(s.get("drawn", 0)) for s in states) // self.world_size
            logger.warning(
                "mosaicbank: cannot resume the checkpoint's sample stream (%s); continuing at "
                "place %d of this run's own stream",
                error,
                drawn,
            )
            self.sampler.start_at(drawn)
            self._arrived = self.sampler.start
            self._waiting = set()
