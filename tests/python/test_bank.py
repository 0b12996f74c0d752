"""The bank from Python: what goes in comes out, in this process and in its children."""

import multiprocessing
import os
import pickle
import random

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from bank_helpers import instance, make_bank, mosaic, picture
from mosaicbank import _core


def test_round_trip(tmp_path):
    rng = np.random.default_rng(0)
    bank = make_bank(tmp_path / "bank", mosaics=0, instances=0)
    given = mosaic(rng, [3, 1], 7)
    assert bank.put_mosaics([given])["added"] == 3
    assert bank.put_mosaics([given]) == {"added": 0, "known": 3, "evicted": 0, "refused": 0}
    (mosaic_id,) = bank.mosaic_ids()
    got = bank.mosaic(mosaic_id)
    assert np.array_equal(got.masks, given["masks"])
    assert got.classes.tolist() == [3, 1] and got.classes.dtype == np.int64
    assert np.abs(got.image.astype(int) - given["image"]).mean() < 3
    for rle, mask, box in zip(got.rles, given["masks"], got.boxes):
        expected = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert rle["counts"] == expected["counts"].decode()
        x, y, w, h = coco_mask.toBbox(expected)
        assert box.tolist() == [x, y, x + w, y + h]
    assert got.areas.tolist() == given["masks"].sum((1, 2)).tolist()
    assert got.provenance[0]["seed"] == 7 and got.provenance[0]["mosaic"] == mosaic_id
    assert bank.stock()["mosaics"].tolist() == [0, 1, 0, 1, 0]
    (instance_id,) = bank.instance_ids("thing_3")
    crop = bank.instance(instance_id)
    _x0, y0, _x1, y1 = crop.box
    assert crop.category == 3 and crop.area == given["masks"][0].sum()
    assert crop.alpha.shape[0] >= y1 - y0 and (crop.alpha > 128).sum() == crop.area


def test_children_read_by_themselves(tmp_path):
    bank = make_bank(tmp_path / "bank")
    assert bank.draw_instance(0) is not None  # the parent's environment is open
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(3) as pool:
            ids = pool.map(_child, [(bank, i) for i in range(12)])
        assert all(len(i) == 32 for i in ids)
    assert bank.verify()["problems"] == []


def _child(job):
    bank, i = job
    drawn = _core.draw_mosaic(bank, i % 5, i)
    assert bank.draw_instance(i) is not None
    return drawn.id


def test_a_fork_in_the_middle_of_reading_threads(tmp_path):
    """Threads that read and reopen while the process forks leave no lock behind."""
    import threading

    bank = make_bank(tmp_path / "bank")
    stop = threading.Event()

    def read():
        n = 0
        while not stop.is_set():
            bank.draw_instance(n)
            _core.Bank.open(str(bank.path)).stock()
            n += 1

    threads = [threading.Thread(target=read) for _ in range(3)]
    for t in threads:
        t.start()
    try:
        for i in range(20):
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    ok = bank.draw_instance(i) is not None
                    ok &= _core.draw_mosaic(bank, 0, i) is not None
                    code = 0 if ok else 2
                finally:
                    os._exit(code)
            assert _wait(pid, 30) == 0
    finally:
        stop.set()
        for t in threads:
            t.join()


def _wait(pid, seconds):
    import time

    for _ in range(seconds * 100):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        time.sleep(0.01)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    raise AssertionError("the forked child hangs")


def test_pickle_and_random_states(tmp_path):
    import torch

    bank = pickle.loads(pickle.dumps(make_bank(tmp_path / "bank")))
    states = [None, 3, np.random.default_rng(0), np.random.RandomState(0), random.Random(0)]
    states.append(torch.Generator().manual_seed(0))
    for state in states:
        assert bank.draw_instance(state) is not None
    with pytest.raises(TypeError, match="rng: expected"):
        bank.draw_instance("seed")
    assert bank.draw_instance(3).id == bank.draw_instance(3).id
    gen = np.random.default_rng(0)
    assert len({bank.draw_instance(gen).id for _ in range(50)}) > 5


def test_errors_are_natural(tmp_path):
    with pytest.raises(FileNotFoundError, match="bank"):
        _core.Bank.open(str(tmp_path / "none"))
    bank = make_bank(tmp_path / "bank")
    with pytest.raises(ValueError, match="a directory without a bank"):
        _core.Bank.create(str(tmp_path / "bank"), ["a"])
    with pytest.raises(KeyError, match="did you mean"):
        bank.category_index("thing_11")
    with pytest.raises(ValueError, match="category index"):
        _core.draw_mosaic(bank, 99)
    with pytest.raises(ValueError, match="32 hexadecimal digits"):
        bank.mosaic("x")
    rng = np.random.default_rng(0)
    empty = instance(rng, 0)
    empty["alpha"][:] = 0
    with pytest.raises(ValueError, match="foreground"):
        bank.put_instances([empty])
    bad = mosaic(rng, [0], 99)
    bad["image"] = picture(rng, 200, 200)
    with pytest.raises(ValueError, match="a mask of the canvas"):
        bank.put_mosaics([bad])
    text = (tmp_path / "bank" / "bank.toml").read_text()
    (tmp_path / "bank" / "bank.toml").write_text(text.replace("format = 1", "format = 2"))
    with pytest.raises(ValueError, match="newer mosaicbank"):
        _core.Bank.open(str(tmp_path / "bank"))


def test_limits_change_one_by_one_and_stay_in_range(tmp_path):
    bank = make_bank(tmp_path / "bank", instances=4, mosaics=0)
    before, after = bank.set_limits(max_uses=3)
    assert before["max_uses"] == 0 and after == {**before, "max_uses": 3} == bank.limits
    assert _core.Bank.open(str(tmp_path / "bank")).limits == after
    # A number that bank.toml cannot hold made a bank that could not be opened.
    for many in (1 << 63, (1 << 64) - 1):
        with pytest.raises(ValueError, match="max_bytes: expected at most"):
            bank.set_limits(max_bytes=many)
        with pytest.raises(ValueError, match="max_bytes: expected at most"):
            make_bank(tmp_path / "other", max_bytes=many)
        with pytest.raises(ValueError, match="image_count"):
            _core.Bank.create(
                str(tmp_path / "other"), [{"id": 1, "name": "a", "image_count": many}]
            )
    assert not (tmp_path / "other").exists()
    assert _core.Bank.open(str(tmp_path / "bank")).limits == after
    # They act at once, on what was used before, too.
    for category in 3 * [0, 1, 2, 3]:
        assert bank.draw_instance(category, [category]).category == category
    assert bank.retire() == 4


def test_demand_and_feedback(tmp_path):
    bank = make_bank(tmp_path / "bank", mosaics=1)
    for _ in range(3):
        _core.draw_mosaic(bank, 0, 1)
    assert _core.draw_mosaic(bank, 4, 1) is None
    demand = bank.demand()
    assert demand["asked"].tolist() == [3, 0, 0, 0, 1]
    assert (demand["served_fresh"][0], demand["served_again"][0], demand["missed"][4]) == (1, 2, 1)
    bank.set_feedback(np.arange(5, dtype=np.float32))
    assert bank.demand()["weight"].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="weight"):
        bank.set_feedback(np.full(5, np.nan, np.float32))
    # Damaged: rebuilt, neutral.
    (tmp_path / "bank" / "demand.bin").write_bytes(b"\0" * 100)
    assert _core.Bank.open(str(tmp_path / "bank")).demand()["weight"].tolist() == [1] * 5


def test_draws_are_uniform_at_a_fixed_seed(tmp_path):
    """Chi-squared: class-balanced over categories, uniform over instances."""
    from scipy import stats

    bank = make_bank(tmp_path / "bank", instances=0, mosaics=0)
    rng = np.random.default_rng(0)
    bank.put_instances([instance(rng, c, 12, 20) for c in [0, 0, 0, 0, 1, 1, 2]])
    balanced = np.zeros(5)
    for i in range(3000):
        balanced[bank.draw_instance(i).category] += 1
    assert balanced[3:].sum() == 0
    assert stats.chisquare(balanced[:3]).pvalue > 1e-3
    count = {}
    for i in range(3500):
        drawn = bank.draw_instance(i, mode="uniform").id
        count[drawn] = count.get(drawn, 0) + 1
    assert len(count) == 7 and stats.chisquare(list(count.values())).pvalue > 1e-3


def test_merge_compact_and_retire(tmp_path):
    a = make_bank(tmp_path / "a", instances=5, mosaics=3, seed=0)
    b = make_bank(tmp_path / "b", instances=5, mosaics=6, seed=1, max_uses=1)
    # Six mosaics with two instances each: recipe, weights and seeds as a's, but other pixels.
    assert a.merge_from(b)["added"] == 5 + 6 * 3
    assert a.merge_from(b)["added"] == 0
    c = a.compact(str(tmp_path / "c"))
    assert c.stats()["instances"] == a.stats()["instances"]
    assert c.verify()["bad"] == []
    for _ in range(10):
        b.draw_instance(0, categories=["thing_0"])
    assert b.draw_instance(0, categories=["thing_0"]) is None
    assert b.retire() > 0
    assert b.verify()["problems"] == []
