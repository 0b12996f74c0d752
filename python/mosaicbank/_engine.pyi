"""Types of `mosaicbank._engine` (src/python/engine.rs): the generator, which needs libtorch."""

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any, Final, final

import numpy as np
import numpy.typing as npt

from mosaicbank.generator import Recipe, Region

__all__ = ["Generator", "Instance", "Mosaic", "RegionResult", "__version__", "main"]

__version__: Final[str]

def main(argv: Sequence[str]) -> int:
    """Run the command line and return its exit status.

    Args:
        argv: the arguments, without the program's name.
    """

@final
class Generator:
    """A diffusion model that makes labelled mosaics.

    Made by `Generator.from_pretrained`. Its methods may be called from any thread; calls wait
    for each other.
    """

    @staticmethod
    def from_pretrained(
        model: str | PathLike[str] = ...,
        device: str = "cpu",
        dtype: str = "float32",
        *,
        annotations: str | PathLike[str] | None = None,
        threads: int | None = None,
        aliases: list[str] | None = None,
    ) -> Generator:
        """Load a model.

        Args:
            model: a diffusers-layout directory of the Stable Diffusion 1.x or 2.x family, or
                "embedded" (the default) for the model that is part of mosaicbank.
            device: "cpu", "cuda" or "cuda:<index>".
            dtype: "float32", "float16" or "bfloat16"; of text encoder and UNet.
            annotations: an LVIS or COCO JSON file whose categories give ids and definitions and
                are the only ones accepted; the model's own table when not given.
            threads: number of threads that libtorch computes with; as it is when not given.
            aliases: names, definitions or prompts under which the model draws categories:
                "category=name", or JSON or TOML files. Without one, a category is drawn under the
                name that the model was trained on.

        Raises:
            FileNotFoundError: a directory or file is missing; pickles do not count.
            ValueError: a file is malformed, holds a value that is not supported, or weights
                that do not fit; names the file and the key or tensor.
        """

    @property
    def device(self) -> str:
        """Where it runs."""

    @property
    def dtype(self) -> str:
        """Working dtype of text encoder and UNet."""

    @property
    def path(self) -> PathLike[str]:
        """The model's directory."""

    @property
    def weights(self) -> str:
        """SHA-256 over the model's weights, hexadecimal."""

    @property
    def factor(self) -> int:
        """Pixels per latent cell, along each axis."""

    @property
    def categories(self) -> list[str] | None:
        """Names of the categories that may be asked for; None where any may."""

    def resolve_recipe(self, recipe: Recipe | Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The whole recipe that these values stand for on this model: the paper's defaults, the
        model's recommendations, then the given values.

        Raises:
            ValueError: an unknown key, or a value that is not possible.
        """

    def generate(
        self,
        categories: Sequence[Sequence[str]],
        recipe: Recipe | Mapping[str, Any] | None = None,
        seeds: Sequence[int] | None = None,
        init_noise: npt.NDArray[np.float32] | None = None,
        return_attention: bool = False,
        *,
        masks: bool = True,
        batch: int | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> list[Mosaic]:
        """Make labelled mosaics.

        Args:
            categories: for each mosaic the names of its regions' categories, row by row.
            recipe: a Recipe, a dict of recipe keys, or None.
            seeds: one per mosaic; 0, 1, ... when not given. A mosaic depends on weights, recipe,
                categories and its seed alone.
            init_noise: float32 [B, C, H / factor, W / factor], used instead of seeded noise.
            return_attention: keep each region's attention map.
            masks: False leaves attention alone; the mosaics then have no masks and no
                instances.
            batch: regions per UNet call at most; does not change the result.
            progress: called as progress(steps_done, steps) after every step.

        Raises:
            KeyError: a category is not in the table.
            ValueError: a size, a recipe value or an array shape that is not possible.
            MemoryError: the device has not enough memory for the batch.
        """

    def generate_canvas(
        self,
        height: int,
        width: int,
        regions: Sequence[Region],
        steps: int | None = None,
        seed: int = 0,
        init_noise: npt.NDArray[np.float32] | None = None,
        return_attention: bool = False,
        *,
        recipe: Recipe | Mapping[str, Any] | None = None,
        masks: bool = True,
        batch: int | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> Mosaic:
        """Make one mosaic with a layout of one's own.

        Args:
            height: of the canvas, pixels.
            width: of the canvas, pixels.
            regions: what to draw where.
            steps: denoising steps; the recipe's when not given.
            seed: decides the noise.
            init_noise: float32 [1, C, H / factor, W / factor], used instead of seeded noise.
            return_attention: keep each region's attention map.
            recipe: a Recipe, a dict of recipe keys, or None.
            masks: False leaves attention alone.
            batch: regions per UNet call at most.
            progress: called as progress(steps_done, steps) after every step.

        Raises:
            ValueError, MemoryError: as generate.
        """

    def tokenize(self, prompt: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids and the characters that each covers.

        Returns:
            ids (77 for Stable Diffusion), and for each token (start, end) in the prompt; (0, 0)
            for special tokens.
        """

    def encode_prompts(self, prompts: Sequence[str], clip_skip: int = 0) -> npt.NDArray[np.float32]:
        """Prompt embeddings, float32 [n, tokens, width]."""

    def unet(
        self,
        latents: npt.NDArray[np.float32],
        timestep: float,
        embeddings: npt.NDArray[np.float32],
        guidance: float = 1.0,
    ) -> npt.NDArray[np.float32]:
        """The UNet's prediction, float32 [B, C, h, w].

        Args:
            latents: float32 [B, C, h, w].
            timestep: of the training schedule.
            embeddings: float32 [B, tokens, width].
            guidance: for distilled models that take it as an input.
        """

    def decode(self, latents: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Latents float32 [B, C, h, w] to pixels float32 [B, 3, H, W], about -1..1."""

    def encode(self, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Pixels float32 [B, 3, H, W], -1..1, to mean latents float32 [B, C, h, w]."""

    def scheduler_timesteps(self, scheduler: str | None, steps: int) -> list[float]:
        """The training timesteps of the UNet calls, in order.

        Args:
            scheduler: a name that recipes accept; None for the checkpoint's own.
            steps: number of steps.
        """

    def run_scheduler(
        self,
        scheduler: str | None,
        steps: int,
        noise: npt.NDArray[np.float32],
        model: Callable[[npt.NDArray[np.float32], float], npt.NDArray[np.float32]],
        noises: npt.NDArray[np.float32] | None = None,
    ) -> list[npt.NDArray[np.float32]]:
        """A whole trajectory with a model of one's own.

        Args:
            scheduler: a name that recipes accept; None for the checkpoint's own.
            steps: number of steps.
            noise: float32, any shape: standard normal noise.
            model: called as model(sample, timestep) with the scaled sample; returns float32 of
                the same shape.
            noises: for schedulers that add noise: float32 [calls, *noise.shape].

        Returns:
            the sample after every call, a list of float32 arrays.
        """

@final
class Mosaic:
    """A generated picture with its regions and instances."""

    @property
    def id(self) -> str:
        """Hash of weights, recipe, seed and regions: the same mosaic has the same id."""

    @property
    def seed(self) -> int:
        """Its seed."""

    @property
    def image(self) -> npt.NDArray[np.uint8]:
        """uint8 [H, W, 3], RGB."""

    @property
    def regions(self) -> list[RegionResult]:
        """All regions, with the whole way to their verdicts."""

    @property
    def instances(self) -> list[Instance]:
        """The instances that are kept."""

    @property
    def not_exhaustive(self) -> list[str]:
        """Categories of regions without a kept mask (LVIS: not exhaustively annotated)."""

    @property
    def problem(self) -> str | None:
        """Why the picture cannot be used, or None."""

@final
class RegionResult:
    """One region of a mosaic."""

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(x0, y0, x1, y1), canvas pixels: what was denoised for it."""

    @property
    def own(self) -> tuple[int, int, int, int]:
        """(x0, y0, x1, y1), canvas pixels: the part that its instance may lie in."""

    @property
    def prompt(self) -> str:
        """Its prompt."""

    @property
    def category(self) -> str:
        """Category of its subject."""

    @property
    def attention(self) -> npt.NDArray[np.float32] | None:
        """float32 [h, w], 0..1, of the region's size; None unless it was asked for."""

    @property
    def mask(self) -> npt.NDArray[np.bool_] | None:
        """bool [h, w], of the region's size: refined, before the filter; None without masks."""

    @property
    def verdict(self) -> str:
        """ "kept", or why it was not."""

    @property
    def kept(self) -> bool:
        """Whether its instance was kept."""

@final
class Instance:
    """One object on a mosaic."""

    @property
    def category(self) -> str:
        """Category name."""

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """bool [H, W], on the canvas."""

    @property
    def rle(self) -> dict[str, Any]:
        """COCO's compressed encoding: {"size": [H, W], "counts": str}."""

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(x0, y0, x1, y1), pixels, tight around the mask."""

    @property
    def area(self) -> int:
        """Number of mask pixels."""

    @property
    def score(self) -> float:
        """Mean attention inside the mask, 0..1."""

    @property
    def provenance(self) -> dict[str, Any]:
        """Where it came from: model, weights, prompt, seed, recipe, mosaic, region."""
