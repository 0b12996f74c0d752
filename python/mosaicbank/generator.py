"""What is asked of a generator: recipes and regions.

Plain Python on purpose: they can be built, compared and stored where no torch is installed. The
values are checked in Rust, when a generator gets them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
import numpy.typing as npt

#: The keys of a recipe, in the order of `src/recipe/mod.rs`.
RECIPE_KEYS = (
    "height",
    "width",
    "regions",
    "center",
    "overlap",
    "steps",
    "guidance",
    "scheduler",
    "window",
    "template",
    "definition",
    "negative_prompt",
    "clip_skip",
    "masks",
    "refine",
    "checks",
    "keep",
)

#: Keys of version 0.1, which are still read (`src/recipe/layers.rs` says as what).
_OLD_KEYS = ("attention", "threshold", "filter")


class Recipe(Mapping[str, Any]):
    """What a mosaic looks like, but for the model and the seed.

    Only the values that are given; each other one is the model's recommendation or else the
    default of MosaicFusion (`Generator.resolve_recipe` shows the whole). A mapping from key to
    value; immutable.

    Args:
        values: any of the keys below, with values as JSON has them.

            height, width: of the base region, pixels; multiples of the VAE factor.
            regions: of a mosaic: 1, 2 or 4.
            center: [low, high], shares of the base region between which the centre is drawn.
            overlap: [height, width] of neighbouring regions' overlap, pixels; None: an eighth.
            steps: denoising steps.
            guidance: weight of classifier-free guidance; 1 turns it off.
            scheduler: "pndm", "ddim", "euler", "dpm_solver", "dpm_solver_karras", "lcm", or
                None for the checkpoint's own.
            window: {"kind": "gaussian", "variance": 0.01}, {"kind": "constant"} or
                {"kind": "quartic"}.
            template: prompt with {category} in it.
            definition: whether the category's definition follows, where one is known.
            negative_prompt: the unconditional prompt.
            clip_skip: layers left out at the end of the text encoder.
            masks: mask sources, in order of preference: {"kind": "attention", "blocks": ["down",
                "up"], "levels": [0, 1, 2], "subject": "last", "threshold": "otsu"}.
            refine: what improves a mask, one after the other: {"kind": "bilateral", ...}; an
                empty list or None leaves the masks unrefined.
            checks: what decides which objects are kept: {"kind": "size", "min_area": 0.05, ...}.
            keep: "canvas", "region" or "crop".

            The values that an entry of masks, refine or checks does not give are those of the
            same kind in the model's recommendation, or the kind's defaults. Instead of a list, a
            dict by kind changes single values and leaves the other entries:
            checks={"size": {"min_area": 0.01}}, or with dots,
            Recipe(**{"checks.size.min_area": 0.01}); a kind of None is removed.

    Raises:
        ValueError: a key that is not in this list.
        TypeError: a value that JSON cannot hold.
    """

    __slots__ = ("_json", "_values")

    _json: str
    _values: dict[str, Any]

    def __init__(self, **values: Any) -> None:
        for key in values:
            if key.split(".")[0] not in (*RECIPE_KEYS, *_OLD_KEYS):
                raise ValueError(f"recipe: expected the keys {', '.join(RECIPE_KEYS)}, got {key!r}")
        text = json.dumps(values)
        object.__setattr__(self, "_json", text)
        # Read back, so that what is held is what is sent, and nobody else holds it.
        object.__setattr__(self, "_values", json.loads(text))

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a Recipe does not change: use replace({name}=...)")

    def replace(self, **values: Any) -> Recipe:
        """The same recipe with these values.

        Raises:
            ValueError: a key that recipes do not have.
        """
        return Recipe(**{**self._values, **values})

    def to_json(self) -> str:
        """The given values as a JSON object."""
        return self._json

    def __getitem__(self, key: str) -> Any:
        return json.loads(self._json)[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(json.dumps(self._values, sort_keys=True))

    def __reduce__(self) -> tuple[Any, ...]:
        return _recipe, (self._json,)

    def __repr__(self) -> str:
        return f"Recipe({', '.join(f'{k}={v!r}' for k, v in self._values.items())})"


def _recipe(text: str) -> Recipe:
    return Recipe(**json.loads(text))


@dataclass(frozen=True, eq=False)
class Region:
    """One rectangle of a canvas, with one prompt.

    Attributes:
        box: (x0, y0, x1, y1), canvas pixels, multiples of the VAE factor: what is denoised.
        prompt: what to draw.
        subject: the words of the prompt whose attention becomes the mask; None: all of it.
        category: of the instance; None: the subject.
        guidance: weight of classifier-free guidance; None: the recipe's.
        own: (x0, y0, x1, y1), canvas pixels, inside the box: where the instance may lie; None:
            the whole box.
        noise_seed: draws the region's part of the initial noise from another seed.
        image: uint8 [h, w, 3] RGB of the box's size, to start from instead of pure noise.
        strength: with an image, the share of the steps that may change it, 0..1.
    """

    box: tuple[int, int, int, int]
    prompt: str
    subject: Optional[str] = None
    category: Optional[str] = None
    guidance: Optional[float] = None
    own: Optional[tuple[int, int, int, int]] = None
    noise_seed: Optional[int] = None
    image: Optional[npt.NDArray[np.uint8]] = None
    strength: float = 0.8
