"""Aggregation against torch, Otsu's threshold against OpenCV."""

import numpy as np
import pytest

from mosaicbank import masks


@pytest.mark.parametrize(
    "size, to",
    [
        ((1, 1), (5, 7)),
        ((2, 3), (16, 16)),
        ((12, 16), (384, 512)),
        ((13, 17), (384, 512)),
        ((48, 64), (384, 512)),
        ((24, 31), (97, 131)),
        ((64, 48), (20, 11)),
        ((9, 9), (9, 9)),
    ],
)
def test_bicubic_is_torchs(size, to):
    import torch

    map = np.random.default_rng(sum(size)).random(size, np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(map)[None, None], size=to, mode="bicubic", align_corners=False
    )[0, 0].numpy()
    found = masks.resize_bicubic(map, *to)
    assert found.dtype == np.float32 and found.shape == to
    assert np.abs(found - expected).max() <= 5e-6


@pytest.mark.parametrize("region", [(384, 512), (136, 152), (97, 131)])
def test_aggregation(region):
    import torch

    rng = np.random.default_rng(region[0])
    maps, size = [], [-(-side // 8) for side in region]
    for _ in range(3):
        maps.append((rng.random(size) ** 3 * rng.uniform(1e-6, 0.3)).astype(np.float32))
        size = [-(-side // 2) for side in size]
    resized = [
        torch.nn.functional.interpolate(
            torch.from_numpy(m / m.max())[None, None], size=region, mode="bicubic"
        )[0, 0]
        for m in maps
    ]
    expected = torch.stack(resized).mean(0)
    expected = (expected / expected.max()).clamp(min=0).numpy()
    found = masks.aggregate_attention(maps, *region)
    assert found.max() == 1.0 and found.min() >= 0.0
    assert np.abs(found - expected).max() <= 3e-6


@pytest.mark.parametrize("region", [(384, 512), (136, 152), (97, 131), (8, 4)])
@pytest.mark.parametrize("noise", [1, 3])
def test_the_papers_aggregation_is_pillows(region, noise):
    Image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(region[0] + noise)
    sizes = [(48, 64), (24, 32), (13, 16), region]
    maps = [(rng.random(s) ** noise * rng.uniform(1e-6, 0.3)).astype(np.float32) for s in sizes]
    resized = [
        np.asarray(
            Image.fromarray((m.astype(float) / m.max() * 255).astype(np.uint8)).resize(
                region[::-1], Image.Resampling.BICUBIC
            )
        )
        for m in maps
    ]
    # Alone, so that no rounding hides a difference: the same 8 bits.
    for one, expected in zip(maps, resized):
        found = masks.aggregate_attention([one], *region, aggregation="paper")
        expected = (expected / 255 / (expected.max() / 255) * 255).astype(np.uint8)
        assert np.array_equal(np.rint(found * 255), expected)
    mean = np.mean([r / 255 for r in resized], axis=0)
    expected = (mean / mean.max() * 255).astype(np.uint8)
    found = masks.aggregate_attention(maps, *region, aggregation="paper")
    assert found.dtype == np.float32 and found.max() == 1.0
    assert np.array_equal(np.rint(found * 255), expected)


def test_an_unknown_aggregation_is_refused():
    with pytest.raises(ValueError, match=r"paper.*pillow"):
        masks.aggregate_attention([np.eye(4)], 8, 8, aggregation="pillow")


def test_a_map_of_zeros_gives_no_mask():
    zero = masks.aggregate_attention([np.zeros((4, 4)), np.zeros((2, 2))], 16, 16)
    assert not zero.any()
    assert not masks.threshold_map(zero).any()
    # One resolution without any attention does not hide the other.
    half = masks.aggregate_attention([np.zeros((4, 4)), np.eye(2)], 16, 16)
    assert half.max() == 1.0


@pytest.mark.parametrize(
    "maps, says",
    [
        ([], "at least one resolution"),
        ([np.ones((2, 2)), np.full((2, 3), np.nan)], "attention map 1: expected finite values"),
        ([np.full((2, 2), np.inf)], "row 0, column 0"),
        ([-np.ones((2, 2))], "probabilities"),
        ([np.ones((0, 2))], "at least 1 x 1"),
    ],
)
def test_bad_maps_are_refused(maps, says):
    with pytest.raises(ValueError, match=says):
        masks.aggregate_attention(maps, 8, 8)


def otsu(values):
    import cv2

    kind = cv2.THRESH_BINARY + cv2.THRESH_OTSU
    threshold, mask = cv2.threshold(values, 0, 1, kind)
    return threshold, mask > 0


def histograms():
    rng = np.random.default_rng(0)
    for _ in range(300):
        levels = rng.integers(1, 40)
        values = rng.choice(256, levels, replace=False)
        share = rng.dirichlet(np.full(levels, rng.uniform(0.05, 5)))
        yield rng.choice(values, (37, 53), p=share).astype(np.uint8)
    for _ in range(100):
        low, high = sorted(rng.integers(0, 256, 2))
        two = np.where(rng.random((40, 40)) < rng.uniform(0, 1), low, high)
        yield two.astype(np.uint8)
    for spread in (3, 30, 80):
        yield np.clip(rng.normal(120, spread, (384, 512)), 0, 255).astype(np.uint8)


def test_otsu_is_opencvs():
    for i, values in enumerate(histograms()):
        threshold, _ = otsu(values)
        assert masks.otsu_threshold(values) == threshold, i


@pytest.mark.parametrize("value", [0, 1, 128, 255])
def test_otsu_of_one_value(value):
    assert (
        masks.otsu_threshold(np.full((9, 9), value, np.uint8))
        == otsu(np.full((9, 9), value, np.uint8))[0]
    )


def test_threshold_of_a_map():
    rng = np.random.default_rng(1)
    map = rng.beta(0.4, 0.9, (97, 131)).astype(np.float32)
    _, expected = otsu((map * 255).astype(np.uint8))
    assert (masks.threshold_map(map) == expected).all()
    assert (masks.threshold_map(map, fixed=0.3) == (map > np.float32(0.3))).all()


@pytest.mark.parametrize(
    "map, fixed, says",
    [
        ([[0.5, float("nan")]], None, "within 0..1"),
        ([[0.5, 1.5]], 0.3, "within 0..1"),
        ([[0.5]], 1.0, "threshold.fixed"),
        ([[0.5]], float("nan"), "threshold.fixed"),
    ],
)
def test_bad_maps_and_thresholds_are_refused(map, fixed, says):
    with pytest.raises(ValueError, match=says):
        masks.threshold_map(map, fixed)
