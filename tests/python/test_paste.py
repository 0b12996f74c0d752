"""The paste: valid annotations whatever is pasted, in every format, by every mode."""

import hypothesis
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from bank_helpers import ellipse, instance, make_bank, picture
from mosaicbank import _core

st = hypothesis.strategies


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return make_bank(tmp_path_factory.mktemp("paste") / "bank", instances=30, mosaics=5)


def scene(seed=0, height=200, width=260, n=5):
    """An image and ellipses on it that may overlap: (image, masks, boxes, classes)."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((n, height, width), bool)
    for m in masks:
        h, w = int(rng.integers(8, height // 2)), int(rng.integers(8, width // 2))
        y, x = int(rng.integers(0, height - h)), int(rng.integers(0, width - w))
        m[y : y + h, x : x + w] = ellipse(h, w)
    return picture(rng, height, width), masks, boxes_of(masks), rng.integers(0, 5, n)


def boxes_of(masks):
    boxes = np.zeros((len(masks), 4), np.float32)
    for box, m in zip(boxes, masks):
        ys, xs = np.nonzero(m.any(1))[0], np.nonzero(m.any(0))[0]
        box[:] = xs[0], ys[0], xs[-1] + 1, ys[-1] + 1
    return boxes


def check(result, image, masks, classes):
    """Invariant 5: every annotation is valid, and agrees with what was there."""
    m = len(result.classes)
    n = len(result.kept)
    assert result.masks.dtype == bool and result.masks.shape == (m, *image.shape[:2])
    assert result.boxes.shape == (m, 4) and result.source.tolist() == [0] * n + [1] * (m - n)
    assert result.image.shape == image.shape and result.image.dtype == np.uint8
    assert result.masks.any((1, 2)).all()
    assert np.array_equal(result.boxes, boxes_of(result.masks))
    assert np.array_equal(result.classes[:n], classes[result.kept])
    assert (np.diff(result.kept) > 0).all()
    assert len(result.pasted) == m - n
    assert [p["category"] for p in result.pasted] == result.classes[n:].tolist()
    # Originals only lose pixels, and only to pasted objects; pasted ones do not overlap.
    pasted = result.masks[n:]
    assert (pasted.sum(0) <= 1).all()
    for mask, i in zip(result.masks, result.kept):
        assert not (mask & ~masks[i]).any()
        assert not (mask & pasted.any(0)).any()


options = st.fixed_dictionaries(
    {
        "max_instances": st.integers(0, 25),
        "mode": st.sampled_from(["class_balanced", "uniform"]),
        "size": st.sampled_from(["natural", (0.02, 0.2), (0.3, 0.5), (0.5, 1.0)]),
        "aspect_jitter": st.sampled_from([0.0, 0.2, 0.9]),
        "flip": st.sampled_from([0.0, 0.5, 1.0]),
        "vertical_flip": st.sampled_from([0.0, 0.5]),
        "rotation": st.sampled_from([0.0, 15.0, 180.0]),
        "blend": st.sampled_from(["hard", "alpha", "gaussian", "poisson", ["hard", "poisson"]]),
        "outside": st.sampled_from([0.0, 0.25, 0.95]),
        "channels": st.sampled_from(["rgb", "bgr"]),
    }
)


@hypothesis.settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(
    seed=st.integers(0, 2**64 - 1),
    shape=st.sampled_from([(200, 260), (64, 300), (31, 17), (6, 6), (5, 400)]),
    n=st.integers(0, 6),
    options=options,
    steps=st.integers(1, 3),
)
def test_any_sequence_of_pastes_leaves_valid_annotations(bank, seed, shape, n, options, steps):
    height, width = shape
    image, masks, boxes, classes = scene(seed % 97, max(height, 20), max(width, 20), n)
    image = np.ascontiguousarray(image[:height, :width])
    masks = np.ascontiguousarray(masks[:, :height, :width])
    masks = masks[masks.any((1, 2))]
    boxes, classes = boxes_of(masks), classes[: len(masks)]
    for step in range(steps):
        before = image.copy()
        result = _core.paste(image, masks, boxes, classes, bank, (seed + step) % 2**64, **options)
        assert np.array_equal(image, before), "the input was written to"
        check(result, image, masks, classes)
        image, masks, boxes, classes = result.image, result.masks, result.boxes, result.classes


def test_the_same_seed_is_the_same_paste(bank):
    image, masks, boxes, classes = scene()
    kwargs = {"min_instances": 8, "max_instances": 8, "blend": ["hard", "gaussian"]}
    a, b, c = (_core.paste(image, masks, boxes, classes, bank, s, **kwargs) for s in (1, 1, 2))
    assert np.array_equal(a.image, b.image) and np.array_equal(a.masks, b.masks)
    assert not np.array_equal(a.image, c.image)


def test_pixels_change_under_the_paste_and_nowhere_else(bank):
    image, masks, boxes, classes = scene()
    kwargs = {"min_instances": 3, "max_instances": 3, "size": (0.1, 0.2)}
    for blend, reach in [("hard", 0), ("alpha", 4), ("gaussian", 2), ("poisson", 0)]:
        r = _core.paste(image, masks, boxes, classes, bank, 5, blend=blend, keep_area=0, **kwargs)
        changed = (r.image != image).any(2)
        near = r.masks[len(r.kept) :].any(0)
        assert changed[near].mean() > 0.5
        for _ in range(reach):
            grown = near.copy()
            grown[1:] |= near[:-1]
            grown[:-1] |= near[1:]
            near = grown.copy()
            near[:, 1:] |= grown[:, :-1]
            near[:, :-1] |= grown[:, 1:]
        assert not changed[~near].any(), blend


def test_all_mask_formats_agree(bank):
    image, masks, boxes, classes = scene()
    kwargs = {"min_instances": 10, "max_instances": 10, "size": (0.1, 0.3)}
    a = _core.paste(image, masks, boxes, classes, bank, 3, **kwargs)
    rles = [coco_mask.encode(np.asfortranarray(m.astype(np.uint8))) for m in masks]
    b = _core.paste(image, rles, boxes, classes, bank, 3, **kwargs)
    assert np.array_equal(a.image, b.image) and np.array_equal(a.boxes, b.boxes)
    for mask, rle in zip(a.masks, b.masks):
        expected = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        counts = rle["counts"]
        counts = counts if isinstance(counts, bytes) else counts.encode()
        assert rle["size"] == expected["size"] and counts == expected["counts"]
    c = _core.paste(image, masks, boxes, classes, bank, 3, mask_format="polygons", **kwargs)
    for mask, polygons in zip(a.masks, c.masks):
        back = coco_mask.merge(coco_mask.frPyObjects(polygons, *image.shape[:2]))
        assert np.array_equal(coco_mask.decode(back), mask)
    d = _core.paste(image, c.masks, None, c.classes, bank, 4, max_instances=1, mask_format="bool")
    assert np.array_equal(d.masks, a.masks)
    # What was not touched comes back as the very object that went in.
    e = _core.paste(image, c.masks, None, c.classes, bank, 4, max_instances=1)
    assert all(x is y for x, y in zip(e.masks, c.masks))
    f = _core.paste(image, masks, boxes, classes, bank, 3, mask_format="arrays", **kwargs)
    for arrays, polygons in zip(f.masks, c.masks):
        assert all(a.dtype == np.float64 for a in arrays)
        assert [a.tolist() for a in arrays] == polygons
    # Arrays go in as lists do.
    g = _core.paste(image, f.masks, None, c.classes, bank, 4, max_instances=1, mask_format="bool")
    assert np.array_equal(g.masks, a.masks)


def test_planes_of_channels_are_pasted_on_alike(bank):
    image, masks, boxes, classes = scene()
    kwargs = {"min_instances": 6, "max_instances": 6, "blend": ["hard", "alpha", "gaussian"]}
    a = _core.paste(image, masks, boxes, classes, bank, 3, **kwargs)
    planes = np.ascontiguousarray(image.transpose(2, 0, 1))
    b = _core.paste(planes, masks, boxes, classes, bank, 3, layout="chw", **kwargs)
    assert np.array_equal(b.image, a.image.transpose(2, 0, 1)) and len(a.pasted) > 2
    assert np.array_equal(b.masks, a.masks)
    with pytest.raises(ValueError, match=r"\[3, height, width\]"):
        _core.paste(image, masks, boxes, classes, bank, 3, layout="chw")


def test_a_hole_survives_as_polygons(bank):
    ring = ellipse(80, 90) & ~np.pad(ellipse(30, 36), ((25, 25), (27, 27)))
    dots = ellipse(80, 90)
    dots[30:33, 40:41] = dots[50, 20] = dots[20:22, 60:70] = False
    image = np.zeros((80, 90, 3), np.uint8)
    for mask in (ring, dots):
        r = _core.paste(
            image, mask[None], None, [0], bank, 0, max_instances=1, mask_format="polygons"
        )
        merged = coco_mask.merge(coco_mask.frPyObjects(r.masks[0], 80, 90))
        assert np.array_equal(coco_mask.decode(merged).astype(bool), mask)


def test_occlusion_keeps_what_is_large_or_hardly_moved(tmp_path):
    bank = make_bank(tmp_path / "bank", instances=0, mosaics=0)
    full = {"image": np.full((40, 40, 3), 9, np.uint8), "alpha": np.full((40, 40), 255, np.uint8)}
    bank.put_instances([{**full, "category": 2}])
    image = np.zeros((100, 100, 3), np.uint8)
    masks = np.zeros((3, 100, 100), bool)
    masks[0, 0:100, 0:100] = True  # keeps much
    masks[1, 40:50, 40:50] = True
    masks[2, 2:6, 2:98] = True  # a thin line: hardly moves unless its end is covered
    for seed in range(30):
        r = _core.paste(
            image,
            masks,
            None,
            [0, 1, 1],
            bank,
            seed,
            min_instances=1,
            max_instances=1,
            size=(0.4, 0.4),
            aspect_jitter=0.0,
            outside=0.0,
        )
        pasted = r.masks[-1]
        assert pasted.sum() == 1600 and (r.image[pasted] == 9).all()
        assert 0 in r.kept
        left = masks[1] & ~pasted
        box_moved = np.abs(boxes_of(left[None]) - boxes_of(masks[1:2])).max() if left.any() else 99
        assert (1 in r.kept) == (left.any() and (box_moved <= 10 or left.sum() > 300))


def test_sizes_follow_the_rules(tmp_path):
    bank = make_bank(tmp_path / "bank", categories=3, instances=0, mosaics=0)
    rng = np.random.default_rng(0)
    bank.put_instances([instance(rng, c, 60, 100) for c in (0, 0, 1, 1)])
    image = np.zeros((400, 500, 3), np.uint8)
    side = np.sqrt(400 * 500)

    def fractions(**kwargs):
        out = {0: [], 1: []}
        for seed in range(150):
            r = _core.paste(
                image,
                None,
                None,
                None,
                bank,
                seed,
                min_instances=1,
                max_instances=1,
                outside=0.0,
                aspect_jitter=0.0,
                **kwargs,
            )
            for p, m in zip(r.pasted, r.masks):
                out[p["category"]].append(np.sqrt(m.sum()) / side)
        return np.array(out[0]), np.array(out[1])

    a, _ = fractions(size=(0.1, 0.2))
    assert a.min() > 0.095 and a.max() < 0.205 and abs(a.mean() - 0.15) < 0.01
    stats = np.array([[0.2, 0.02], [0.05, 0.01], [np.nan, np.nan]], np.float32)
    a, b = fractions(size_stats=stats)
    assert abs(a.mean() - 0.2) < 0.01 and abs(a.std() - 0.02) < 0.006
    assert abs(b.mean() - 0.05) < 0.005
    a, _ = fractions(size_stats=np.array([[0.9, 0.0]] * 3, np.float32))
    assert abs(a.mean() - 0.5) < 0.01  # clipped to half the side
    a, _ = fractions(size_stats=np.array([[0.001, 0.0]] * 3, np.float32))
    assert abs(a.mean() * side - 10) < 0.7  # and to 10 px
    bank.set_feedback(np.ones(3, np.float32), np.array([2, 1, 1], np.float32))
    a, _ = fractions(size_stats=np.array([[0.1, 0.0]] * 3, np.float32))
    assert abs(a.mean() - 0.2) < 0.01


def test_modes_categories_and_numbers(bank):
    from scipy import stats

    image = np.zeros((64, 64, 3), np.uint8)
    counts = [
        len(
            _core.paste(
                image,
                None,
                None,
                None,
                bank,
                s,
                max_instances=5,
                outside=0.0,
                size=(0.2, 0.2),
                keep_area=0,
                box_tolerance=99,
            ).pasted
        )
        for s in range(400)
    ]
    assert max(counts) == 4 and min(counts) == 0
    some = _core.paste(image, None, None, None, bank, 1, min_instances=4, categories=["thing_2", 3])
    assert {p["category"] for p in some.pasted} <= {2, 3}
    seen = np.zeros(5)
    for s in range(300):
        for p in _core.paste(
            image, None, None, None, bank, s, min_instances=1, max_instances=1
        ).pasted:
            seen[p["category"]] += 1
    assert stats.chisquare(seen).pvalue > 1e-3


def test_poisson_against_a_direct_solve(tmp_path):
    """The seamless blend is the solution of Perez' equations (scipy.sparse)."""
    from scipy import sparse
    from scipy.sparse import linalg

    bank = make_bank(tmp_path / "bank", instances=0, mosaics=0)
    rng = np.random.default_rng(4)
    source = instance(rng, 0, 90, 120)
    bank.put_instances([source])
    image = picture(np.random.default_rng(5), 150, 160)
    for seed in range(6):
        kwargs = {
            "min_instances": 1,
            "max_instances": 1,
            "size": (0.3, 0.5),
            "outside": 0.4,
            "flip": 0.0,
        }
        hard = _core.paste(image, None, None, None, bank, seed, blend="hard", **kwargs)
        soft = _core.paste(image, None, None, None, bank, seed, blend="poisson", **kwargs)
        mask = hard.masks[0]
        # The rim needs the source's colour outside the mask: alpha-blend an opaque copy there.
        number = np.full(mask.shape, -1)
        ys, xs = np.nonzero(mask)
        number[ys, xs] = np.arange(len(ys))
        rows, cols, values = [], [], []
        b = np.zeros((len(ys), 3))
        inner = []
        for k, (y, x) in enumerate(zip(ys, xs)):
            degree, ok = 0, True
            for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
                v, u = y + dy, x + dx
                if not (0 <= v < mask.shape[0] and 0 <= u < mask.shape[1]):
                    continue
                degree += 1
                if mask[v, u]:
                    rows.append(k), cols.append(number[v, u]), values.append(-1.0)
                    b[k] += hard.image[y, x].astype(float) - hard.image[v, u]
                else:
                    ok = False
                    b[k] += image[v, u]
            rows.append(k), cols.append(k), values.append(float(degree))
            inner.append(ok)
        # Inside, away from the rim, the equations hold up to rounding of the result.
        a = sparse.csr_matrix((values, (rows, cols)))
        f = soft.image[ys, xs].astype(float)
        residual = np.abs(a @ f - b)[np.array(inner)]
        clipped = (f == 0).any() or (f == 255).any()
        assert clipped or (np.median(residual) < 1.5 and residual.max() < 4.5)
        # With the source's gradient at the rim taken as 0, the solutions agree closely.
        exact = linalg.spsolve(a.tocsc(), b)
        assert np.abs(exact.clip(0, 255) - f).mean() < 6


def test_errors_name_the_argument(bank):
    image, masks, boxes, classes = scene()
    for kwargs, match in [
        ({"blend": "soft"}, "hard, alpha, gaussian or poisson"),
        ({"size": "huge"}, "size"),
        ({"size": "category"}, "size_stats"),
        ({"rotation": 400.0}, "rotation"),
        ({"channels": "hsv"}, "channels"),
        ({"mask_format": "png"}, "mask_format"),
        ({"mode": "best"}, "mode"),
    ]:
        with pytest.raises(ValueError, match=match):
            _core.paste(image, masks, boxes, classes, bank, 0, **kwargs)
    with pytest.raises(ValueError, match="masks"):
        _core.paste(image, masks[:, :10].copy(), boxes, classes, bank, 0)
    with pytest.raises(ValueError, match="as many as masks"):
        _core.paste(image, masks, boxes[:2], classes, bank, 0)
    with pytest.raises(TypeError):
        _core.paste(image.astype(np.float32), masks, boxes, classes, bank, 0)
    with pytest.raises(KeyError, match="thing_9"):
        _core.paste(image, masks, boxes, classes, bank, 0, categories="thing_9")
    empty = np.zeros((1, *image.shape[:2]), bool)
    assert len(_core.paste(image, empty, None, [0], bank, 0, max_instances=1).kept) == 0


def test_an_empty_bank_changes_nothing(tmp_path):
    bank = make_bank(tmp_path / "bank", instances=0, mosaics=0)
    image, masks, boxes, classes = scene()
    r = _core.paste(image, masks, boxes, classes, bank, 0, min_instances=5)
    assert np.array_equal(r.image, image) and np.array_equal(r.masks, masks)
