"""Changes of style, shape and quality, so that a network does not lean on one drawing style.

:func:`restyle` redraws a source picture (its alpha stays exact), :func:`degrade` spoils a finished
one, :func:`busy` makes backgrounds that are harder than those of ``compose.py``, and :class:`Pool`
makes training batches of all three. The judge's
segmenter and the scorer are trained on their output; the generator is not.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from compose import Art, Picture, background, compose
from training import to_images

SIDE = 64
"""Side in px of the pictures that :class:`Pool` makes."""
FRESH = 0.25
"""Share of newly composed pictures in a batch; the others come from the last ``POOL`` ones."""
POOL, STYLED = 6000, 4000
"""Composed and redrawn pictures that are kept for another use."""
LEVEL = 1
"""The level of a picture that is redrawn: 80 px, enough for objects in 64 px regions."""
KERNELS = [
    cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * r + 1, 2 * r + 1)) for r in range(1, 4)
]


@dataclass
class Redrawn:
    """A redrawn :class:`compose.Picture`: one level of 80 px, premultiplied ``float32``."""

    category: str
    style: str
    levels: tuple[np.ndarray, ...]


def _dark(rng: np.random.Generator) -> np.ndarray:
    """The colour of a line: mostly near black, sometimes any: ``float32 [3]``."""
    if rng.random() < 0.8:
        return rng.uniform(0, 0.2, 3).astype(np.float32)
    return rng.uniform(0, 1, 3).astype(np.float32)


def _recolour(rng: np.random.Generator, rgb: np.ndarray, much: float) -> np.ndarray:
    """Other colours for ``rgb``; ``much`` 0..1 is how far they may go from the real ones."""
    draw = rng.random()
    if draw < 0.15:  # grey, or two colours
        grey = rgb @ np.float32([0.3, 0.59, 0.11])
        low, high = rng.uniform(0, 0.5, 3), rng.uniform(0.5, 1, 3)
        if rng.random() < 1 - much:
            low, high = np.zeros(3), np.ones(3)
        rgb = low + grey[..., None] * (high - low)
    elif draw < 0.15 + 0.25 * much:  # channels exchanged
        rgb = rgb[..., rng.permutation(3)]
    elif draw < 0.65:  # hue and saturation
        hsv = cv2.cvtColor(np.clip(rgb, 0, 1).astype(np.float32), cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0] + rng.normal(0, 15 + 60 * much)) % 360
        hsv[..., 1] *= rng.uniform(0.3, 1.5)
        rgb = cv2.cvtColor(np.clip(hsv, 0, [360, 1, 1]).astype(np.float32), cv2.COLOR_HSV2RGB)
    if rng.random() < 0.5:
        rgb = np.clip(rgb, 0, 1) ** np.exp(rng.normal(0, 0.35))
    if rng.random() < 0.1 * much:
        rgb = 1 - rgb
    return rgb


def restyle(
    rng: np.random.Generator,
    picture: Picture,
    recolour: float = 1.0,
    reshape: float = 1.0,
    texture: Picture | None = None,
) -> Redrawn:
    """``picture`` redrawn: outlines, inner lines, flat or missing fills, other colours, a warp.

    ``recolour`` and ``reshape`` (0..1) say how far colours and shape may go; ``texture`` is a
    picture whose paint may replace this one's. The alpha is the redrawn object's coverage.
    """
    pixels = picture.levels[LEVEL].copy()
    side = pixels.shape[0]
    if rng.random() < 0.6:
        angle = rng.normal(0, 0.15 + 0.4 * reshape * (rng.random() < 0.3))
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        stretch = np.exp(rng.normal(0, 0.12 + 0.1 * reshape, 2)) * 0.94
        shear = np.array([[1, rng.normal(0, 0.12)], [rng.normal(0, 0.08), 1]])
        matrix = turn @ shear @ np.diag(np.minimum(stretch, 1.1))
        centre = np.full(2, (side - 1) / 2)
        affine = np.hstack([matrix, (centre - matrix @ centre)[:, None]]).astype(np.float32)
        pixels = cv2.warpAffine(pixels, affine, (side, side), flags=cv2.INTER_LINEAR)
    if rng.random() < 0.4:
        pixels = np.ascontiguousarray(pixels[:, ::-1])
    alpha = np.clip(pixels[..., 3], 0, 1)
    rgb = np.where(alpha[..., None] > 1e-3, pixels[..., :3] / np.maximum(alpha, 1e-3)[..., None], 0)
    if texture is not None and rng.random() < 0.15 * reshape:
        other = texture.levels[LEVEL]
        share = other[..., 3:]
        fill = other[..., :3] + (1 - share) * rng.uniform(0, 1, 3)
        rgb = fill.astype(np.float32)
    if rng.random() < 0.25:  # flat colours
        steps = rng.integers(2, 6)
        rgb = np.round(rgb * steps) / steps
    if rng.random() < 0.25 + 0.5 * recolour:
        rgb = _recolour(rng, rgb, recolour)
    rgb = np.clip(rgb, 0, 1).astype(np.float32)

    line = rng.random()
    width = int(rng.integers(1, 3)) if line < 0.5 else 0
    if width:
        colour = _dark(rng)
        if rng.random() < 0.6:  # inner lines, where the paint changes
            paint = (rgb * 255).astype(np.uint8)
            edges = cv2.morphologyEx(paint, cv2.MORPH_GRADIENT, KERNELS[0]).max(-1) / 255.0
            ink = np.clip((edges - rng.uniform(0.1, 0.35)) * 6, 0, 1)[..., None]
            ink = ink * rng.uniform(0.5, 1)
        else:
            ink = np.zeros((side, side, 1))
        if rng.random() < 0.45:  # the fill is paper, or one colour
            paper = np.ones(3) if rng.random() < 0.6 else rng.uniform(0, 1, 3)
            share = rng.uniform(0.5, 1)
            rgb = rgb * (1 - share) + paper * share
        rgb = rgb * (1 - ink) + colour * ink
        if rng.random() < 0.6:  # the outline lies outside of the paint, or inside of it
            grown = cv2.dilate(alpha, KERNELS[width - 1])
            rgb = rgb * alpha[..., None] + colour * (1 - alpha[..., None])
            alpha = grown
        else:
            core = cv2.erode(alpha, KERNELS[width - 1])[..., None]
            rgb = rgb * core + colour * (1 - core)
    elif rng.random() < 0.08 * reshape:  # only a band along the outline: a thing of wire
        core = cv2.erode(alpha, KERNELS[rng.integers(1, 3)])
        alpha = np.clip(alpha - core, 0, 1)
    if rng.random() < 0.08 * reshape:  # a gap
        gap = np.zeros((side, side), np.float32)
        centre = tuple(int(v) for v in rng.integers(side // 4, 3 * side // 4, 2))
        axes = tuple(int(v) for v in rng.integers(2, side // 5, 2))
        cv2.ellipse(gap, centre, axes, rng.uniform(0, 180), 0, 360, 1.0, -1, cv2.LINE_AA)
        alpha = alpha * (1 - gap)
    out = np.concatenate([rgb * alpha[..., None], alpha[..., None]], -1).astype(np.float32)
    return Redrawn(picture.category, picture.style, (np.clip(out, 0, 1),))


def busy(
    rng: np.random.Generator, height: int, width: int, near: Picture | Redrawn | None
) -> np.ndarray:
    """A background that helps less: rougher, or in the object's own colours.

    ``near``: the object's picture; ``float32 [height, width, 3]`` in 0..1.
    """
    image = background(rng, height, width)[0]
    if near is not None and rng.random() < 0.5:
        pixels = near.levels[0]
        rows, cols = np.nonzero(pixels[..., 3] > 0.9)
        if rows.size:
            k = rng.integers(rows.size)
            image = 0.25 * image + 0.75 * pixels[rows[k], cols[k], :3]
    if rng.random() < 0.6:
        field = np.zeros((height, width, 3), np.float32)
        for cells in rng.integers(2, 20, 2):
            part = rng.normal(0, 1, (cells, cells, 3)).astype(np.float32)
            part = 0.7 * part.mean(-1, keepdims=True) + 0.3 * part
            field += cv2.resize(part, (width, height), interpolation=cv2.INTER_CUBIC)
        image = image + rng.uniform(0.01, 0.12) * field
    if rng.random() < 0.25:  # a few straight edges: tables, walls
        for _ in range(rng.integers(1, 4)):
            angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(-0.6, 0.6)
            ys, xs = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
            half = (np.cos(angle) * xs + np.sin(angle) * ys > offset)[..., None]
            image = image + half * rng.normal(0, 0.12, 3)
    return np.clip(image, 0, 1).astype(np.float32)


def degrade(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """A finished picture spoilt a little: blur, low contrast, coarse pixels, noise, JPEG.

    ``uint8 [H, W, 3]`` in and out; the outline stays where it was.
    """
    if rng.random() < 0.3:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.1))
    if rng.random() < 0.15:
        factor = rng.uniform(0.55, 0.9)
        small = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        image = cv2.resize(small, image.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    if rng.random() < 0.2:
        middle = image.mean()
        image = np.clip(middle + (image - middle) * rng.uniform(0.4, 1.2), 0, 255).astype(np.uint8)
    if rng.random() < 0.25:
        noise = rng.normal(0, rng.uniform(1, 9), image.shape)
        image = np.clip(image + noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.1:
        quality = int(rng.integers(35, 95))
        image = cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 1)
    return image


# ------------------------------------------------------------------------------- batches

Sample = tuple[np.ndarray, np.ndarray, int]
"""A composed picture ``uint8 [64, 64, 3]``, its coverage ``float32 [64, 64]``, its category."""


def to_input(images: np.ndarray) -> torch.Tensor:
    """``uint8 [B, 64, 64, 3]`` -> the network's input."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


class Pool:
    """Composed pictures with their coverage, used about ``1 / FRESH`` times, never the same way.

    Every reuse mirrors, turns and recolours the picture anew (on the whole batch at once).
    ``vae``: an ``AutoencoderKL`` that gives a quarter of the pictures the look of generated ones
    (None: no). ``change`` (0..1) says how far shape and colour may go: 1 suits a segmenter, less a
    network that has to name the object.
    """

    def __init__(self, art: Art, vae, seed: list[int], change: float = 1.0) -> None:
        self.art, self.vae, self.change = art, vae, change
        self.index = {name: number for number, name in enumerate(art.names)}
        self.rng = np.random.default_rng(seed)
        self.torch = torch.Generator().manual_seed(int(self.rng.integers(2**62)))
        self.styled: list[Redrawn] = []
        self.held: list[Sample] = []

    def _picture(self) -> Picture | Redrawn:
        """A source picture as it is (a quarter), or redrawn."""
        rng = self.rng
        name = self.art.names[rng.integers(len(self.art.names))]
        options = self.art.pictures[name]
        picture = options[rng.integers(len(options))]
        if rng.random() < 0.25:
            return picture
        if len(self.styled) == STYLED and rng.random() < 0.6:
            return self.styled[rng.integers(STYLED)]
        redrawn = restyle(rng, picture, self.change, self.change, self.art.draw(rng))
        self.styled = [*self.styled[-STYLED + 1 :], redrawn]
        return redrawn

    def _make(self) -> Sample:
        rng, picture = self.rng, self._picture()
        behind = busy(rng, SIDE, SIDE, picture) if rng.random() < 0.3 else None
        scale = (0.62, 0.95) if rng.random() < 0.5 else (0.4, 1.1)
        image, alpha, _ = compose(rng, picture, SIDE, SIDE, scale, 1.2, behind)
        return degrade(rng, image), alpha, self.index[picture.category]

    @torch.no_grad()
    def _generated_look(self, new: list[Sample]) -> None:
        """Send a quarter of ``new`` through the autoencoder, its latents a little noisy."""
        count = len(new) // 4
        if self.vae is None or count == 0:
            return
        images = to_input(np.stack([image for image, _, _ in new[:count]]))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            latents = self.vae.encode(images).latent_dist.mean.float()
            noise = torch.randn(latents.shape, generator=self.torch)
            level = 0.25 * torch.rand((count, 1, 1, 1), generator=self.torch) * latents.std()
            back = self.vae.decode(latents + level * noise).sample.float()
        for i, image in enumerate(to_images(back)):
            new[i] = (image, *new[i][1:])

    def batch(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pictures ``[B, 3, 64, 64]`` in -1..1, coverage ``[B, 64, 64]`` and numbers in
        ``art.names``, int64 ``[B]``."""
        fresh = count if len(self.held) < 4 * count else max(1, round(FRESH * count))
        new = [self._make() for _ in range(fresh)]
        if fresh < count:
            self._generated_look(new)
        old = self.rng.integers(0, max(1, len(self.held)), count - fresh)
        rows = new + [self.held[i] for i in old]
        images = to_input(np.stack([r[0] for r in rows]))
        alphas = torch.from_numpy(np.stack([r[1] for r in rows]))
        self.held = [*self.held, *new][-POOL:]
        draw = lambda *shape: torch.rand(shape, generator=self.torch)  # noqa: E731
        flip = draw(count) < 0.5
        images = torch.where(flip[:, None, None, None], images.flip(3), images)
        alphas = torch.where(flip[:, None, None], alphas.flip(2), alphas)
        turn = draw(count) < 0.15 * (self.change == 1)
        images = torch.where(turn[:, None, None, None], images.transpose(2, 3), images)
        alphas = torch.where(turn[:, None, None], alphas.transpose(1, 2), alphas)
        mix = torch.eye(3) + 0.12 * self.change * torch.randn((count, 3, 3), generator=self.torch)
        images = torch.einsum("bij,bjhw->bihw", mix, images)
        images = images * (0.75 + 0.5 * draw(count, 1, 1, 1)) + 0.3 * (draw(count, 1, 1, 1) - 0.5)
        order = torch.randperm(count, generator=self.torch)
        labels = torch.tensor([r[2] for r in rows])
        return images[order].clamp(-1, 1), alphas[order], labels[order]
