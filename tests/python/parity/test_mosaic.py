"""Whole mosaics against the plain loop, and what must not change their pixels."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch

import bilateral_reference
from parity.checkpoints import SD1, SD2, SHAPES, SMALL, Shape
from parity.reference import Area, Pipeline, mosaic

STEPS = 20

# Regions of odd latent sizes (17 x 19, ...), each of another size, with prompts that are cut,
# that name the subject twice, and whose subject falls apart into several tokens.
HEIGHT, WIDTH = 256, 288
AREAS = [
    Area((0, 0, 136, 152), "a photo of a single banana", "banana"),
    Area(
        (112, 0, 288, 152), "teapots, a photo of a single teapot, pot for brewing tea", "teapot", 5
    ),
    Area((0, 120, 152, 256), "a photo of a single dog " + "in the park " * 40, "dog"),
    Area((120, 120, 288, 256), "a painting of an old school bus", "school bus", 1.5),
]


def scaled(shape: Shape) -> tuple[int, int, list[Area]]:
    """The same canvas in latent cells, whatever the VAE's factor."""

    def px(value: int) -> int:
        return value // 8 * shape.vae_factor

    areas = [
        Area(tuple(px(v) for v in a.box), a.prompt, a.subject, a.guidance)  # type: ignore[arg-type]
        for a in AREAS
    ]
    return px(HEIGHT), px(WIDTH), areas


def seeded_noise(batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 4, HEIGHT // 8, WIDTH // 8, generator=torch.manual_seed(7))


def ours(generator: Any, shape: Shape, **options: Any) -> Any:
    from mosaicbank import Region

    height, width, areas = scaled(shape)
    regions = [
        Region(box=a.box, prompt=a.prompt, subject=a.subject, guidance=a.guidance) for a in areas
    ]
    values: dict[str, Any] = {
        "steps": STEPS,
        "seed": 0,
        "init_noise": seeded_noise().numpy(),
        "return_attention": True,
        **options,
    }
    return generator.generate_canvas(height=height, width=width, regions=regions, **values)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))


@pytest.fixture(scope="module")
def plain(checkpoint):
    """The plain loop's result for a shape, computed once."""
    done: dict[str, Any] = {}

    def result(shape: Shape) -> Any:
        if shape.name not in done:
            pipeline = Pipeline.load(checkpoint(shape))
            height, width, areas = scaled(shape)
            done[shape.name] = mosaic(pipeline, height, width, areas, STEPS, seeded_noise())
        return done[shape.name]

    return result


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
def test_pixels(shape, plain, generator):
    expected = plain(shape).image
    got = ours(generator(shape), shape).image
    assert got.dtype == np.uint8
    assert got.shape == expected.shape
    assert expected.std() > 30, "the reference image has to have something to compare"
    assert np.abs(got.astype(int) - expected.astype(int)).max() <= 2


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
def test_attention(shape, plain, generator):
    regions = ours(generator(shape), shape).regions
    for region, area, expected in zip(regions, AREAS, plain(shape).attention):
        assert region.prompt == area.prompt
        assert region.attention.dtype == np.float32
        assert region.attention.shape == expected.shape
        assert region.attention.max() == pytest.approx(1.0)
        assert region.attention.min() >= 0
        assert expected.std() > 0.05, "the reference map has to have something to compare"
        assert np.abs(region.attention - expected).max() <= 1e-3


def reference_mask(attention: np.ndarray, image: np.ndarray) -> np.ndarray:
    """OpenCV's Otsu threshold, then the bilateral solver on SciPy's sparse matrices."""
    grey = (attention * 255).astype(np.uint8)
    _, mask = cv2.threshold(grey, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    return bilateral_reference.refine(mask.astype(bool), image)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
def test_masks(shape, plain, generator):
    expected = plain(shape)
    for region, attention in zip(ours(generator(shape), shape).regions, expected.attention):
        x0, y0, x1, y1 = region.box
        want = reference_mask(attention, expected.image[y0:y1, x0:x1])
        assert region.mask.dtype == np.bool_
        assert region.mask.shape == want.shape
        assert 0.02 < want.mean() < 0.98, "the reference mask has to have something to compare"
        assert iou(region.mask, want) >= 0.99


# --- what must not change a pixel ------------------------------------------------------------


@pytest.mark.parametrize("shape", [SD1, SD2], ids=lambda s: s.name)
def test_capture_changes_no_bit(shape, generator):
    on = ours(generator(shape), shape, steps=6)
    off = ours(generator(shape), shape, steps=6, masks=False, return_attention=False)
    assert np.array_equal(on.image, off.image)
    assert off.instances == []
    assert all(region.attention is None and region.mask is None for region in off.regions)
    assert all(region.mask is not None for region in on.regions)


RECIPE = {"height": 128, "width": 128, "steps": 6, "regions": 4}
ROWS = [
    ["banana", "teapot", "dog", "school_bus"],
    ["dog", "dog", "banana", "cup"],
    ["teapot", "school_bus", "nest", "bird"],
    ["cup", "banana", "teapot", "dog"],
]


def recipe(**changes: Any) -> Any:
    from mosaicbank import Recipe

    return Recipe(**{**RECIPE, **changes})


def differences(a: Any, b: Any) -> int:
    return int(np.abs(a.image.astype(int) - b.image.astype(int)).max())


def test_a_batch_of_four_is_four_batches_of_one(generator):
    gen = generator(SD1)
    together = gen.generate(ROWS, recipe=recipe(), seeds=[3, 1, 4, 1], return_attention=True)
    assert len(together) == 4
    for names, seed, mosaic_of_four in zip(ROWS, [3, 1, 4, 1], together):
        (alone,) = gen.generate([names], recipe=recipe(), seeds=[seed], return_attention=True)
        assert alone.id == mosaic_of_four.id
        assert differences(alone, mosaic_of_four) <= 1
        for a, b in zip(alone.regions, mosaic_of_four.regions):
            assert a.box == b.box
            assert a.prompt == b.prompt
            assert np.abs(a.attention - b.attention).max() <= 1e-3


@pytest.mark.parametrize("batch", [1, 3])
def test_the_size_of_a_unet_call_changes_nothing_visible(batch, generator):
    gen = generator(SD1)
    whole = gen.generate(ROWS[:2], recipe=recipe(), seeds=[0, 1])
    split = gen.generate(ROWS[:2], recipe=recipe(), seeds=[0, 1], batch=batch)
    for a, b in zip(whole, split):
        assert differences(a, b) <= 1


def test_the_same_seed_is_the_same_mosaic_and_another_is_another(generator):
    gen = generator(SMALL)
    small = recipe(height=64, width=64)
    first, again, other = (
        gen.generate([ROWS[0]], recipe=small, seeds=[seed])[0] for seed in (5, 5, 6)
    )
    assert np.array_equal(first.image, again.image)
    assert first.id == again.id
    assert first.id != other.id
    assert differences(first, other) > 20


def test_the_global_generator_of_torch_is_left_alone(generator):
    gen = generator(SMALL)
    small = recipe(height=64, width=64)
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first = gen.generate([ROWS[0]], recipe=small, seeds=[5])[0]
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(12)
    assert np.array_equal(first.image, gen.generate([ROWS[0]], recipe=small, seeds=[5])[0].image)


def test_init_noise_takes_the_seeds_place(generator):
    gen = generator(SMALL)
    noise = seeded_noise().numpy()
    a = ours(gen, SMALL, steps=3, seed=1, init_noise=noise)
    b = ours(gen, SMALL, steps=3, seed=2, init_noise=noise)
    c = ours(gen, SMALL, steps=3, seed=1, init_noise=None)
    assert np.array_equal(a.image, b.image)
    assert differences(a, c) > 20


def test_without_guidance_the_negative_prompt_has_no_say(generator):
    gen = generator(SMALL)
    small = recipe(height=64, width=64)
    plain_, other = (
        gen.generate([ROWS[0]], recipe=small.replace(guidance=1.0, negative_prompt=text), seeds=[1])
        for text in ("", "a dog")
    )
    assert np.array_equal(plain_[0].image, other[0].image)
    guided = [
        gen.generate([ROWS[0]], recipe=small.replace(negative_prompt=text), seeds=[1])
        for text in ("", "a dog")
    ]
    assert differences(guided[0][0], guided[1][0]) > 2


def test_regions_of_every_count(generator):
    gen = generator(SMALL)
    for count, sizes in ((1, {(64, 64)}), (2, {(64, 128), (128, 64)}), (4, {(128, 128)})):
        small = recipe(height=64, width=64, regions=count, steps=2)
        for made in gen.generate([ROWS[0][:count]] * 3, recipe=small, seeds=[0, 1, 2]):
            assert made.image.shape[:2] in sizes
            assert len(made.regions) == count


def test_instances_are_valid_annotations(generator):
    """Boxes tight around masks, areas right, run lengths that pycocotools reads."""
    from pycocotools import mask as coco

    gen = generator(SD1)
    loose = {"min_area": 0.0, "max_area": 1.0, "components": "each"}
    made = gen.generate(ROWS, recipe=recipe(filter=loose), seeds=[0, 1, 2, 3])
    instances = [(m, i) for m in made for i in m.instances]
    assert instances, "the test needs instances to look at"
    for m, instance in instances:
        assert instance.mask.shape == m.image.shape[:2]
        assert instance.mask.dtype == np.bool_
        ys, xs = np.nonzero(instance.mask)
        assert instance.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        rle = dict(instance.rle)
        rle["counts"] = rle["counts"].encode() if isinstance(rle["counts"], str) else rle["counts"]
        assert np.array_equal(coco.decode(rle).astype(bool), instance.mask)
        assert instance.category in {name for row in ROWS for name in row}
        assert instance.provenance["mosaic"] == m.id
        assert instance.provenance["seed"] == m.seed
