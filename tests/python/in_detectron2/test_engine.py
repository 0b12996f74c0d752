"""A real engine of its own environment beside real training."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import time
from pathlib import Path

import detectron2_demo
import drawings
import material as made
import pytest
import torch
from detectron2.engine import HookBase

import mosaicbank
from mosaicbank.detectron2 import MosaicTrainer
from mosaicbank.detectron2.hooks import EngineHook

ROOT = Path(__file__).resolve().parents[3]
PYTHON = os.environ.get("MOSAICBANK_ENGINE_PYTHON", str(ROOT / ".venv" / "bin" / "python"))


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("engine_python")]


@pytest.fixture(scope="module")
def engine_python():
    """The engine's own environment: without it, these tests fail."""
    done = subprocess.run([PYTHON, "-m", "mosaicbank", "engine", "--help"], capture_output=True)
    assert done.returncode == 0, (
        f"expected a Python with mosaicbank's engine in MOSAICBANK_ENGINE_PYTHON (make install), "
        f"got {PYTHON}: {done.stderr.decode()}"
    )
    return PYTHON


class Stream(HookBase):
    """Keeps what each batch was made of; calls ``act(hook, iteration)`` after each step."""

    def __init__(self, act=lambda hook, iteration: None):
        self.batches, self.act = [], act

    def after_step(self):
        keys = ("index", "kind", "category")
        batch = self.trainer.data_loader.last_batch
        self.batches.append([tuple(s["mosaicbank"][k] for k in keys) for s in batch])
        self.act(self, self.trainer.iter)

    @property
    def engine(self):
        hooks = self.trainer._hooks
        return next((h for h in hooks if isinstance(h, EngineHook)), None)


@pytest.fixture(scope="module")
def annotations(tmp_path_factory):
    path = drawings.make_training_set(tmp_path_factory.mktemp("demo"))
    drawings.register("mosaicbank_engine_test", path)
    return path


def train(cfg, annotations, folder, spawn, act=lambda hook, iteration: None):
    """Train with mosaics of every rare category in the bank, with or without an engine."""
    cfg = cfg.clone()
    cfg.OUTPUT_DIR = str(folder / "output")
    cfg.MOSAIC.BANK = str(folder / "bank")
    cfg.MOSAIC.ENGINE.SPAWN = spawn
    table = drawings.category_table()
    bank = mosaicbank.Bank.create(cfg.MOSAIC.BANK, table, max_uses=0)
    bank.put_mosaics([made.mosaic(k, [row["name"]]) for k, row in enumerate(table)])
    os.makedirs(cfg.OUTPUT_DIR)
    trainer = MosaicTrainer(cfg)
    stream = Stream(act)
    trainer.register_hooks([stream])
    trainer.train()
    assert trainer.iter == cfg.SOLVER.MAX_ITER
    losses = [v for v, _ in trainer.storage.history("total_loss").values()]
    assert len(losses) == cfg.SOLVER.MAX_ITER and all(math.isfinite(v) for v in losses)
    return trainer, stream, bank


@pytest.fixture
def engine_cfg(cfg, annotations):
    cfg = made.small_model(cfg)
    cfg.DATASETS.TRAIN = ("mosaicbank_engine_test",)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(drawings.CATEGORIES)
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.3
    cfg.DATALOADER.NUM_WORKERS = 2
    # The engine's mosaics have other shapes than ours, and so would wait for other company.
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    cfg.SOLVER.MAX_ITER = 12
    cfg.MOSAIC.ENGINE.DEVICE = "cpu"
    cfg.MOSAIC.ENGINE.PYTHON = PYTHON
    cfg.MOSAIC.ENGINE.ARGS = ["--threads", "1", "--categories", ",".join(drawings.RARE)]
    return cfg


def wait_for(condition, seconds=600):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s: {condition}")


def test_killing_the_engine_changes_nothing_but_the_counters(engine_cfg, annotations, tmp_path):
    killed = []

    def act(hook, iteration):
        if iteration == 3:
            # It works: it has written something.
            bank = Path(engine_cfg.MOSAIC.BANK).parent / "with" / "bank"
            wait_for(lambda: any(s.mosaics > 0 for s in mosaicbank.engine_status(bank)))
        if iteration in (3, 6):
            pid = wait_for(lambda: hook.engine.handle.status()["pid"])
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
            wait_for(lambda: hook.engine.handle.status()["pid"] != pid)

    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    _, plain, _ = train(engine_cfg, annotations, tmp_path / "without", spawn=False)
    trainer, stream, bank = train(engine_cfg, annotations, tmp_path / "with", True, act)
    assert len(set(killed)) == 2
    assert stream.batches == plain.batches
    counts = trainer.data_loader.counts
    assert counts.errors == 0 and counts.misses == 0
    assert bank.stats()["mosaics"] > len(drawings.CATEGORIES)
    assert bank.verify()["bad"] == [] and bank.verify()["problems"] == []
    assert "mosaic/generation_rate" in trainer.storage.latest()
    assert stream.engine.handle is None
    wait_for(lambda: not any(_is_running(pid) for pid in _engine_pids(bank)))


def _engine_pids(bank):
    return [status.pid for status in mosaicbank.engine_status(bank.path)]


def _is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (OSError, IndexError):
        return False
    return state != "Z"


def test_an_engine_that_cannot_start(engine_cfg, annotations, tmp_path):
    engine_cfg.MOSAIC.ENGINE.PYTHON = str(tmp_path / "no-python")
    engine_cfg.SOLVER.MAX_ITER = 4
    trainer, _, _ = train(engine_cfg, annotations, tmp_path, spawn=True)
    assert trainer.data_loader.counts.errors == 0


def test_the_demo(tmp_path, capsys):
    torch.manual_seed(0)
    status = detectron2_demo.main(
        [
            *("--out", str(tmp_path / "demo"), "--engine-python", PYTHON),
            *("--iterations", "16", "--per-category", "1"),
        ]
    )
    printed = capsys.readouterr().out
    assert status == 0, printed
    for words in ("Detectron2 ", "mosaic for", "pasted", "mosaics (", "engine       made"):
        assert words in printed, (words, printed)
    pictures = list((tmp_path / "demo" / "saw").glob("*.png"))
    assert any("mosaic" in p.name for p in pictures) and any("pasted" in p.name for p in pictures)
