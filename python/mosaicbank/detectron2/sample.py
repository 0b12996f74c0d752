"""What each training sample records about itself, under the key ``mosaicbank``."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator
from typing import Optional, TypedDict

import numpy as np
import torch

#: The key in a sample's dictionary.
INFO = "mosaicbank"


class PastedInfo(TypedDict):
    """One pasted instance."""

    #: Its id in the bank.
    id: str
    #: Contiguous class.
    category: int
    #: How often it was used before.
    uses: int


class SampleInfo(TypedDict):
    """How a sample was made."""

    #: The sampler's index.
    index: int
    #: ``real``, ``mosaic``, or ``miss``: a real image because the bank had no mosaic.
    kind: str
    #: Contiguous class that the mosaic was drawn for, or that a missed slot asked for; None for
    #: real images.
    category: Optional[int]
    #: Contiguous class that the slot asked for, where another came because it was not in stock.
    instead_of: Optional[int]
    #: The mosaic's id.
    mosaic: Optional[str]
    #: How often the mosaic was used before.
    uses: int
    pasted: list[PastedInfo]
    #: Failures of the bank or the paste, after which the sample continued without it.
    errors: int


def seed_of(seed: int, purpose: str, key: int) -> int:
    """63 bits for one purpose at one place of the stream, the same in every process."""
    text = f"{seed}/{purpose}/{key}".encode()
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the random generators that mappers use; restore their states afterwards.

    These are ``random``, ``numpy.random`` and torch's CPU generator; CUDA's is not touched.
    """
    before = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.default_generator.set_state(before[2])
