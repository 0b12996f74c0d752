"""The sample stream in Detectron2's loader, in the same order for any number of workers.

Detectron2 has put samplers in three places over time: in the main process; in every worker, which
keeps each n-th index; in every worker, which keeps each n-th chunk of one batch. With
aspect-ratio grouping the loader then takes single samples from the workers in turn, without it
whole batches. :class:`MosaicTrainingSampler` knows which of these it is in and deals its stream
out so that what arrives in the trainer is the stream, in order.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Optional

import torch.utils.data as torchdata
from detectron2.data import common

from mosaicbank import MosaicSampler


def sharding_chunk(batch_size: int) -> int:
    """How many indices in a row this Detectron2 gives to one worker."""
    to_iterable = getattr(common, "ToIterableDataset", None)
    if to_iterable is None:
        return 1
    parameters = inspect.signature(to_iterable.__init__).parameters
    return batch_size if "shard_chunk_size" in parameters else 1


def deal(
    stream: Iterable[int], workers: int, batch_size: int, chunk: int, grouped: bool
) -> Iterator[int]:
    """Reorder ``stream`` so that the trainer gets it in order.

    Args:
        stream: indices in the order in which they shall arrive.
        workers: that share it, ``chunk`` indices in a row for each in turn.
        batch_size: of one rank.
        chunk: see :func:`sharding_chunk`.
        grouped: samples arrive one by one from the workers in turn, not in batches.
    """
    unit = 1 if grouped else batch_size
    if workers <= 1 or chunk == unit:
        yield from stream
        return
    window = workers * max(batch_size, chunk)
    # slots[w]: the places in a window that worker w will read, in its order.
    slots: list[list[int]] = [[] for _ in range(workers)]
    for place in range(window):
        slots[place // chunk % workers].append(place)
    # arrival[i]: the place whose sample arrives as the i-th.
    arrival: list[int] = []
    for turn in range(window // workers // unit):
        for worker in range(workers):
            arrival.extend(slots[worker][turn * unit : (turn + 1) * unit])
    iterator = iter(stream)
    while True:
        block = list(itertools.islice(iterator, window))
        if len(block) < window:
            return  # a finite stream is cut at whole windows; ours is endless
        dealt = [0] * window
        for index, place in zip(block, arrival):
            dealt[place] = index
        yield from dealt


class MosaicTrainingSampler(torchdata.Sampler):  # type: ignore[type-arg]
    """:class:`mosaicbank.MosaicSampler` as a sampler of Detectron2's training loader.

    Args:
        stream: the endless stream of this rank.
        batch_size: of one rank.
        grouped: whether the loader groups by aspect ratio.
    """

    def __init__(self, stream: MosaicSampler, batch_size: int, grouped: bool) -> None:
        # torch's own __init__ is deprecated and does nothing.
        self.stream = stream
        self.batch_size = batch_size
        self.grouped = grouped
        self.chunk = sharding_chunk(batch_size)
        # Indices that come before the stream's: drawn before a checkpoint and not used yet.
        self.pending: list[int] = []

    def __iter__(self) -> Iterator[int]:
        info = torchdata.get_worker_info()
        arriving = itertools.chain(self.pending, self.stream)
        return deal(
            arriving,
            1 if info is None else info.num_workers,
            self.batch_size,
            self.chunk,
            self.grouped,
        )

    def position_of(self, index: int) -> int:
        """The place of an index in the stream of this rank."""
        return int(self.stream.decode(index)[2]) // int(self.stream.world_size)

    def freeze_start(self) -> None:
        """Read the slot weights of the first epoch now, so that all workers have the same."""
        self.stream.load_state_dict(self.stream.state_dict())

    def state_at(self, position: int, pending: Sequence[int]) -> dict[str, Any]:
        """The state from which the stream goes on.

        Args:
            position: indices of this rank that have arrived in the trainer.
            pending: places among them that were not in any batch yet, ascending.
        """
        return {
            "stream": dict(self.stream.state_dict(position)),
            "pending": self._indices_at(pending),
        }

    def _indices_at(self, places: Sequence[int]) -> list[int]:
        if not places:
            return []
        known = {self.position_of(index): index for index in self.pending}
        missing = [p for p in places if p not in known]
        if missing:
            again = self._copy()
            again.load_state_dict(self.stream.state_dict(missing[0]))
            drawn = iter(again).take(missing[-1] + 1 - missing[0])
            known.update((missing[0] + i, int(index)) for i, index in enumerate(drawn))
        return [known[p] for p in places]

    def _copy(self) -> MosaicSampler:
        arguments, keywords = self.stream.__getnewargs_ex__()
        return MosaicSampler(*arguments, **keywords)

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_at` gave.

        Raises:
            ValueError: it is of another stream.
        """
        self.stream.load_state_dict(state["stream"])
        self.pending = [int(index) for index in state["pending"]]

    def start_at(self, position: int) -> None:
        """Go on from a place of this stream, with nothing pending."""
        self.stream.load_state_dict(self.stream.state_dict(position))
        self.pending = []

    @property
    def start(self) -> int:
        """Where the stream itself begins, without what is pending."""
        return int(self.stream.state_dict()["position"])


def slot_categories(
    image_counts: Sequence[int], to_class: Sequence[int], wanted: Optional[set[int]]
) -> tuple[list[int], list[bool]]:
    """What the stream needs to know about each bank category.

    Args:
        image_counts: [classes], of the training set.
        to_class: [bank categories], see :class:`~.categories.CategoryMap`.
        wanted: classes to draw for; None: all.

    Returns:
        ([bank categories] training images, [bank categories] whether slots may ask for it).
    """
    counts = [0 if c < 0 else int(image_counts[c]) for c in to_class]
    allowed = [c >= 0 and (wanted is None or c in wanted) for c in to_class]
    return counts, allowed
