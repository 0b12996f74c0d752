"""The bilateral solver against SciPy sparse matrices, and the masks that come out."""

import numpy as np
import pytest

import bilateral_reference as reference
import pictures
from mosaicbank import masks

# On the target's scale, 0..255 and 0..1 alike.
TOLERANCE = 1e-3


def close(rgb, target, confidence=None):
    """Compares both; gives the difference and the number of vertices."""
    trust = np.full(target.shape, 0.999) if confidence is None else confidence
    grid = reference.Grid(rgb)
    expected = reference.solve(grid, target, trust)
    found = masks.bilateral_solve(rgb, target, confidence)
    assert found.vertices == len(grid.n)
    assert found.map.dtype == np.float32 and found.map.shape == target.shape
    difference = np.abs(found.map - expected).max()
    assert difference <= TOLERANCE, difference
    return expected, found


@pytest.mark.parametrize("scale", [1.0, 255.0])
@pytest.mark.parametrize(
    "size", [(1, 1), (1, 40), (37, 1), (15, 17), (16, 16), (97, 131), (200, 320), (384, 512)]
)
def test_solved_map(size, scale):
    rgb = pictures.synthetic(*size, seed=size[0])
    expected, _ = close(rgb, scale * pictures.blob(*size, seed=1).astype(np.float32))
    assert expected.max() <= 1.5 * scale


@pytest.mark.parametrize("noise", [0.0, 60.0])
def test_flat_and_noisy_pictures(noise):
    close(pictures.synthetic(120, 90, seed=4, noise=noise), 255.0 * pictures.blob(120, 90, 2))


def test_greys_and_a_flat_picture():
    grey = np.repeat(np.arange(256, dtype=np.uint8).reshape(1, 256, 1), 40, 0).repeat(3, 2)
    close(grey, 255.0 * pictures.blob(40, 256, 2))
    close(np.full((50, 60, 3), 255, np.uint8), 255.0 * pictures.blob(50, 60, 3))


def test_both_ways_to_the_references_vertices():
    rgb = pictures.synthetic(60, 70, 3)
    hashed, plain = reference.Grid(rgb), reference.Grid(rgb, hashed=False)
    assert abs(hashed.S - plain.S).nnz == 0 and abs(hashed.B - plain.B).nnz == 0


def test_confidence_map():
    rng = np.random.default_rng(0)
    confidence = (rng.random((90, 120)) * (rng.random((90, 120)) < 0.5)).astype(np.float32)
    close(pictures.synthetic(90, 120, 5), 255.0 * rng.random((90, 120)), confidence)


def test_real_pictures():
    for rgb, mask in pictures.real(6):
        close(rgb, 255.0 * mask)


def test_the_solver_smooths_within_edges():
    """Two flat halves, a target that spills over: the spill goes."""
    rgb = np.zeros((64, 96, 3), np.uint8)
    rgb[:, :48] = (200, 40, 40)
    rgb[:, 48:] = (20, 90, 200)
    spill = np.zeros((64, 96), bool)
    spill[8:56, 4:56] = True
    refined = masks.refine_mask(spill, rgb)
    assert refined[:, :48].mean() > 0.95
    assert not refined[:, 48:].any()


@pytest.mark.parametrize("size", [(97, 131), (200, 320)])
def test_refined_mask(size):
    rgb, mask = pictures.synthetic(*size, seed=7), pictures.blob(*size, seed=7)
    expected = reference.refine(mask, rgb)
    refined = masks.refine_mask(mask, rgb)
    assert refined.dtype == np.bool_
    assert expected.any() and (expected != mask).any()
    assert (refined == expected).all()


def test_refined_masks_of_real_pictures():
    for rgb, mask in pictures.real(4):
        assert (masks.refine_mask(mask, rgb) == reference.refine(mask, rgb)).all()


def test_empty_and_full_masks():
    rgb = pictures.synthetic(40, 50, 1)
    assert not masks.refine_mask(np.zeros((40, 50)), rgb).any()
    assert masks.refine_mask(np.ones((40, 50)), rgb).all()


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda r, t: masks.bilateral_solve(r, t * np.nan), "target: expected finite"),
        (lambda r, t: masks.bilateral_solve(r, t[:-1]), "rgb: expected"),
        (lambda r, t: masks.bilateral_solve(r.astype(float), t), "uint8"),
        (lambda r, t: masks.bilateral_solve(r, t, t + 2), "confidence: expected values within"),
        (lambda r, t: masks.bilateral_solve(r, t, t[1:]), "confidence: expected 8 x 9"),
        (lambda r, t: masks.bilateral_solve(r, t, sigma_luma=0), "sigma_luma"),
        (lambda r, t: masks.bilateral_solve(r, t, sigma=4), "unknown field `sigma`"),
        (lambda r, t: masks.bilateral_solve(r, t, passes=0), "passes"),
        (lambda r, t: masks.refine_mask(t, r, threshold=float("nan")), "refine"),
        (lambda r, t: masks.bilateral_solve(r[:0], t[:0]), "at least 1 x 1"),
    ],
)
def test_bad_input_says_what_is_wrong(call, says):
    with pytest.raises(ValueError, match=says):
        call(np.zeros((8, 9, 3), np.uint8), np.ones((8, 9), np.float32))
