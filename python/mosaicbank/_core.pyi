"""Types of `mosaicbank._core` (src/python): what needs no libtorch. Private: the documented
face is in `mosaicbank`, `mosaicbank.masks` and `mosaicbank.datasets`."""

import random
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Final, Literal, Optional, Union, final

import numpy as np
import numpy.typing as npt
from typing_extensions import disjoint_base

__all__ = [
    "ENGINE_STATES",
    "Bank",
    "BankInstance",
    "BankMosaic",
    "EngineStatus",
    "MosaicSampler",
    "PasteResult",
    "SamplerIterator",
    "__version__",
    "class_arrays",
    "dataset_categories",
    "dataset_export",
    "dataset_find_category",
    "dataset_merge",
    "decode_index",
    "draw_mosaic",
    "engine_status",
    "main",
    "mask_aggregate",
    "mask_bilateral_solve",
    "mask_components",
    "mask_otsu",
    "mask_refine",
    "mask_resize_bicubic",
    "mask_rle_decode",
    "mask_rle_encode",
    "mask_rle_facts",
    "mask_rle_from_polygons",
    "mask_rle_iou",
    "mask_rle_merge",
    "mask_rle_to_polygons",
    "mask_threshold",
    "paste",
    "repeat_factors",
]

__version__: Final[str]

_Path = Union[str, PathLike[str]]
_Box = tuple[int, int, int, int]
# Height, width, and compressed counts or plain runs.
_RleIn = tuple[int, int, Union[str, list[int]]]
_RleOut = tuple[int, int, str]
# Id, name, synset, definition, synonyms, frequency, image count, instance count.
_Category = tuple[int, str, str, str, list[str], str, int, int]

_Int64 = npt.NDArray[np.int64]
_Float32 = npt.NDArray[np.float32]
_Float64 = npt.NDArray[np.float64]
_Bytes = npt.NDArray[np.uint8]
# None, a seed, or a random state of numpy, the standard library or torch.
_Rng = Union[None, int, np.random.Generator, np.random.RandomState, random.Random, Any]
_OneCategory = Union[str, int]
_Blend = Literal["hard", "alpha", "gaussian", "poisson"]
_MaskFormat = Literal["bool", "rle", "polygons", "arrays"]

ENGINE_STATES: Final[tuple[str, ...]]

def main(argv: Sequence[str]) -> int:
    """Run the command line and return its exit status.

    Args:
        argv: the arguments, without the program's name.
    """

def dataset_categories(path: _Path) -> list[_Category]: ...
def dataset_find_category(path: _Path, name: str) -> _Category: ...
def dataset_export(
    folder: _Path,
    out: _Path,
    categories: Union[_Path, None],
    format: str,
    masks: str,
    image_folder: str,
) -> tuple[int, int, int, int]: ...
def dataset_merge(
    train: _Path, synthetic: Sequence[_Path], out: _Path
) -> tuple[int, int, int, dict[str, tuple[int, int]]]: ...
def mask_rle_encode(mask: npt.NDArray[np.uint8]) -> _RleOut: ...
def mask_rle_decode(rle: _RleIn) -> npt.NDArray[np.uint8]: ...
def mask_rle_facts(rle: _RleIn) -> tuple[int, Union[_Box, None], list[int]]: ...
def mask_rle_from_polygons(
    polygons: Sequence[Sequence[float]], height: int, width: int
) -> _RleOut: ...
def mask_rle_to_polygons(rle: _RleIn) -> list[list[float]]: ...
def mask_rle_merge(first: _RleIn, rest: list[_RleIn], intersect: bool) -> _RleOut: ...
def mask_rle_iou(a: _RleIn, b: _RleIn) -> float: ...
def mask_components(
    mask: npt.NDArray[np.uint8],
) -> tuple[npt.NDArray[np.uint32], list[tuple[int, _Box]]]: ...
def mask_aggregate(
    maps: list[npt.NDArray[np.float32]], height: int, width: int, paper: bool
) -> npt.NDArray[np.float32]: ...
def mask_resize_bicubic(
    map: npt.NDArray[np.float32], height: int, width: int
) -> npt.NDArray[np.float32]: ...
def mask_otsu(values: npt.NDArray[np.uint8]) -> int: ...
def mask_threshold(
    map: npt.NDArray[np.float32], fixed: Union[float, None]
) -> npt.NDArray[np.uint8]: ...
def mask_bilateral_solve(
    rgb: npt.NDArray[np.uint8],
    target: npt.NDArray[np.float32],
    confidence: Union[npt.NDArray[np.float32], None],
    params: str,
) -> tuple[npt.NDArray[np.float32], int, int, float]: ...
def mask_refine(
    mask: npt.NDArray[np.uint8], rgb: npt.NDArray[np.uint8], params: str
) -> npt.NDArray[np.uint8]: ...

@final
class Bank:
    """The on-disk store of mosaics and instances: one directory, many readers, one writer.

    A bank may be taken into forked workers and pickled into spawned ones; it opens its store
    lazily in each process.
    """

    @staticmethod
    def create(
        path: _Path,
        categories: Iterable[Union[str, Mapping[str, Any]]],
        recipe: str = "",
        *,
        max_bytes: Optional[int] = None,
        max_per_category: Optional[int] = None,
        max_uses: Optional[int] = None,
    ) -> Bank: ...
    @staticmethod
    def open(path: _Path) -> Bank: ...
    @property
    def path(self) -> Path: ...
    @property
    def categories(self) -> list[dict[str, Any]]: ...
    @property
    def recipe(self) -> str: ...
    @property
    def limits(self) -> dict[str, int]: ...
    def set_limits(
        self,
        *,
        max_bytes: Optional[int] = None,
        max_per_category: Optional[int] = None,
        max_uses: Optional[int] = None,
    ) -> tuple[dict[str, int], dict[str, int]]:
        """Change limits of the bank; those that are not given stay. Limits before and after."""
    def category_index(self, name: str) -> int: ...
    def stock(self) -> dict[str, _Int64]: ...
    def supply(self) -> npt.NDArray[np.bool_]:
        """Which categories the bank holds mosaics of, or a running engine draws; bool [C]."""

    def shortfall(self, categories: Optional[Sequence[bool]] = None) -> Optional[str]:
        """One line about the categories without a supply, None where all have one."""

    def stats(self) -> dict[str, int]: ...
    def demand(self) -> dict[str, npt.NDArray[Any]]: ...
    def set_feedback(self, weights: _Float32, size_factors: Optional[_Float32] = None) -> None: ...
    def count_miss(self, category: _OneCategory) -> None: ...
    def put_mosaics(self, mosaics: Sequence[dict[str, Any]]) -> dict[str, int]: ...
    def put_instances(self, instances: Sequence[dict[str, Any]]) -> dict[str, int]: ...
    def mosaic(self, id: str) -> BankMosaic: ...
    def instance(self, id: str) -> BankInstance: ...
    def mosaic_ids(self, category: Optional[_OneCategory] = None) -> list[str]: ...
    def instance_ids(self, category: Optional[_OneCategory] = None) -> list[str]: ...
    def draw_instance(
        self,
        rng: _Rng = None,
        categories: Union[_OneCategory, Iterable[_OneCategory], None] = None,
        mode: str = "class_balanced",
    ) -> Optional[BankInstance]: ...
    def retire(self) -> int: ...
    def merge_from(self, other: Bank) -> dict[str, int]: ...
    def verify(self) -> dict[str, Any]: ...
    def compact(self, path: _Path) -> Bank: ...
    def __reduce__(self) -> tuple[Any, tuple[Path]]: ...

@final
class BankMosaic:
    """A whole generated canvas with its objects, as it came out of a bank."""

    @property
    def id(self) -> str: ...
    @property
    def image(self) -> _Bytes: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def masks(self) -> npt.NDArray[np.bool_]: ...
    @property
    def rles(self) -> list[dict[str, Any]]: ...
    @property
    def boxes(self) -> _Float32: ...
    @property
    def classes(self) -> _Int64: ...
    @property
    def scores(self) -> _Float32: ...
    @property
    def named_scores(self) -> list[dict[str, float]]: ...
    @property
    def areas(self) -> _Int64: ...
    @property
    def regions(self) -> list[dict[str, Any]]: ...
    @property
    def provenance(self) -> list[dict[str, Any]]: ...
    @property
    def seed(self) -> int: ...
    @property
    def uses(self) -> int: ...
    def __len__(self) -> int: ...

@final
class BankInstance:
    """One object, cropped, as it came out of a bank."""

    @property
    def id(self) -> str: ...
    @property
    def image(self) -> _Bytes: ...
    @property
    def alpha(self) -> _Bytes: ...
    @property
    def category(self) -> int: ...
    @property
    def area(self) -> int: ...
    @property
    def box(self) -> _Box: ...
    @property
    def score(self) -> float: ...
    @property
    def scores(self) -> dict[str, float]: ...
    @property
    def provenance(self) -> dict[str, Any]: ...
    @property
    def uses(self) -> int: ...

def draw_mosaic(bank: Bank, category: _OneCategory, rng: _Rng = None) -> Optional[BankMosaic]:
    """The least used mosaic of a category, its use counted and the demand board kept."""

@final
class EngineStatus:
    """What one engine of a bank says about itself, as read from its status file."""

    @property
    def id(self) -> str:
        """Unique among the engines of the bank."""

    @property
    def command(self) -> str:
        """ "engine" or "prewarm"."""

    @property
    def pid(self) -> int:
        """Process id."""

    @property
    def host(self) -> str:
        """Host name."""

    @property
    def version(self) -> str:
        """Version of mosaicbank."""

    @property
    def started(self) -> float:
        """When it started, seconds since 1970."""

    @property
    def time(self) -> float:
        """When it wrote this, seconds since 1970."""

    @property
    def model(self) -> str:
        """Name of the model's directory; empty until the model is loaded."""

    @property
    def weights(self) -> str:
        """SHA-256 of the model's weights; empty until the model is loaded."""

    @property
    def device(self) -> str:
        """Device and dtype."""

    @property
    def batch(self) -> int:
        """Mosaics per batch."""

    @property
    def duty(self) -> float:
        """Share of the device's time that it may use, above 0 and at most 1."""

    @property
    def measured_duty(self) -> Optional[float]:
        """Share that it used over the last minute of work; None before."""

    @property
    def idle_share(self) -> Optional[float]:
        """Share of the time in which the device waited although there was work; None before any."""

    @property
    def mosaics(self) -> int:
        """Mosaics written."""

    @property
    def instances(self) -> int:
        """Instances written."""

    @property
    def regions(self) -> int:
        """Regions generated."""

    @property
    def rejected(self) -> int:
        """Regions that gave no instance."""

    @property
    def dropped(self) -> int:
        """Mosaics with unusable pixels, or that could not be labelled."""

    @property
    def dropped_seeds(self) -> list[int]:
        """Seeds of the latest dropped mosaics."""

    @property
    def mosaics_per_second(self) -> float:
        """Mosaics per second over the last minute."""

    @property
    def instances_per_second(self) -> float:
        """Instances per second over the last minute."""

    @property
    def target(self) -> int:
        """Unused mosaics to keep per category."""

    @property
    def categories(self) -> int:
        """Number of categories that it keeps stocked."""

    @property
    def stocked(self) -> int:
        """Number of those that have the target."""

    @property
    def missing(self) -> int:
        """Mosaics short of the target, over all categories."""

    @property
    def coming(self) -> list[tuple[int, int]]:
        """Mosaics in progress: (category index, count)."""

    @property
    def peak_memory(self) -> Optional[int]:
        """Peak resident memory, bytes; None where the system does not report it."""

    @property
    def halved(self) -> int:
        """Times that the batch was halved because the device ran out of memory."""

    @property
    def errors(self) -> int:
        """Number of errors."""

    @property
    def state(self) -> str:
        """One of ENGINE_STATES, as seen from this machine: "dead" if the engine ended without
        saying so."""

    @property
    def alive(self) -> bool:
        """Whether it was running when the file was read."""

    @property
    def last_error(self) -> Optional[str]:
        """The latest error's message; None without errors."""

    @property
    def last_error_time(self) -> Optional[float]:
        """When that error occurred, seconds since 1970; None without errors."""

    @property
    def history(self) -> list[tuple[float, int, int, int, int]]:
        """Totals over the run, oldest first: (time, mosaics, instances, regions, rejected)."""

    @property
    def stages(self) -> dict[str, float]:
        """Seconds per stage of the loop: plan, denoise, rest, wait, label, write, idle."""

def engine_status(bank: _Path) -> list[EngineStatus]:
    """The status of every engine that has worked on the bank in the directory ``bank``, oldest
    first. Status files that cannot be read are skipped.

    Raises:
        OSError: the directory cannot be read.
    """

@final
class SamplerIterator:
    """One pass over a sampler: an endless iterator of ints."""

    def __iter__(self) -> SamplerIterator: ...
    def __next__(self) -> int: ...
    @property
    def position(self) -> int: ...
    def take(self, n: int) -> _Int64: ...

@disjoint_base
class MosaicSampler:
    """An endless, seeded, rank-sharded, resumable sampler of real images and slots."""

    def __new__(
        cls,
        factors: Union[_Float32, int],
        *,
        mix_ratio: float = 0.0,
        image_counts: Optional[_Int64] = None,
        slot_weights: Optional[_Float64] = None,
        categories: Optional[Sequence[bool]] = None,
        bank: Optional[Bank] = None,
        threshold: float = 0.001,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        keyed: Optional[bool] = None,
    ) -> MosaicSampler: ...
    def __iter__(self) -> SamplerIterator: ...
    def state_dict(self, position: Optional[int] = None) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...
    def decode(self, index: int) -> tuple[Optional[int], Optional[int], int]: ...
    @property
    def position(self) -> int: ...
    @property
    def rarity(self) -> _Float64: ...
    @property
    def num_images(self) -> int: ...
    @property
    def num_categories(self) -> int: ...
    @property
    def factors(self) -> _Float32: ...
    @property
    def weights(self) -> _Float64: ...
    @property
    def mix_ratio(self) -> float: ...
    @property
    def seed(self) -> int: ...
    @property
    def rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...
    def __getnewargs_ex__(self) -> tuple[tuple[_Float32], dict[str, Any]]: ...
    def __getstate__(self) -> dict[str, Any]: ...
    def __setstate__(self, state: dict[str, Any]) -> None: ...

def repeat_factors(
    offsets: _Int64, classes: _Int64, num_categories: int, threshold: float = 0.001
) -> tuple[_Float32, _Int64]:
    """LVIS repeat factors and image counts from classes in arrays."""

def class_arrays(dataset_dicts: Iterable[Mapping[str, Any]]) -> tuple[_Int64, _Int64]:
    """``(offsets, classes)`` of Detectron2 dataset dictionaries."""

def decode_index(
    index: int, num_images: int, num_categories: int
) -> tuple[Optional[int], Optional[int], int]:
    """What a sampler's index stands for: ``(image, category, key)``."""

@final
class PasteResult:
    """What pasting made of an image and its annotations."""

    @property
    def image(self) -> _Bytes: ...
    @property
    def masks(self) -> Any: ...
    @property
    def boxes(self) -> _Float32: ...
    @property
    def classes(self) -> _Int64: ...
    @property
    def source(self) -> _Bytes: ...
    @property
    def kept(self) -> _Int64: ...
    @property
    def pasted(self) -> list[dict[str, Any]]: ...

def paste(
    image: _Bytes,
    masks: Any,
    boxes: Any,
    classes: Any,
    bank: Bank,
    rng: _Rng = None,
    *,
    min_instances: int = 0,
    max_instances: int = 20,
    mode: Literal["class_balanced", "uniform"] = "class_balanced",
    categories: Union[_OneCategory, Iterable[_OneCategory], None] = None,
    size: Union[Literal["natural", "category"], tuple[float, float], None] = None,
    size_stats: Optional[_Float32] = None,
    aspect_jitter: float = 0.2,
    flip: float = 0.5,
    vertical_flip: float = 0.0,
    rotation: float = 0.0,
    blend: Union[_Blend, Sequence[_Blend], None] = None,
    outside: float = 0.25,
    box_tolerance: float = 10.0,
    keep_area: int = 300,
    channels: Literal["rgb", "bgr"] = "rgb",
    layout: Literal["hwc", "chw"] = "hwc",
    mask_format: Optional[_MaskFormat] = None,
) -> PasteResult:
    """Pastes bank instances on an image and updates its annotations."""
