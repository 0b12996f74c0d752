"""Slots go where supply can come, so that the share asked for is the share given."""

from __future__ import annotations

import itertools
import json
import logging
import os
import socket
import time
from pathlib import Path

import material as made
import pytest
from detectron2.data import MetadataCatalog

import mosaicbank
from mosaicbank.detectron2 import build_mosaic_train_loader, mosaic_hooks
from mosaicbank.detectron2.hooks import start_engine
from shared_data import shared

# Those of COCO's 80 categories that the embedded model was trained on.
DRAWABLE = (
    "bicycle", "airplane", "elephant", "backpack", "umbrella", "banana", "apple", "carrot",
    "pizza", "donut", "scissors",
)  # fmt: skip


def only_sizes(record):
    """A mapper that reads no file."""
    return {"width": record["width"], "height": record["height"]}


def samples(loader, n):
    batches = -(-n // loader.sampler.batch_size)
    return [s["mosaicbank"] for b in itertools.islice(iter(loader), batches) for s in b][:n]


def engine(bank, draws, **more):
    """The status file of an engine that runs in this process."""
    status = {
        "id": "test", "state": "working", "pid": os.getpid(), "host": socket.gethostname(),
        "time": time.time(), "started": time.time(), "draws": draws, **more,
    }  # fmt: skip
    Path(bank.path, "engine-test.json").write_text(json.dumps(status))


@pytest.fixture
def coco(cfg):
    """A config for coco100 with an empty bank, and the names of the classes."""
    path = shared("coco100/train.json")
    name = made.register("mosaicbank_coco100", path)
    metadata = MetadataCatalog.get(name)
    ids = {c: i for i, c in metadata.thing_dataset_id_to_contiguous_id.items()}
    names = list(metadata.thing_classes)
    mosaicbank.Bank.create(
        cfg.MOSAIC.BANK, [{"id": ids[i], "name": n} for i, n in enumerate(names)]
    )
    cfg.DATASETS.TRAIN = (name,)
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.001
    cfg.MOSAIC.PASTE.ENABLED = False
    cfg.MOSAIC.MIX_RATIO = 0.3
    return cfg, names


def fill(cfg, names):
    bank = mosaicbank.Bank.open(cfg.MOSAIC.BANK)
    bank.put_mosaics([made.mosaic(3 * k + i, [n]) for k, n in enumerate(names) for i in range(3)])
    return bank


def test_the_share_asked_for_is_the_share_given(coco, caplog):
    """11 of 80 categories in stock. Before: 1.5 % mosaics and 266 misses in 1,000 samples."""
    cfg, _ = coco
    fill(cfg, DRAWABLE)
    with caplog.at_level(logging.INFO):
        loader = build_mosaic_train_loader(cfg, only_sizes)
    lines = [r.message for r in caplog.records if "have no supply" in r.message]
    assert len(lines) == 1 and "69 of 80 categories have no supply: person, car" in lines[0]
    got = samples(loader, 1000)
    kinds = [i["kind"] for i in got]
    # Four standard deviations.
    assert abs(kinds.count("mosaic") - 300) < 4 * (1000 * 0.3 * 0.7) ** 0.5, kinds.count("mosaic")
    assert kinds.count("miss") == 0
    assert loader.counts.replaced == 0


def test_what_an_engine_draws_is_asked_for_and_others_fill_in(coco):
    cfg, names = coco
    bank = fill(cfg, DRAWABLE[:9])
    engine(bank, ",".join(str(c) for c in sorted(names.index(n) for n in DRAWABLE)))
    loader = build_mosaic_train_loader(cfg, only_sizes)
    kinds = [i["kind"] for i in samples(loader, 1000)]
    assert abs(kinds.count("mosaic") - 300) < 4 * (1000 * 0.3 * 0.7) ** 0.5
    assert kinds.count("miss") == 0 and loader.counts.replaced > 20
    missed = {names[c] for c in bank.demand()["missed"].nonzero()[0]}
    assert missed == set(DRAWABLE[9:])


def test_an_engine_that_starts_later(cfg, caplog):
    """Real images alone until it says what it draws; then that is asked for."""
    cfg.MOSAIC.PASTE.ENABLED = False
    with caplog.at_level(logging.WARNING):
        loader = build_mosaic_train_loader(cfg, only_sizes)
    assert caplog.text.count("training runs on real data until") == 2  # made, and no engine
    bank = mosaicbank.Bank.open(cfg.MOSAIC.BANK)
    stream = iter(loader)
    first = [s["mosaicbank"]["kind"] for b in itertools.islice(stream, 20) for s in b]
    assert set(first) == {"real"}
    assert bank.demand()["asked"].sum() == 0
    engine(bank, "2-3")
    hook = mosaic_hooks(loader)[0]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        hook._say_supply()
        hook._say_supply()
    said = [r.message for r in caplog.records if "have no supply" in r.message]
    assert len(said) == 1 and "3 of 5" in said[0]
    for _ in itertools.islice(stream, 60):
        pass
    asked = bank.demand()["missed"]
    assert set(asked.nonzero()[0]) == {2, 3}


def test_fixed_weights_wait_for_a_bank_that_is_filled_later(cfg):
    cfg.MOSAIC.PASTE.ENABLED = False
    cfg.MOSAIC.SLOT_WEIGHTS = "fixed"
    loader = build_mosaic_train_loader(cfg, only_sizes)
    before = [i["kind"] for i in samples(loader, 100)]
    assert "mosaic" not in before
    bank = mosaicbank.Bank.open(cfg.MOSAIC.BANK)
    bank.put_mosaics([made.mosaic(1, ["kite"])])
    later = [i["kind"] for i in samples(loader, 400)]
    assert "miss" not in later and 60 < later.count("mosaic") < 180


def test_limits_of_the_config_act_on_a_bank_that_exists(cfg, bank, caplog):
    cfg.MOSAIC.LIMITS.MAX_USES = 2
    with caplog.at_level(logging.INFO):
        build_mosaic_train_loader(cfg)
    assert "max_uses 0 -> 2" in caplog.text
    assert mosaicbank.Bank.open(cfg.MOSAIC.BANK).limits["max_uses"] == 2
    caplog.clear()
    cfg.MOSAIC.LIMITS.MAX_USES = -1
    with caplog.at_level(logging.INFO):
        build_mosaic_train_loader(cfg)
    assert "limits of the bank" not in caplog.text
    assert mosaicbank.Bank.open(cfg.MOSAIC.BANK).limits["max_uses"] == 2


def test_aliases_reach_the_engine(cfg, monkeypatch):
    started = {}
    monkeypatch.setattr(mosaicbank, "EngineHandle", lambda bank, **kw: started.update(kw))
    cfg.MOSAIC.ENGINE.SPAWN = True
    cfg.MOSAIC.ALIASES = ["donut=doughnut", "more.toml"]
    loader = build_mosaic_train_loader(cfg, only_sizes)
    hook = mosaic_hooks(loader)[1]
    hook._start(hook._bank, hook._settings)
    words = ["--aliases", "donut=doughnut", "--aliases", "more.toml"]
    assert started["extra_args"] == words
    start_engine(hook._bank, hook._settings)
    assert started["extra_args"] == []
