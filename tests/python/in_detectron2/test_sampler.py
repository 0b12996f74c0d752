"""The sampler against Detectron2's own; the stream in Detectron2's loader: order, statistics."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from detectron2.data.samplers import RepeatFactorTrainingSampler

import mosaicbank
from mosaicbank import _core
from mosaicbank.detectron2.sampler import MosaicTrainingSampler, deal, slot_categories


def arrive(dealt, workers, batch_size, chunk, grouped, n):
    """What a trainer gets first: each worker takes its chunks in turn, and the loader takes
    samples (grouped) or batches from the workers in turn."""
    read = [[] for _ in range(workers)]
    for place, index in enumerate(itertools.islice(dealt, 40 * n)):
        read[place // chunk % workers].append(index)
    out = []
    at = 0
    unit = 1 if grouped else batch_size
    while len(out) < n:
        for worker in range(workers):
            out.extend(read[worker][at : at + unit])
        at += unit
    return out[:n]


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 4])
@pytest.mark.parametrize("grouped", [True, False])
def test_the_stream_arrives_in_order_for_every_loader(workers, batch_size, grouped):
    for chunk in {1, batch_size}:
        dealt = deal(itertools.count(), workers, batch_size, chunk, grouped)
        got = arrive(dealt, workers, batch_size, chunk, grouped, 60)
        assert got == list(range(60)), chunk


def stream(mix_ratio=0.0, **more):
    factors = np.array([1.0, 2.5, 1.0, 3.2, 1.0, 1.7], dtype=np.float32)
    return mosaicbank.MosaicSampler(
        factors, mix_ratio=mix_ratio, slot_weights=np.ones(3), seed=3, keyed=True, **more
    )


def test_states_with_samples_that_wait():
    sampler = MosaicTrainingSampler(stream(0.3), 4, True)
    whole = list(itertools.islice(sampler, 60))
    state = sampler.state_at(30, [11, 27])
    resumed = MosaicTrainingSampler(stream(0.3), 4, True)
    resumed.load_state(state)
    assert list(itertools.islice(resumed, 32)) == [whole[11], whole[27], *whole[30:60]]
    # And again, from a state in which one of the two still waits.
    again = MosaicTrainingSampler(stream(0.3), 4, True)
    again.load_state(resumed.state_at(35, [11, 34]))
    assert list(itertools.islice(again, 10)) == [whole[11], whole[34], *whole[35:43]]


def test_real_images_come_as_detectron2s_own_sampler_draws_them():
    """Chi-squared between our counts and those of ``RepeatFactorTrainingSampler``."""
    records = [
        {"annotations": [{"category_id": c} for c in cs]}
        for cs in ([0], [0, 1], [0], [0, 1, 2], [0], [0, 3], [0], [0], [0], [])
    ]
    threshold = 0.7
    offsets, classes = mosaicbank.class_arrays(records)
    factors, counts = mosaicbank.repeat_factors(offsets, classes, 4, threshold)
    theirs = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(records, threshold)
    assert torch.allclose(torch.from_numpy(factors), theirs, rtol=1e-6)
    assert counts.tolist() == [9, 2, 1, 1]

    def histogram(sampler, n):
        drawn = np.fromiter(itertools.islice(sampler, n), dtype=np.int64)
        return np.bincount(drawn, minlength=len(records))

    n = 60_000
    their_counts = histogram(RepeatFactorTrainingSampler(theirs, seed=1), n)
    ours = mosaicbank.MosaicSampler(
        factors, mix_ratio=0.4, image_counts=counts, threshold=threshold, seed=1, keyed=True
    )
    reals = (ours.decode(i)[0] for i in ours)
    our_counts = histogram((i for i in reals if i is not None), n)
    # Two samples of one distribution: sum (a - b)^2 / (a + b), 9 degrees of freedom; the
    # draws of an epoch are without replacement, so it is far below the usual quantile.
    chi = ((our_counts - their_counts) ** 2 / (our_counts + their_counts)).sum()
    assert chi < 21.7, (chi, our_counts, their_counts)  # p = 0.01


def test_categories_that_are_not_classes_get_no_slots():
    counts, allowed = slot_categories([5, 0, 400], [2, -1, 0, 1], None)
    assert counts == [400, 0, 5, 0] and allowed == [True, False, True, True]
    sampler = mosaicbank.MosaicSampler(
        1000,
        mix_ratio=0.5,
        image_counts=np.array(counts),
        categories=allowed,
        threshold=0.1,
    )
    drawn = {sampler.decode(i)[1] for i in itertools.islice(sampler, 4000)}
    assert drawn == {None, 2, 3}  # classes 0 and 1; class 2 is in 400 of 1000 images
    assert slot_categories([5, 0, 400], [2, -1, 0, 1], {2})[1] == [True, False, False, False]


# --- repeat factors --------------------------------------------------------------------------


def long_tailed(seed=0, images=400, categories=30):
    """Dataset dictionaries with a long tail of categories."""
    rng = np.random.default_rng(seed)
    p = 1.0 / np.arange(1, categories + 1) ** 1.6
    p /= p.sum()
    classes = [rng.choice(categories, rng.integers(0, 7), p=p) for _ in range(images)]
    return [{"annotations": [{"category_id": int(c)} for c in row]} for row in classes]


def test_factors_are_detectron2s():
    for t in (0.001, 0.05, 0.3):
        dicts = long_tailed()
        theirs = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(dicts, t)
        offsets, classes = _core.class_arrays(dicts)
        ours, _ = _core.repeat_factors(offsets, classes, 30, t)
        assert ours.dtype == np.float32
        assert np.array_equal(ours, theirs.numpy())


def test_images_come_as_often_as_detectron2_draws_them():
    offsets, classes = _core.class_arrays(long_tailed())
    factors, _ = _core.repeat_factors(offsets, classes, 30, 0.3)
    epochs = 60
    theirs = RepeatFactorTrainingSampler(torch.from_numpy(factors), seed=5)
    generator = torch.Generator().manual_seed(5)
    expected = np.zeros(len(factors))
    for _ in range(epochs):
        expected += np.bincount(theirs._get_epoch_indices(generator), minlength=len(factors))
    n = int(expected.sum())
    ours = itertools.islice(iter(_core.MosaicSampler(factors, seed=5)), n)
    got = np.bincount(list(ours), minlength=len(factors))
    # Counts of whole factors are equal (but for the last, cut epoch), fractions are binomial.
    sd = np.sqrt(2 * epochs * (factors % 1) * (1 - factors % 1)) + np.ceil(factors)
    assert (np.abs(got - expected) <= 4.5 * sd).all()
    assert abs(got.sum() / (factors.sum() * epochs) - 1) < 0.01
