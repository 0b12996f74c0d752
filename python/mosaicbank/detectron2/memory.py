"""Images in memory, for mappers that read a file.

Every Detectron2 mapper reads ``dataset_dict["file_name"]`` through Detectron2's ``PathManager``.
A handler of that manager gives it pixels that we hold, so a mosaic goes through any mapper and
any augmentation as a file would, and no mapper has to know.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from detectron2.utils.file_io import PathHandler, PathManager

PREFIX = "mosaicbank-memory://"

_images: dict[str, bytes] = {}
_numbers = itertools.count()


def _netpbm(image: npt.NDArray[np.uint8]) -> bytes:
    """``uint8 [H, W, 3]`` RGB as PPM, ``uint8 [H, W]`` as PGM: no compression to pay for."""
    kind = b"P6" if image.ndim == 3 else b"P5"
    header = b"%s\n%d %d\n255\n" % (kind, image.shape[1], image.shape[0])
    # One copy of the pixels, no more.
    return b"".join((header, np.ascontiguousarray(image).data.cast("B")))


class _MemoryHandler(PathHandler):  # type: ignore[misc]
    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _exists(self, path: str, **kwargs: Any) -> bool:
        return path in _images

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return path in _images

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> Any:
        if mode != "rb":
            raise ValueError(f"{path}: expected mode 'rb', got {mode!r}")
        if path not in _images:
            raise FileNotFoundError(path)
        return io.BytesIO(_images[path])

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        # For mappers that hand the path to another reader; removed with the image.
        if path not in _images:
            raise FileNotFoundError(path)
        target = _local_name(path)
        with open(target, "wb") as file:
            file.write(_images[path])
        return target


def _local_name(path: str) -> str:
    name = f"mosaicbank-{os.getpid()}-{path[len(PREFIX) :].replace('/', '-')}"
    return os.path.join(tempfile.gettempdir(), name)


def _register() -> None:
    # Once per process: a spawned worker starts with a new manager.
    if not any(str(p).startswith(PREFIX) for p in getattr(PathManager, "_path_handlers", {})):
        PathManager.register_handler(_MemoryHandler())


_register()


@contextlib.contextmanager
def held(image: npt.NDArray[np.uint8], name: str = "image") -> Iterator[str]:
    """A path under which ``PathManager`` finds ``image`` inside the ``with`` block.

    Args:
        image: ``uint8 [H, W, 3]`` RGB, or ``uint8 [H, W]``.
        name: part of the path, for error messages.
    """
    suffix = "ppm" if image.ndim == 3 else "pgm"
    path = f"{PREFIX}{next(_numbers)}/{name}.{suffix}"
    _images[path] = _netpbm(image)
    try:
        yield path
    finally:
        del _images[path]
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_local_name(path))
