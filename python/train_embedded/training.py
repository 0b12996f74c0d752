"""What the trainings of this folder share: budget, checkpoints, averaged weights, pictures."""

from __future__ import annotations

import math
import signal
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image


class Stop:
    """Becomes true on SIGINT or SIGTERM, so that the loop can save before it ends."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGINT, self._ask)
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_) -> None:
        self.asked = True


class Budget:
    """How far the run is, 0..1, by active minutes or by samples, and the learning rate."""

    def __init__(self, minutes: float | None, samples: int | None, state: dict) -> None:
        if not minutes and not samples:
            raise SystemExit("train: give --minutes or --samples")
        self.minutes, self.samples = minutes, samples
        self.seconds = state.get("seconds", 0.0)
        self.seen = state.get("samples", 0)
        self.steps = state.get("steps", 0)
        self.last = time.monotonic()

    def tick(self, samples: int) -> None:
        """Count one step of ``samples`` samples."""
        now = time.monotonic()
        self.seconds += now - self.last
        self.last, self.seen, self.steps = now, self.seen + samples, self.steps + 1

    @property
    def progress(self) -> float:
        parts = [0.0]
        if self.minutes:
            parts.append(self.seconds / (60 * self.minutes))
        if self.samples:
            parts.append(self.seen / self.samples)
        return max(parts)

    def rate(self, top: float, warmup: int, decay: float) -> float:
        """Warm-up, constant, then a half cosine to zero over the last ``decay`` share."""
        tail = min(1.0, max(0.0, (self.progress - (1 - decay)) / decay))
        return top * min(1.0, (self.steps + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * tail))

    def state(self) -> dict:
        return {"seconds": self.seconds, "samples": self.seen, "steps": self.steps}


def save(path: Path, state: dict) -> None:
    """Write a checkpoint beside ``path``, then rename it."""
    temporary = path.with_suffix(".part")
    torch.save(state, temporary)
    temporary.replace(path)


def load(path: Path) -> dict | None:
    """The checkpoint at ``path`` on the CPU, or None."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


def grid(images: np.ndarray, columns: int, path: Path, zoom: int = 2) -> None:
    """Draw ``uint8 [N, H, W, 3]`` as a grid."""
    count, height, width, _ = images.shape
    rows = -(-count // columns)
    sheet = np.zeros((rows * height, columns * width, 3), np.uint8)
    for i, image in enumerate(images):
        y, x = i // columns * height, i % columns * width
        sheet[y : y + height, x : x + width] = image
    size = (sheet.shape[1] * zoom, sheet.shape[0] * zoom)
    temporary = path.with_name("part_" + path.name)
    Image.fromarray(sheet).resize(size, Image.Resampling.NEAREST).save(temporary)
    temporary.replace(path)


def to_tensor(images: np.ndarray, device: torch.device) -> torch.Tensor:
    """``uint8 [B, H, W, 3]`` -> ``float32 [B, 3, H, W]`` in -1..1."""
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(tensor: torch.Tensor) -> np.ndarray:
    """``[B, 3, H, W]`` in -1..1 -> ``uint8 [B, H, W, 3]``."""
    pixels = ((tensor.float() + 1) * 127.5).round().clamp(0, 255)
    return pixels.permute(0, 2, 3, 1).byte().cpu().numpy()


class Ema:
    """Moving average of parameters, with the usual shorter memory at the start."""

    def __init__(self, modules: list[torch.nn.Module], decay: float) -> None:
        self.parameters = [p for m in modules for p in m.parameters()]
        self.decay = decay
        self.average = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the parameters with their averages (call twice to come back)."""
        for parameter, average in zip(self.parameters, self.average, strict=True):
            keep = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(keep)
