"""The small checkpoints, each made once a session, and a Generator for each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.utils import logging as transformers_logging

from parity import checkpoints

transformers_logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[checkpoints.Shape], Path]:
    """The directory of a shape's checkpoint. Read only: `copy_checkpoint` to change one."""
    made: dict[str, Path] = {}

    def directory(shape: checkpoints.Shape) -> Path:
        if shape.name not in made:
            target = tmp_path_factory.mktemp("checkpoints") / shape.name
            made[shape.name] = checkpoints.write_checkpoint(shape, target)
        return made[shape.name]

    return directory


@pytest.fixture(scope="session")
def generator(checkpoint: Callable[[checkpoints.Shape], Path]) -> Callable[..., Any]:
    """Our `Generator` of a shape's checkpoint, float32 on the CPU; loaded once."""
    from mosaicbank import Generator

    loaded: dict[str, Any] = {}

    def load(shape: checkpoints.Shape) -> Any:
        if shape.name not in loaded:
            loaded[shape.name] = Generator.from_pretrained(
                str(checkpoint(shape)), device="cpu", dtype="float32"
            )
        return loaded[shape.name]

    return load
