# ruff: noqa: F811 (fixtures are imported by name)
"""How soon the engine does things, and how little a trainer waits: times on a quiet machine.

``make test-long`` runs these; on a busy machine any process may be held up for longer.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from commands import ok
from mosaicbank import _core
from mosaicbank.engine import EngineHandle
from test_engine import LONG, making, model, options, own, stocked, two_bananas, wait_for  # noqa: F401 (fixtures)

pytestmark = pytest.mark.skipif(not LONG, reason="times, on a quiet machine: make test-long")

# What one draw of a trainer may take at most, in seconds, whatever happens to the engine.
LONGEST_DRAW = 0.05


def test_the_device_is_kept_busy_and_the_first_of_a_category_comes_soon(
    model: Path,
    options: list[str],
    making: list[str],
    tmp_path: Path,
) -> None:
    path = tmp_path / "bank"
    ok("prewarm", "--bank", str(path), "--categories", "banana", "--per-category", "1", *making)
    bank = _core.Bank.open(str(path))
    weights = np.ones(len(bank.categories), dtype=np.float32)
    fish = bank.category_index("fish")
    weights[fish] = 0.0
    bank.set_feedback(weights)
    # Regions of fish only come when they are asked for: no others' regions here.
    words = ["--target", "2", "--odds", "1,0,0", *options, "--set", "steps=20"]
    with EngineHandle(path, model=model, extra_args=words) as engine:
        wait_for(lambda: own(engine, "state") == "stocked")
        stages = own(engine, "stages")
        one = (stages["denoise"] + stages["label"] + stages["write"]) / own(engine, "regions")
        assert own(engine, "idle_share") <= 0.05
        assert bank.mosaic_ids("fish") == []
        weights[fish] = 1.0
        bank.set_feedback(weights)
        begin = time.monotonic()
        assert _core.draw_mosaic(bank, "fish") is None
        wait_for(lambda: bank.mosaic_ids("fish"))
        took = time.monotonic() - begin
    print(f"one mosaic {one:.2f} s, the first of a category after {took:.2f} s")
    assert took <= 2.0 * one


def test_draws_do_not_wait_for_an_engine_that_was_killed(
    model: Path,
    options: list[str],
    stocked: Path,
) -> None:
    bank = _core.Bank.open(str(stocked))
    words = ["--target", "500", *options]
    with EngineHandle(stocked, model=model, extra_args=words, backoff=0.1) as engine:
        pid = wait_for(lambda: own(engine, "mosaics") and engine.status()["pid"])
        os.kill(pid, signal.SIGKILL)
        longest = 0.0
        while own(engine, "pid") in (None, pid) or not own(engine, "mosaics"):
            begin = time.monotonic()
            _core.draw_mosaic(bank, "banana")
            bank.draw_instance(categories=["banana"], mode="categories")
            longest = max(longest, time.monotonic() - begin)
            time.sleep(0.005)
    assert longest < LONGEST_DRAW
