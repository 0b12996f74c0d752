"""Images in memory, for mappers that read a file.

Every Detectron2 mapper reads ``dataset_dict["file_name"]`` through Detectron2's ``PathManager``.
A path handler serves pixels from memory, so a mosaic passes through any mapper and any
augmentation like a file, and no mapper needs to know.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from detectron2.utils.file_io import PathHandler, PathManager
from PIL import Image, ImageFile

PREFIX = "mosaicbank-memory://"
_MAGIC = (b"P5", b"P6")

_images: dict[str, npt.NDArray[np.uint8]] = {}
_numbers = itertools.count()


class _Netpbm(io.RawIOBase):
    """``uint8 [H, W, 3]`` RGB as a PPM file, ``uint8 [H, W]`` as PGM; the pixels are not copied."""

    def __init__(self, pixels: npt.NDArray[np.uint8]) -> None:
        kind = b"P6" if pixels.ndim == 3 else b"P5"
        self.pixels = pixels
        self.header = b"%s\n%d %d\n255\n" % (kind, pixels.shape[1], pixels.shape[0])
        self._parts = (memoryview(self.header), pixels.data.cast("B"))
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: sum(map(len, self._parts))}
        self._at = max(0, start[whence] + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        into, at = memoryview(buffer).cast("B"), self._at
        for part in self._parts:
            if at < len(part):
                n = min(len(into), len(part) - at)
                into[:n] = part[at : at + n]
                self._at += n
                return n
            at -= len(part)
        return 0


class _HeldImage(ImageFile.ImageFile):
    """Pillow's view of a held image: converted to an array, it is the pixels, not a copy."""

    format = "MOSAICBANK"

    def _open(self) -> None:
        file: Any = self.fp
        if not isinstance(file, _Netpbm):
            raise SyntaxError("not an image that mosaicbank holds")
        height, width = file.pixels.shape[:2]
        mode = "RGB" if file.pixels.ndim == 3 else "L"
        # Like Pillow's own plugins; `mode` was an attribute before Pillow 10.1.
        setattr(self, "_mode" if isinstance(Image.Image.mode, property) else "mode", mode)
        self._size = (width, height)
        place = ("raw", (0, 0, width, height), len(file.header), (mode, 0, 1))
        self.tile = [place]  # type: ignore[list-item]  # a named tuple since Pillow 11
        self._pixels = file.pixels.view()
        self._pixels.flags.writeable = False

    def convert(self, mode: Any = None, *args: Any, **kwargs: Any) -> Any:
        return self if mode == self.mode else super().convert(mode, *args, **kwargs)

    @property
    def __array_interface__(self) -> Any:
        # Once loaded, Pillow has its own copy, which may have been drawn on.
        return self._pixels.__array_interface__ if self.tile else super().__array_interface__


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
        return _Netpbm(_images[path])

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        # For mappers that pass the path to another reader; deleted together with the image.
        if path not in _images:
            raise FileNotFoundError(path)
        target = _local_name(path)
        with open(target, "wb") as file:
            shutil.copyfileobj(_Netpbm(_images[path]), file)
        return target


def _local_name(path: str) -> str:
    name = f"mosaicbank-{os.getpid()}-{path[len(PREFIX) :].replace('/', '-')}"
    return os.path.join(tempfile.gettempdir(), name)


def _register() -> None:
    # Once per process: a spawned worker starts with a new manager.
    if not any(str(p).startswith(PREFIX) for p in getattr(PathManager, "_path_handlers", {})):
        PathManager.register_handler(_MemoryHandler())
    if _HeldImage.format not in Image.OPEN:
        Image.register_open(_HeldImage.format, _HeldImage, lambda prefix: prefix[:2] in _MAGIC)
        # Before Pillow's own reader of these formats, which takes what is not ours.
        Image.ID.remove(_HeldImage.format)
        Image.ID.insert(0, _HeldImage.format)


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
    _images[path] = np.ascontiguousarray(image)
    try:
        yield path
    finally:
        del _images[path]
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_local_name(path))
