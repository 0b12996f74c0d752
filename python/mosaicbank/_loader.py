"""Loads the two extension modules.

``_core`` links no libtorch and is always there. ``_engine`` links libtorch, so torch is imported
first: the dynamic linker then finds libtorch in the process, without any library path.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType

# tch, which `_engine` uses, needs exactly this release of libtorch.
TORCH = "2.11"

_GET_ENGINE = (
    f"  pip install 'torch=={TORCH}.*'\n"
    "  pip install --force-reinstall --no-deps SOURCE   # mosaicbank's source directory\n"
    "builds it: the installation looks for torch in the environment it installs into."
)


def core() -> ModuleType:
    """The extension module ``mosaicbank._core``.

    Raises:
        ImportError: mosaicbank is not installed, for example run from its source directory.
    """
    try:
        return importlib.import_module("mosaicbank._core")
    except ModuleNotFoundError as error:
        if error.name != "mosaicbank._core":
            raise
        raise ImportError(
            "mosaicbank._core is not built: install mosaicbank with `pip install .` "
            "or `make install`"
        ) from error


def engine() -> ModuleType:
    """The extension module ``mosaicbank._engine``, after torch.

    Raises:
        ImportError: torch is missing or of another release than ``_engine`` needs, or mosaicbank
            was installed without ``_engine``; says how to get it.
    """
    # OpenMP threads busy-wait by default: beside a busy trainer, the engine and the trainer would
    # both be several times slower. libgomp reads this when torch is loaded, so it has no effect if
    # torch is already imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"mosaicbank's diffusion engine needs torch {TORCH}, which cannot be imported "
            f"({error}). Getting the engine:\n{_GET_ENGINE}"
        ) from error
    found = str(torch.__version__)
    if not found.startswith(TORCH + "."):
        raise ImportError(
            f"mosaicbank's diffusion engine: expected torch {TORCH}.*, got torch {found}. "
            f"Getting the engine:\n{_GET_ENGINE}"
        )
    try:
        return importlib.import_module("mosaicbank._engine")
    except ModuleNotFoundError as error:
        if error.name != "mosaicbank._engine":
            raise
        raise ImportError(
            "mosaicbank was installed without its diffusion engine (mosaicbank._engine). "
            f"Getting the engine:\n{_GET_ENGINE}"
        ) from error
