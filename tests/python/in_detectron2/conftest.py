"""Fixtures for tests in the trainer's environment."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Before torch: waiting threads must not spin where several processes share few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[2] / "python" / "examples")]
import material  # noqa: E402


@pytest.fixture(scope="session")
def training_set(tmp_path_factory):
    """Name of a registered training set of small drawings."""
    path = material.make_training_set(tmp_path_factory.mktemp("drawings"))
    return material.register("mosaicbank_drawings", path)


@pytest.fixture
def bank(tmp_path):
    return material.stocked_bank(tmp_path / "bank", max_uses=0)


@pytest.fixture
def cfg(training_set, tmp_path):
    """A training config for the drawings, with mosaics and pasting on."""
    return material.make_cfg(training_set, tmp_path)
