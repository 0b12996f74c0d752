"""The sampler: the right images, in the right shares, again and again the same."""

import copy
import itertools
import json
import multiprocessing
import os
import pickle
import socket
import threading
import time

import numpy as np
import pytest

from bank_helpers import make_bank, mosaic
from mosaicbank import _core

repeat_factors, MosaicSampler = _core.repeat_factors, _core.MosaicSampler


def annotations(seed=0, images=400, categories=30):
    """Detectron2 dictionaries with a long tail."""
    rng = np.random.default_rng(seed)
    p = 1.0 / np.arange(1, categories + 1) ** 1.6
    p /= p.sum()
    classes = [rng.choice(categories, rng.integers(0, 7), p=p) for _ in range(images)]
    return [{"annotations": [{"category_id": int(c)} for c in row]} for row in classes]


def take(sampler, n):
    return list(itertools.islice(iter(sampler), n))


def test_factors_by_hand():
    offsets, classes = _core.class_arrays(annotations())
    factors, counts = repeat_factors(offsets, classes, 30, 0.3)
    rows = [set(classes[a:b]) for a, b in zip(offsets, offsets[1:])]
    expected = np.array([sum(c in r for r in rows) for c in range(30)])
    assert np.array_equal(counts, expected)
    share = expected / len(rows)
    with np.errstate(divide="ignore"):
        of_class = np.maximum(1, np.sqrt(0.3 / share))
    expected = [max([of_class[c] for c in r], default=1.0) for r in rows]
    assert np.array_equal(factors, np.float32(expected))


def test_whole_epochs_and_ranks():
    sampler = MosaicSampler(np.full(50, 2, np.float32), seed=3)
    for epoch in np.array(take(sampler, 300)).reshape(3, 100):
        assert np.array_equal(np.bincount(epoch), np.full(50, 2))
    all_ = take(sampler, 300)
    for rank in range(4):
        part = MosaicSampler(np.full(50, 2, np.float32), seed=3, rank=rank, world_size=4)
        assert take(part, 75) == all_[rank::4]
    assert take(MosaicSampler(50, shuffle=False), 120) == [*range(50), *range(50), *range(20)]
    assert take(MosaicSampler(50, seed=4), 100) != take(MosaicSampler(50, seed=5), 100)


def test_slots_by_rarity_feedback_and_demand(tmp_path):
    from scipy import stats

    counts = np.array([0, 1, 4, 50, 3000])
    sampler = MosaicSampler(5000, mix_ratio=0.5, image_counts=counts, seed=1, threshold=0.02)
    # 0.02 * 5000 = 100: rarity sqrt(100 / n), half an image for none, nothing above 100.
    expected = np.sqrt(100 / np.array([0.5, 1, 4, 50, np.inf]))
    assert np.allclose(sampler.weights, expected)
    codes = [sampler.decode(i) for i in take(sampler, 20_000)]
    slots = np.bincount([c for _, c, _ in codes if c is not None], minlength=5)
    assert stats.binomtest(int(slots.sum()), 20_000, 0.5).pvalue > 1e-3
    assert slots[4] == 0
    assert stats.chisquare(slots[:4], expected[:4] / expected.sum() * slots.sum()).pvalue > 1e-3
    bank = make_bank(tmp_path / "bank", instances=0)
    bank.set_feedback(np.array([1, 2, 0, 1, 1], np.float32))
    for _ in range(2):
        bank.count_miss(0)
    weighed = MosaicSampler(5000, mix_ratio=0.5, image_counts=counts, bank=bank, threshold=0.02)
    assert np.allclose(weighed.weights, expected * [3, 2, 0, 1, 1])


def test_an_epoch_reads_the_board_anew(tmp_path):
    bank = make_bank(tmp_path / "bank", instances=0)
    sampler = MosaicSampler(100, mix_ratio=0.5, image_counts=np.ones(5, np.int64), bank=bank)
    it = iter(sampler)
    it.take(50)
    bank.set_feedback(np.array([1, 0, 0, 0, 0], np.float32))
    it.take(300)
    later = [sampler.decode(int(i))[1] for i in it.take(500)]
    assert {c for c in later if c is not None} == {0}


def running_engine(bank, draws, state="working"):
    """The status file of an engine that runs in this process."""
    status = {
        "id": "test", "state": state, "pid": os.getpid(), "host": socket.gethostname(),
        "time": time.time(), "started": time.time(), "draws": draws,
    }  # fmt: skip
    (bank.path / "engine-test.json").write_text(json.dumps(status))


def test_slots_go_where_supply_can_come(tmp_path):
    bank = make_bank(tmp_path / "bank", instances=3, mosaics=0)

    def stream(**more):
        counts = np.array([1, 2, 3, 4, 500])
        return MosaicSampler(1000, mix_ratio=0.5, image_counts=counts, bank=bank, **more)

    def asked(sampler, n=300):
        return {sampler.decode(i)[1] for i in take(sampler, n)} - {None}

    # Instances do not answer slots: nothing is supplied, and all images are real.
    assert not bank.supply().any() and asked(stream()) == set()
    assert bank.shortfall().startswith("5 of 5 categories have no supply: thing_0, ")
    real = [stream(keyed=False).decode(i)[0] for i in take(stream(keyed=False), 4000)]
    assert None not in real and len(set(real)) > 900
    # An engine draws two, one of which is not wanted.
    running_engine(bank, "1-2")
    assert bank.supply().tolist() == [False, True, True, False, False]
    assert asked(stream()) == {1, 2}
    assert asked(stream(categories=[True, True, False, True, True])) == {1}
    assert bank.shortfall([False, True, True, False, False]) is None
    # No rare category can be had: the share goes to those that can.
    running_engine(bank, "4")
    assert asked(stream()) == {4}
    for state in ("paused", "stopped"):
        running_engine(bank, "1-2", state)
        assert asked(stream()) == set()
    # What the bank holds needs no engine.
    bank.put_mosaics([mosaic(np.random.default_rng(0), [3], 1)])
    assert asked(stream()) == {3}


def test_supply_comes_in_mid_epoch_and_the_stream_resumes(tmp_path):
    bank = make_bank(tmp_path / "bank", instances=0, mosaics=0)

    def stream():
        return MosaicSampler(
            5000, mix_ratio=0.4, image_counts=np.ones(5, np.int64), bank=bank, seed=3
        )

    plain = take(MosaicSampler(5000, mix_ratio=0.4, slot_weights=np.ones(5), seed=3), 600)
    sampler = stream()
    it = iter(sampler)
    first = it.take(100).tolist()
    assert not any(sampler.decode(i)[1] is not None for i in first)
    running_engine(bank, "0-4")
    # Weights are read every 128 indices.
    later = it.take(500).tolist()
    slots = [sampler.decode(i)[1] is not None for i in first + later]
    assert not any(slots[:128]) and any(slots[128:140])
    # Where real images stand does not depend on when supply came.
    for ours, theirs in zip(first + later, plain):
        real = sampler.decode(theirs)[0]
        assert real is None or ours == theirs
    state = copy.deepcopy(sampler.state_dict(position=300))
    resumed = stream()
    resumed.load_state_dict(state)
    assert take(resumed, 300) == later[200:]
    del state["weights_position"]  # of an earlier version
    resumed.load_state_dict(state)
    assert take(resumed, 300) == later[200:]


@pytest.mark.parametrize("mix", [0.0, 0.3])
@pytest.mark.parametrize("at", [0, 1, 57, 4096, 5001])
def test_resume_in_mid_epoch(mix, at):
    def make():
        factors = np.linspace(1, 3, 700, dtype=np.float32)
        return MosaicSampler(
            factors, mix_ratio=mix, image_counts=np.arange(9), seed=2, rank=1, world_size=3
        )

    sampler = make()
    it = iter(sampler)
    it.take(at)
    state = copy.deepcopy(sampler.state_dict())
    assert state["position"] == at == sampler.position
    rest = it.take(3000)
    fresh = make()
    fresh.load_state_dict(state)
    # A pickle is the same, and so is the position that was really consumed.
    copied = pickle.loads(pickle.dumps(fresh))
    assert np.array_equal(iter(copied).take(100), iter(fresh).take(100))
    assert np.array_equal(iter(fresh).take(3000), rest)
    again = make()
    again.load_state_dict(sampler.state_dict(position=at + 1000))
    assert np.array_equal(iter(again).take(2000), rest[1000:])


def test_states_of_other_streams_are_refused():
    state = MosaicSampler(10, seed=1).state_dict()
    for other in (MosaicSampler(10, seed=2), MosaicSampler(11, seed=1)):
        with pytest.raises(ValueError, match="sampler state"):
            other.load_state_dict(state)
    del state["epoch"]
    with pytest.raises(ValueError, match="is missing"):
        MosaicSampler(10, seed=1).load_state_dict(state)


def test_bad_arguments_are_named():
    for kwargs, match in [
        ({"mix_ratio": 1.5, "image_counts": np.ones(2, np.int64)}, "mix_ratio"),
        ({"mix_ratio": 0.5}, "slots need"),
        ({"rank": 2, "world_size": 2}, "rank"),
        ({"slot_weights": np.array([-1.0])}, "slot weights"),
    ]:
        with pytest.raises(ValueError, match=match):
            MosaicSampler(10, **kwargs)
    with pytest.raises(ValueError, match="repeat factors"):
        MosaicSampler(np.array([np.nan], np.float32))
    with pytest.raises(ValueError, match="class"):
        repeat_factors(np.array([0, 1]), np.array([5]), 3)


def test_any_thread_may_iterate():
    sampler = MosaicSampler(1000, seed=1)
    expected, got, it = take(sampler, 40_000), [], iter(sampler)
    lock = threading.Lock()

    def run():
        for _ in range(5000):
            with lock:
                got.append(next(it))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert got == expected


def _draw(sampler):
    return take(sampler, 500)


def test_workers_get_the_same_stream():
    def make():
        return MosaicSampler(100, mix_ratio=0.2, image_counts=np.arange(4), seed=9)

    sampler, expected = make(), take(make(), 500)
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            assert pool.map(_draw, [sampler] * 3) == [expected] * 3


def test_keys_are_unique_over_ranks_and_indices_are_ints():
    keys = []
    for rank in range(2):
        s = MosaicSampler(
            20, mix_ratio=0.5, image_counts=np.ones(3, np.int64), rank=rank, world_size=2
        )
        for i in take(s, 500):
            assert type(i) is int
            image, category, key = s.decode(i)
            assert (image is None) != (category is None)
            assert _core.decode_index(i, 20, 3) == (image, category, key)
            keys.append(key)
    assert len(set(keys)) == 1000
    plain = MosaicSampler(20, mix_ratio=0.5, image_counts=np.ones(3, np.int64), keyed=False)
    assert all(i < 20 or plain.decode(i)[1] is not None for i in take(plain, 200))
