"""Training pictures composed on the fly: one object with exact alpha on a smooth background.

The flow: :class:`Art` (the packed pictures) -> :func:`compose` (one picture, one mask) ->
:func:`caption` (the text that goes with it, and where the subject stands in it).
All sizes are in px, all masks are area coverage in 0..1.
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

TRAIN_STYLES = ("fluent3d", "fluent", "twemoji", "noto")
STYLE_WEIGHTS = {"fluent3d": 0.5, "fluent": 0.26, "twemoji": 0.12, "noto": 0.12}
"""How often each drawing style is drawn: the shaded 3D one looks most like a photo."""
STYLE_WORDS = {
    "fluent3d": "3d render",
    "fluent": "smooth drawing",
    "twemoji": "flat drawing",
    "noto": "cartoon drawing",
    "openmoji": "outline drawing",
}
TEMPLATE = "a photo of a single {}"
"""The generator's prompt template (MosaicFusion, arXiv 2309.13042, section 3.2)."""


@dataclass
class Picture:
    """One source picture: PNG bytes, decoded when it is first used."""

    category: str
    style: str
    source: bytes

    @cached_property
    def levels(self) -> tuple[np.ndarray, ...]:
        """Premultiplied ``float32 [S, S, 4]`` in 0..1, S = 160, 80, 40."""
        image = Image.open(io.BytesIO(self.source))
        pixels = np.asarray(image, dtype=np.float32) / 255.0
        pixels = np.concatenate([pixels[..., :3] * pixels[..., 3:], pixels[..., 3:]], -1)
        levels = [pixels]
        while len(levels) < 3:
            levels.append(
                cv2.resize(levels[-1], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
            )
        return tuple(levels)


class Art:
    """The pictures of ``art.zip`` by category.

    ``styles`` limits the drawing styles, ``tier`` the categories (see ``curated.json``).
    """

    def __init__(
        self, path: Path, styles: tuple[str, ...] = TRAIN_STYLES, tier: int | None = None
    ) -> None:
        self.pictures: dict[str, list[Picture]] = {}
        self.definitions: dict[str, str] = {}
        self._read(path, styles, tier)
        if not self.pictures:
            raise ValueError(f"{path}: no picture with styles {styles} and tier <= {tier}")
        self.names = sorted(self.pictures)
        self.share: np.ndarray | None = None

    def _read(self, path: Path, styles: tuple[str, ...], tier: int | None) -> None:
        with zipfile.ZipFile(path) as archive:
            for entry in json.loads(archive.read("index.json")):
                if entry["style"] not in styles or (tier is not None and entry["tier"] > tier):
                    continue
                name = entry["category"]
                picture = Picture(name, entry["style"], archive.read(entry["file"]))
                self.pictures.setdefault(name, []).append(picture)
                self.definitions[name] = entry["definition"]

    def extend(self, path: Path, styles: tuple[str, ...]) -> Art:
        """Read the pictures of another archive besides, of the same categories; returns itself."""
        before = set(self.names)
        self._read(path, styles, None)
        return self.only(before)

    def boost(self, names: set[str], factor: float) -> None:
        """Draw the categories ``names`` ``factor`` times as often as the others."""
        weights = np.array([factor if n in names else 1.0 for n in self.names])
        self.share = weights / weights.sum()

    def only(self, names: set[str]) -> Art:
        """Keep only the categories ``names``; returns itself."""
        missing = names - set(self.names)
        if missing:
            raise ValueError(f"no pictures of {sorted(missing)}; known: {self.names}")
        self.names = sorted(names)
        self.pictures = {n: self.pictures[n] for n in self.names}
        return self

    def draw(self, rng: np.random.Generator, name: str | None = None) -> Picture:
        """A random picture: a category by its share (or ``name``), then a style by weight."""
        name = name or self.names[rng.choice(len(self.names), p=self.share)]
        options = self.pictures[name]
        weights = np.array([STYLE_WEIGHTS.get(p.style, 0.2) for p in options])
        return options[rng.choice(len(options), p=weights / weights.sum())]


# ------------------------------------------------------------------------- background


def _colour(rng: np.random.Generator) -> np.ndarray:
    """A random, mostly muted colour: ``float32 [3]`` RGB in 0..1."""
    hsv = np.array([[[rng.uniform(0, 360), rng.beta(1.2, 2.5), rng.beta(2.5, 1.6)]]], np.float32)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0]


def _near(rng: np.random.Generator, colour: np.ndarray, spread: float) -> np.ndarray:
    return np.clip(colour + rng.normal(0, spread, 3), 0, 1).astype(np.float32)


def background(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, str]:
    """A smooth background: ``float32 [height, width, 3]`` in 0..1, and words for it."""
    ys = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    xs = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    base = _colour(rng)
    kind = rng.choice(5, p=[0.15, 0.25, 0.15, 0.2, 0.25])
    if kind == 0:  # plain
        image = np.broadcast_to(base, (height, width, 3)).astype(np.float32)
        words = "plain background"
    elif kind == 1:  # linear gradient
        angle = rng.uniform(0, 2 * np.pi)
        t = (0.5 + 0.36 * (np.cos(angle) * xs + np.sin(angle) * ys))[..., None]
        image = base * (1 - t) + _near(rng, base, 0.22) * t
        words = "gradient background"
    elif kind == 2:  # light spot
        cx, cy = rng.uniform(-0.5, 0.5, 2)
        t = np.exp(-((xs - cx) ** 2 + (ys - cy) ** 2) / rng.uniform(0.4, 1.5))[..., None]
        image = base * (1 - t) + np.clip(_near(rng, base, 0.08) + 0.18, 0, 1) * t
        words = "spotlight background"
    elif kind == 3:  # soft texture
        grid = rng.integers(3, 7)
        field = rng.normal(0, 1, (grid, grid, 3)).astype(np.float32)
        field = 0.7 * field.mean(-1, keepdims=True) + 0.3 * field
        field = cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC)
        image = base + rng.uniform(0.03, 0.10) * field
        words = "soft background"
    else:  # a wall and a floor, or a sky and a ground
        horizon = rng.uniform(-0.2, 0.7)
        t = 1 / (1 + np.exp(-(ys - horizon) * rng.uniform(6, 40)))[..., None]
        floor = _near(rng, base, 0.2)
        image = (base + 0.10 * ys[..., None]) * (1 - t) + (floor - 0.12 * ys[..., None]) * t
        image = np.broadcast_to(image, (height, width, 3))
        words = "on the ground"
    return np.clip(image, 0, 1).astype(np.float32), words


# ------------------------------------------------------------------------------ object


def _jitter(rng: np.random.Generator, rgb: np.ndarray, strength: float) -> np.ndarray:
    """Mild change of hue (by mixing channels), saturation, contrast and brightness."""
    grey = rgb.mean(-1, keepdims=True)
    rgb = grey + (rgb - grey) * rng.uniform(1 - 0.25 * strength, 1 + 0.25 * strength)
    mix = np.eye(3) + rng.normal(0, 0.03 * strength, (3, 3))
    rgb = rgb @ mix.astype(np.float32)
    rgb = (rgb - 0.5) * rng.uniform(1 - 0.15 * strength, 1 + 0.1 * strength) + 0.5
    return rgb * rng.uniform(1 - 0.18 * strength, 1 + 0.12 * strength)


def compose(
    rng: np.random.Generator,
    picture: Picture,
    height: int,
    width: int,
    scale: tuple[float, float] = (0.62, 0.95),
    strength: float = 1.0,
    behind: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, str]:
    """Put ``picture`` on a random background.

    ``scale``: range of the object's longer side as a share of the shorter region side;
    ``behind``: ``float32 [height, width, 3]`` in 0..1 instead of a random background.
    Returns the image ``uint8 [height, width, 3]``, the object's coverage
    ``float32 [height, width]`` and words that describe the background.
    """
    image, words = background(rng, height, width) if behind is None else (behind, "")
    side = rng.uniform(*scale) * min(height, width)
    level = picture.levels[0]
    for candidate in picture.levels:
        if candidate.shape[0] >= side:
            level = candidate
    factor = side / level.shape[0]
    angle = np.deg2rad(rng.normal(0, 6)) * strength
    cos, sin = np.cos(angle) * factor, np.sin(angle) * factor
    slack_x, slack_y = max(0.0, (width - side) / 2), max(0.0, (height - side) / 2)
    cx = width / 2 + rng.uniform(-slack_x, slack_x)
    cy = height / 2 + rng.uniform(-slack_y, slack_y)
    half = (level.shape[0] - 1) / 2
    matrix = np.array(
        [
            [cos, -sin, cx - 0.5 - cos * half + sin * half],
            [sin, cos, cy - 0.5 - sin * half - cos * half],
        ],
        np.float32,
    )
    warped = cv2.warpAffine(level, matrix, (width, height), flags=cv2.INTER_LINEAR)
    alpha = np.clip(warped[..., 3:], 0, 1)
    rgb = np.where(alpha > 1e-3, warped[..., :3] / np.maximum(alpha, 1e-3), 0)
    rgb = _jitter(rng, rgb, strength)
    ys = np.linspace(-1, 1, height, dtype=np.float32)[:, None, None]
    xs = np.linspace(-1, 1, width, dtype=np.float32)[None, :, None]
    light = rng.normal(0, 0.07 * strength, 2)
    rgb = np.clip(rgb * (1 + light[0] * xs + light[1] * ys), 0, 1)
    if rng.random() < 0.4:
        shift = np.float32([[1, 0, rng.normal(0, 0.04 * width)], [0, 1, 0.05 * height]])
        shadow = cv2.warpAffine(alpha[..., 0], shift, (width, height))
        shadow = cv2.GaussianBlur(shadow, (0, 0), max(1.0, 0.04 * min(height, width)))
        image = image * (1 - rng.uniform(0.1, 0.4) * shadow[..., None])
    image = image * (1 - alpha) + rgb * alpha
    image = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return image, alpha[..., 0].astype(np.float32), words


# ----------------------------------------------------------------------------- caption


def readable(name: str) -> str:
    """An LVIS name as it stands in a prompt: ``puffer_(fish)`` -> ``puffer (fish)``."""
    return name.replace("_", " ")


def subject(name: str) -> str:
    """The words whose attention is the mask: the name without its sense in parentheses.

    ``puffer_(fish)`` -> ``puffer``, as the generator reads it.
    """
    return readable(name).split(" (")[0]


def prompt(name: str, definition: str | None) -> str:
    """The generator's own prompt: ``a photo of a single {name}, {definition}``."""
    text = TEMPLATE.format(readable(name))
    return f"{text}, {definition}" if definition else text


def caption(
    rng: np.random.Generator, name: str, definition: str, style: str, words: str
) -> tuple[str, str]:
    """A training caption and the subject inside it (both empty in 10 % of the draws).

    60 % of the captions are exactly the generator's prompt with the definition; the others
    leave it out or add words for the drawing style or the background.
    """
    draw = rng.random()
    if draw < 0.10:
        return "", ""
    if draw < 0.64:
        text = prompt(name, definition)
    elif draw < 0.76:
        text = prompt(name, None)
    elif draw < 0.84:
        text = f"{prompt(name, None)}, {STYLE_WORDS[style]}"
    elif draw < 0.92:
        text = f"{prompt(name, None)}, {words}"
    elif draw < 0.97:
        text = f"{prompt(name, None)}, {STYLE_WORDS[style]}, {words}"
    else:
        text = f"a photo of {readable(name)}"
    return text, subject(name)
