"""mosaicbank: an online, training-time augmenter for instance segmentation.

Importing this package imports neither torch nor the diffusion engine: the names below are loaded
from the extension modules on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mosaicbank import _loader
from mosaicbank.generator import Recipe, Region

if TYPE_CHECKING:
    from mosaicbank._core import Bank as Bank
    from mosaicbank._core import BankInstance as BankInstance
    from mosaicbank._core import BankMosaic as BankMosaic
    from mosaicbank._core import EngineStatus as EngineStatus
    from mosaicbank._core import MosaicSampler as MosaicSampler
    from mosaicbank._core import PasteResult as PasteResult
    from mosaicbank._core import __version__ as __version__
    from mosaicbank._core import class_arrays as class_arrays
    from mosaicbank._core import decode_index as decode_index
    from mosaicbank._core import draw_mosaic as draw_mosaic
    from mosaicbank._core import engine_status as engine_status
    from mosaicbank._core import paste as paste
    from mosaicbank._core import repeat_factors as repeat_factors
    from mosaicbank._engine import Generator as Generator
    from mosaicbank._engine import Instance as Instance
    from mosaicbank._engine import Mosaic as Mosaic
    from mosaicbank._engine import RegionResult as RegionResult
    from mosaicbank.engine import EngineHandle as EngineHandle

# Public names that are loaded from an extension module on first use.
_CORE = frozenset(
    {
        "Bank",
        "BankInstance",
        "BankMosaic",
        "EngineStatus",
        "MosaicSampler",
        "PasteResult",
        "class_arrays",
        "decode_index",
        "draw_mosaic",
        "engine_status",
        "paste",
        "repeat_factors",
        "__version__",
    }
)
_ENGINE = frozenset({"Generator", "Instance", "Mosaic", "RegionResult"})

__all__ = [
    "Bank",
    "BankInstance",
    "BankMosaic",
    "EngineHandle",
    "EngineStatus",
    "Generator",
    "Instance",
    "Mosaic",
    "MosaicSampler",
    "PasteResult",
    "Recipe",
    "Region",
    "RegionResult",
    "__version__",
    "class_arrays",
    "decode_index",
    "draw_mosaic",
    "engine_status",
    "paste",
    "repeat_factors",
]


def __getattr__(name: str) -> Any:
    if name in _CORE:
        value = getattr(_loader.core(), name)
    elif name in _ENGINE:
        value = getattr(_loader.engine(), name)
    elif name == "EngineHandle":
        from mosaicbank.engine import EngineHandle as value
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_CORE, *_ENGINE, "EngineHandle"})
