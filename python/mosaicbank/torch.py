"""mosaicbank for any PyTorch trainer: a dataset wrapper, a sampler and a transform.

Typical use::

    bank = mosaicbank.Bank.open("bank")
    factors, counts = mosaicbank.repeat_factors(offsets, classes, num_categories)
    sampler = Sampler(factors, image_counts=counts, bank=bank, mix_ratio=0.1, seed=1)
    dataset = MosaicDataset(my_dataset, bank, from_mosaic=detection_target, seed=1)
    loader = DataLoader(dataset, batch_size=8, sampler=sampler, num_workers=4)

What is drawn for an index depends only on the seed and the index's place in the stream, never on
the worker that draws it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable, Optional, Union

import numpy as np
import torch
from torch.utils import data as torch_data

from mosaicbank import _core

__all__ = ["MosaicDataset", "PasteTransform", "Sampler", "collate", "detection_target"]

_MASK_64 = (1 << 64) - 1


def _seed(seed: int, key: int) -> int:
    """A separate seed for each place in the stream (the mixing function of splitmix64)."""
    z = (seed * 0x9E3779B97F4A7C15 + key + 0x9E3779B97F4A7C15) & _MASK_64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return z ^ (z >> 31)


class Sampler(_core.MosaicSampler, torch_data.Sampler[int]):
    """:class:`mosaicbank.MosaicSampler` as a ``torch.utils.data.Sampler``, which some trainers
    require. It takes the same arguments."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # __new__ does all the work; torch's __init__ is not needed.
        pass


def detection_target(mosaic: _core.BankMosaic) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Convert a mosaic to the input of torchvision's detection models.

    Returns ``(image, target)``: float32 ``[3, H, W]`` in 0..1, and ``boxes`` (float32 ``[N, 4]``,
    x0 y0 x1 y1), ``labels`` (int64 ``[N]``, the bank's class indices), ``masks`` (uint8
    ``[N, H, W]``).
    """
    image = torch.from_numpy(mosaic.image).permute(2, 0, 1).float().div_(255.0)
    target = {
        "boxes": torch.from_numpy(mosaic.boxes),
        "labels": torch.from_numpy(mosaic.classes),
        "masks": torch.from_numpy(mosaic.masks.view(np.uint8)),
    }
    return image, target


class MosaicDataset(torch_data.Dataset[Any]):
    """A map-style dataset that also resolves the sampler's mosaic slots.

    ``dataset``: any map-style dataset with a length. ``bank``: an open bank, or its path.
    ``from_mosaic``: converts a :class:`mosaicbank.BankMosaic` to a sample in the form of
    ``dataset``'s own (default: :func:`detection_target`). ``transform``: called as
    ``transform(sample, seed=...)`` with the sample's own seed, or as ``transform(sample)`` if
    ``pass_seed`` is false. ``seed``: usually the sampler's.

    If the bank has nothing for a slot, the slot becomes a real sample, drawn with the slot's seed,
    and the category's demand rises.
    """

    def __init__(
        self,
        dataset: Any,
        bank: Union[_core.Bank, str],
        *,
        from_mosaic: Callable[[_core.BankMosaic], Any] = detection_target,
        transform: Optional[Callable[..., Any]] = None,
        pass_seed: bool = True,
        seed: int = 0,
    ) -> None:
        self.dataset = dataset
        self.bank = _core.Bank.open(bank) if isinstance(bank, str) else bank
        self.from_mosaic = from_mosaic
        self.transform = transform
        self.pass_seed = pass_seed
        self.seed = seed
        self._categories = len(self.bank.categories)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        image, category, key = _core.decode_index(int(index), len(self.dataset), self._categories)
        seed = _seed(self.seed, key)
        sample = None
        if category is not None:
            mosaic = _core.draw_mosaic(self.bank, category, seed)
            if mosaic is None:
                image = seed % len(self.dataset)
            else:
                sample = self.from_mosaic(mosaic)
        if sample is None:
            sample = self.dataset[image]
        if self.transform is not None:
            sample = self.transform(sample, seed=seed) if self.pass_seed else self.transform(sample)
        return sample


class PasteTransform:
    """Pastes bank instances on an ``(image, target)`` sample; called like torchvision's transforms.

    ``image``: uint8 ``[3, H, W]`` or float ``[3, H, W]`` in 0..1 (a tensor or
    ``tv_tensors.Image``), or a PIL image; the result has the same type. ``target``: ``boxes``
    (``[N, 4]``, x0 y0 x1 y1), ``labels`` (``[N]``; ``label_offset`` is subtracted to get the
    bank's class), ``masks`` (``[N, H, W]``). Other entries with one row per object are filtered
    like the objects, and dropped if something was pasted; ``source`` (uint8 ``[M]``) marks what was
    pasted. ``p``: probability of pasting. ``options``: those of
    :func:`mosaicbank.paste`.
    """

    def __init__(
        self,
        bank: Union[_core.Bank, str],
        *,
        p: float = 1.0,
        label_offset: int = 0,
        seed: Optional[int] = None,
        **options: Any,
    ) -> None:
        self.bank = _core.Bank.open(bank) if isinstance(bank, str) else bank
        self.p = p
        self.label_offset = label_offset
        self.seed = seed
        self.options = options
        self._calls = 0

    def __call__(self, *sample: Any, seed: Optional[int] = None) -> Any:
        if len(sample) == 1:
            sample = tuple(sample[0])
        image, target, *rest = sample
        if seed is None:
            if self.seed is None:
                # Follows the worker's own torch seed.
                seed = int(torch.randint(0, 2**62, (1,)).item())
            else:
                seed = _seed(self.seed, self._calls)
                self._calls += 1
        if _seed(seed, 1) / 2.0**64 < self.p:
            image, target = self._paste(image, target, seed)
        return (image, target, *rest)

    def _paste(self, image: Any, target: dict[str, Any], seed: int) -> tuple[Any, dict[str, Any]]:
        array, back = _to_array(image)
        n = len(target["labels"])
        result = _core.paste(
            array,
            np.ascontiguousarray(np.asarray(target["masks"]).astype(bool)) if n else None,
            np.asarray(target["boxes"], dtype=np.float32).reshape(n, 4) if n else None,
            np.asarray(target["labels"], dtype=np.int64) - self.label_offset if n else None,
            self.bank,
            seed,
            **self.options,
        )
        kept = torch.from_numpy(result.kept)
        out: dict[str, Any] = {}
        for name, value in target.items():
            if name in ("boxes", "labels", "masks", "source"):
                continue
            rows = isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == n and n > 0
            if not rows:
                out[name] = value
            elif len(result.classes) == len(kept):
                out[name] = value[kept]
        masks = result.masks if n or len(result.masks) else np.zeros((0, *array.shape[:2]), bool)
        out["boxes"] = _like(target["boxes"], torch.from_numpy(result.boxes))
        out["labels"] = torch.from_numpy(result.classes + self.label_offset)
        out["masks"] = _like(target["masks"], torch.from_numpy(masks.view(np.uint8)))
        out["source"] = torch.from_numpy(result.source)
        return back(result.image), out

    def __repr__(self) -> str:
        return f"PasteTransform({self.bank!r}, p={self.p})"


def _like(old: Any, new: torch.Tensor) -> torch.Tensor:
    """``new`` with the dtype of ``old`` and, if it has one, its tv_tensors class."""
    if not isinstance(old, torch.Tensor):
        return new
    new = new.to(old.dtype)
    if type(old) is torch.Tensor:
        return new
    from torchvision import tv_tensors

    wrapped: torch.Tensor = tv_tensors.wrap(new, like=old)
    return wrapped


def _to_array(image: Any) -> tuple[np.ndarray[Any, Any], Callable[[Any], Any]]:
    """The image as ``uint8 [H, W, 3]``, and a function that converts back to its type."""
    if isinstance(image, torch.Tensor):
        if image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"image: expected [3, H, W], got {list(image.shape)}")
        floating = image.is_floating_point()
        plain = image.detach().as_subclass(torch.Tensor)
        if floating:
            plain = plain.mul(255.0).add(0.5).clamp(0, 255).to(torch.uint8)
        array = np.ascontiguousarray(plain.permute(1, 2, 0).numpy())

        def to_tensor(pixels: Any) -> torch.Tensor:
            tensor = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
            return _like(image, tensor.to(image.dtype).div(255.0) if floating else tensor)

        return array, to_tensor
    from PIL import Image

    array = np.ascontiguousarray(np.asarray(image.convert("RGB")))
    return array, Image.fromarray


def collate(batch: Sequence[tuple[Any, Any]]) -> tuple[list[Any], list[Any]]:
    """Lists of images and targets, the input of torchvision's detection models."""
    images, targets = zip(*batch)
    return list(images), list(targets)
