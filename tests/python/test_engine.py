"""The engine, prewarm and the handle, with a real model in real processes.

The model is the embedded one where the package holds it, else a small seeded checkpoint;
``MOSAICBANK_TEST_MODEL`` names another. ``MOSAICBANK_LONG_TESTS=1`` runs the long forms. Conditions
are on states and counts; ``test_engine_times.py`` has those on times.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Optional

import pytest

import mosaicbank
from commands import command, ok
from mosaicbank import _core
from mosaicbank.engine import EngineHandle

LONG = os.environ.get("MOSAICBANK_LONG_TESTS", "") not in ("", "0")
# A safety net against waiting forever: what is waited for comes within seconds.
PATIENCE = 600.0

# Few steps on a small canvas, and every component kept: the subject is the engine, not the art.
RECIPE: dict[str, Any] = {
    "height": 64,
    "width": 64,
    "steps": 2,
    "refine": [],
    "checks": {"size": {"components": "each", "min_area": 0.001, "max_area": 1.0}},
}
NAMES = [
    *("banana", "teapot", "apple", "carrot", "owl", "fish", "taco", "wolf", "snake", "violin"),
    *("avocado", "ax", "beetle", "butterfly", "compass", "doughnut", "gorilla", "koala", "penguin"),
    "umbrella",
]
CATEGORIES = [
    {"id": i + 1, "name": name, "frequency": "r", "definition": ""} for i, name in enumerate(NAMES)
]
# As many as a short test fills.
FEW = NAMES[:10]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    named = os.environ.get("MOSAICBANK_TEST_MODEL")
    embedded = Path(mosaicbank.__path__[0], "models", "embedded")
    for path in (Path(named) if named else embedded,):
        if (path / "model_index.json").is_file():
            return path
    from parity import checkpoints

    return checkpoints.write_checkpoint(
        checkpoints.SMALL, tmp_path_factory.mktemp("engine") / "small"
    )


@pytest.fixture(scope="session")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Words for a handle, which names the model itself."""
    folder = tmp_path_factory.mktemp("options")
    recipe = folder / "recipe.json"
    recipe.write_text(json.dumps(RECIPE))
    table = folder / "categories.json"
    table.write_text(json.dumps(CATEGORIES))
    return [
        *("--annotations", str(table), "--recipe", str(recipe), "--threads", "1"),
    ]


@pytest.fixture(scope="session")
def making(model: Path, options: list[str]) -> list[str]:
    """Words for a command."""
    return ["--model", str(model), *options]


@pytest.fixture(scope="session")
def two_bananas(making: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank with two mosaics of one category: to be copied."""
    path = tmp_path_factory.mktemp("bananas") / "bank"
    ok("prewarm", "--bank", path, "--categories", "banana", "--per-category", "2", *making)
    return path


@pytest.fixture
def stocked(two_bananas: Path, tmp_path: Path) -> Path:
    """A bank of the test's own with two mosaics of one category."""
    path = tmp_path / "bank"
    shutil.copytree(two_bananas, path)
    return path


def start(*words: str, **kwargs: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mosaicbank", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,
    )


def wait_for(what: Callable[[], Any], patience: float = PATIENCE) -> Any:
    end = time.monotonic() + patience
    while True:
        found = what()
        if found:
            return found
        assert time.monotonic() < end, f"nothing within {patience} s"
        time.sleep(0.02)


def own(engine: EngineHandle, name: str) -> Any:
    """What the engine says about itself; None while it says nothing."""
    return getattr(engine.status()["engine"], name, None)


def stock(path: Path) -> dict[str, int]:
    """Mosaics of each category that has any."""
    bank = _core.Bank.open(str(path))
    counts = {c["name"]: len(bank.mosaic_ids(c["name"])) for c in bank.categories}
    return {name: n for name, n in counts.items() if n}


def seeds(path: Path) -> list[tuple[str, int]]:
    """Recipe and seed of every mosaic, each of which must read back whole."""
    bank = _core.Bank.open(str(path))
    mosaics = [bank.mosaic(i) for i in bank.mosaic_ids()]
    assert all(m.masks.any(axis=(1, 2)).all() for m in mosaics)
    return [(m.provenance[0]["recipe"], m.seed) for m in mosaics]


def beats(path: Path) -> list[dict[str, Any]]:
    return json.loads(ok("status", "--bank", str(path), "--json"))["engines"]


def exists(bank: Path) -> bool:
    return (bank / "bank.toml").exists()


def has_more(bank: Path, than: int) -> bool:
    return exists(bank) and sum(stock(bank).values()) > than


def has_ended(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return True
    return state in "ZX"


# --- prewarm ----------------------------------------------------------------------------------


def test_prewarm_killed_and_resumed_ends_with_exactly_what_was_asked_for(
    making: list[str], tmp_path: Path
) -> None:
    names, per_category, kills = (NAMES, 5, 5) if LONG else (FEW, 3, 2)
    bank = tmp_path / "bank"
    words = ["prewarm", "--bank", str(bank), "--categories", ",".join(names), *making]
    words += ["--per-category", str(per_category)]
    draw = random.Random(0)
    for i in range(kills):
        before = sum(stock(bank).values()) if exists(bank) else 0
        child = start(*words)
        if i != 1:
            # At work; then at a random moment. (The second dies as it starts.)
            wait_for(lambda c=child, n=before: c.poll() is not None or has_more(bank, n))
        time.sleep(draw.uniform(0.0, 1.0))
        if i % 2:
            child.send_signal(signal.SIGINT)
        else:
            child.kill()
        child.communicate(timeout=PATIENCE)
        # Python's own end by SIGINT, where it came before the command began.
        assert child.returncode in (0, -signal.SIGKILL, -signal.SIGINT, 130)
    out = ok(*words)
    assert str(bank) in out
    assert stock(bank) == dict.fromkeys(names, per_category)
    made = seeds(bank)
    assert len(set(made)) == len(made)
    assert len({seed for _, seed in made}) == len(made)
    # Once more: there is nothing to do.
    assert "0 mosaics" in ok(*words)
    assert stock(bank) == dict.fromkeys(names, per_category)


def test_shards_merge_into_what_one_run_makes_each_record_once(
    making: list[str], tmp_path: Path
) -> None:
    bank = tmp_path / "bank"
    words = ["prewarm", "--bank", str(bank), "--categories", ",".join(FEW), "--per-category", "3"]
    first = start(*words, *making, "--shard", "0/2")
    slurm = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}
    second = start(*words, *making, env={**os.environ, **slurm})
    for child in (first, second):
        _, err = child.communicate(timeout=3 * PATIENCE)
        assert child.returncode == 0, err
    parts = [bank / "shard-0-of-2", bank / "shard-1-of-2"]
    both = [stock(part) for part in parts]
    assert abs(sum(both[0].values()) - sum(both[1].values())) <= 1
    for _ in range(2):
        ok("merge-banks", str(bank), *map(str, parts))
        assert stock(bank) == dict.fromkeys(FEW, 3)
        merged = seeds(bank)
        assert sorted(merged) == sorted(seeds(parts[0]) + seeds(parts[1]))
        assert len(set(merged)) == len(merged)
    done = command("merge-banks", str(bank), str(bank))
    assert done.returncode == 1 and "another bank" in done.stderr


def test_mistakes_are_told_before_any_work(making: list[str], tmp_path: Path) -> None:
    bank = str(tmp_path / "bank")
    for words, message in [
        (["--shard", "2/2"], "i/n"),
        (["--duty", "0"], "duty"),
        (["--odds", "0,0,0"], "odds"),
        (["--categories", "bananna"], "banana"),
        (["--set", "regions=4"], "--odds"),
    ]:
        done = command("prewarm", "--bank", bank, *making, *words)
        assert done.returncode != 0 and message in done.stderr, done.stderr
        assert "Traceback" not in done.stderr


def test_logs_are_plain_and_the_status_fits_80_columns(making: list[str], tmp_path: Path) -> None:
    bank = tmp_path / "bank"
    words = ("--categories", "banana,owl", "--per-category", "2", *making)
    done = command("prewarm", "--bank", str(bank), *words)
    assert done.returncode == 0
    _core.draw_mosaic(_core.Bank.open(str(bank)), "wolf")
    status = ok("status", "--bank", str(bank))
    watch = start("status", "--bank", str(bank), "--watch")
    assert watch.stdout is not None
    watched = "".join(watch.stdout.readline() for _ in range(5))
    watch.send_signal(signal.SIGINT)
    rest, _ = watch.communicate(timeout=PATIENCE)
    # 130 where it was too slow to stop by itself: a busy machine.
    assert watch.returncode in (0, 130)
    for text in (done.stdout, done.stderr, status, watched + rest):
        assert text
        assert not [c for c in text if ord(c) < 32 and c != "\n"]
    assert max(map(len, status.splitlines())) <= 80
    for word in ("stopped", "wolf", "prewarm"):
        assert word in status


def test_prompts_have_the_models_names_and_limits_act_on_a_bank_that_exists(
    model: Path, tmp_path: Path
) -> None:
    """COCO's ``donut`` is the embedded model's ``doughnut``; records keep the dataset's name."""
    if not (model / "categories.json").is_file():
        pytest.skip("the model does not list what it was trained on")
    table = [{"id": i, "name": n} for i, n in enumerate(("donut", "my fruit", "blorp"), 1)]
    for name, content in (("table", table), ("recipe", RECIPE)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    bank = tmp_path / "bank"
    words = (
        *("prewarm", "--bank", str(bank), "--model", str(model), "--threads", "1"),
        *("--annotations", str(tmp_path / "table.json")),
        *("--recipe", str(tmp_path / "recipe.json"), "--odds", "1,0,0"),
        *("--categories", "all", "--per-category", "1", "--aliases", "my fruit=banana"),
    )
    done = command(*words, "--max-uses", "3", "--max-per-category", "7")
    assert done.returncode == 0, done.stderr
    assert "1 of 3 categories are left out" in done.stderr
    opened = _core.Bank.open(str(bank))
    made = [opened.mosaic(i) for i in opened.mosaic_ids()]
    prompts = {r["category"]: r["prompt"] for m in made for r in m.regions}
    assert set(prompts) == {0, 1}
    assert "doughnut" in prompts[0] and "banana" in prompts[1]
    limits = opened.limits
    assert limits["max_uses"] == 3 and limits["max_per_category"] == 7
    done = command(*words)
    assert done.returncode == 0 and _core.Bank.open(str(bank)).limits == limits
    done = command(*words, "--max-uses", "5")
    assert done.returncode == 0 and "max_uses 5" in done.stderr
    assert _core.Bank.open(str(bank)).limits == {**limits, "max_uses": 5}
    done = command(*words, "--max-bytes", str(1 << 63))
    assert done.returncode != 0 and "max_bytes" in done.stderr
    done = command(*words, "--aliases", "my fruit=bananna")
    assert done.returncode != 0 and "did you mean banana" in done.stderr


# --- the engine -------------------------------------------------------------------------------


def test_what_a_trainer_asks_for_is_what_is_made(
    model: Path, options: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "bank"
    words = ["--target", "200", *options]
    bank: Optional[Any] = None
    with EngineHandle(path, model=model, extra_args=words) as engine:
        wait_for(lambda: exists(path) or engine.status()["state"] == "failed")
        bank = _core.Bank.open(str(path))
        # It says what it draws.
        wait_for(lambda: bank.supply().all())
        # Where nobody asks, all are made alike.
        wait_for(lambda: len(bank.mosaic_ids()) >= 4)
        before = set(bank.mosaic_ids())
        wanted = 60 if LONG else 15

        def asked() -> bool:
            _core.draw_mosaic(bank, "fish")
            return len(bank.mosaic_ids()) >= len(before) + wanted

        wait_for(asked)
    assert bank is not None
    new = [bank.mosaic(i) for i in bank.mosaic_ids() if i not in before]
    fish = bank.category_index("fish")
    with_fish = sum(any(r["category"] == fish for r in m.regions) for m in new)
    assert with_fish >= 0.8 * len(new), f"{with_fish} of {len(new)}"
    demand = bank.demand()
    assert demand["asked"][fish] > 0


def test_an_idle_engine_wakes_when_something_is_used(
    model: Path, options: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "bank"
    words = ["--categories", "owl", "--target", "2", *options]
    with EngineHandle(path, model=model, extra_args=words) as engine:

        def says(state: str) -> bool:
            return own(engine, "state") == state

        wait_for(lambda: says("stocked"))
        bank = _core.Bank.open(str(path))
        before = len(bank.mosaic_ids("owl"))
        for _ in range(before):
            assert _core.draw_mosaic(bank, "owl") is not None
        wait_for(lambda: len(bank.mosaic_ids("owl")) >= before + 2)
        engine.pause()
        wait_for(lambda: says("paused"))
        engine.resume()
        wait_for(lambda: says("stocked"))
        idle = own(engine, "idle_share")
        assert 0.0 <= idle <= 1.0
    assert engine.status()["state"] == "stopped"
    assert beats(path)[0]["state"] == "stopped"


def draw_until(bank: Any, done: Callable[[], Any]) -> int:
    """A trainer's loop until ``done``: how many times it drew meanwhile."""
    draws = 0

    def step() -> bool:
        nonlocal draws
        _core.draw_mosaic(bank, "banana")
        bank.draw_instance(categories=["banana"], mode="categories")
        draws += 1
        return bool(done())

    wait_for(step)
    return draws


def test_a_killed_engine_is_started_again_and_the_trainer_does_not_notice(
    model: Path, options: list[str], stocked: Path
) -> None:
    path = stocked
    bank = _core.Bank.open(str(path))
    with EngineHandle(
        path, model=model, extra_args=["--target", "500", *options], backoff=0.1
    ) as engine:
        pid = wait_for(lambda: own(engine, "mosaics") and engine.status()["pid"])
        os.kill(pid, signal.SIGKILL)

        def works_again() -> bool:
            return own(engine, "pid") not in (None, pid) and bool(own(engine, "mosaics"))

        # A new engine takes seconds to start. Were a draw to wait for it, there would be few.
        assert draw_until(bank, works_again) >= 10
        assert engine.status()["pid"] != pid
        assert engine.status()["restarts"] >= 1
        assert "signal 9" in engine.status()["last_error"]
        assert [b["state"] for b in beats(path) if b["pid"] == pid] == ["dead"]
        before = len(bank.mosaic_ids())
        wait_for(lambda: len(bank.mosaic_ids()) > before)


def test_a_full_disk_blocks_the_engine_until_there_is_room(
    model: Path, options: list[str], stocked: Path
) -> None:
    path = stocked
    bank = _core.Bank.open(str(path))
    with EngineHandle(path, model=model, extra_args=["--target", "500", *options]) as engine:
        wait_for(lambda: own(engine, "mosaics"))
        pid = engine.status()["pid"]
        # No file may grow: what a full disk does, for one process.
        size = (path / "data.mdb").stat().st_size
        unlimited = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, unlimited[1]))
        wait_for(lambda: own(engine, "state") == "blocked")
        # Draws go on while the engine is blocked: none of them waits for it.
        drawn = iter(range(100))
        draw_until(bank, lambda: next(drawn, None) is None)
        assert own(engine, "state") == "blocked"
        assert own(engine, "last_error")
        text = ok("status", "--bank", str(path))
        assert "blocked" in text and "data.mdb" in text
        assert engine.status()["restarts"] == 0
        resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)
        before = own(engine, "mosaics")
        wait_for(lambda: own(engine, "mosaics") > before + 2)
        assert own(engine, "state") == "working"
    made = seeds(path)
    assert len(set(made)) == len(made)


def test_a_damaged_model_is_told_once_and_the_training_goes_on(
    model: Path, options: list[str], stocked: Path, tmp_path: Path
) -> None:
    path = stocked
    bank = _core.Bank.open(str(path))
    damaged = tmp_path / "damaged"
    shutil.copytree(model, damaged)
    with EngineHandle(
        path, model=damaged, extra_args=[*options, "--target", "500"], retries=1, backoff=0.1
    ) as engine:
        wait_for(lambda: own(engine, "mosaics"))
        pid = engine.status()["pid"]
        weights = next(damaged.glob("unet/*.safetensors"))
        os.truncate(weights, 1000)
        os.kill(pid, signal.SIGKILL)
        # A start that fails takes a while, too.
        assert draw_until(bank, lambda: engine.status()["state"] == "failed") >= 10
        assert "safetensors" in engine.status()["last_error"]
    failed = [b for b in beats(path) if b["state"] == "failed"]
    assert failed and "safetensors" in failed[-1]["last_error"]["message"]


# --- the handle -------------------------------------------------------------------------------


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """A stand-in for a Python whose engine does something."""

    def write(body: str) -> str:
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return str(path)

    yield write


def test_the_handle_gives_up_after_n_tries_with_one_warning(
    script: Callable[[str], str], tmp_path: Path
) -> None:
    python = script('echo "run" >> "$0.runs"; echo "mosaicbank: no such thing" >&2; exit 1')
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        engine = EngineHandle(tmp_path, python=python, retries=3, backoff=0.01)
        wait_for(lambda: not engine.alive)
    assert Path(python + ".runs").read_text().count("run") == 4
    ours = [w for w in caught if "mosaicbank engine failed" in str(w.message)]
    assert len(ours) == 1 and "no such thing" in str(ours[0].message)
    status = engine.status()
    assert (status["state"], status["restarts"], status["engine"]) == ("failed", 3, None)
    engine.stop()


def test_a_python_that_is_not_there_is_a_warning_and_not_an_error(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        engine = EngineHandle(tmp_path, python="/no/such/python", retries=0)
        wait_for(lambda: not engine.alive)
    assert "/no/such/python" in engine.status()["last_error"]
    assert len([w for w in caught if issubclass(w.category, RuntimeWarning)]) == 1


def test_an_engine_that_ends_by_itself_is_not_started_again(
    script: Callable[[str], str], tmp_path: Path
) -> None:
    engine = EngineHandle(tmp_path, python=script("exit 0"))
    wait_for(lambda: not engine.alive)
    assert engine.status()["state"] == "stopped"
    assert engine.status()["restarts"] == 0


def test_an_engine_that_does_not_listen_is_killed(
    script: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mosaicbank.engine._PATIENCE", 0.2)
    python = script("trap '' TERM; touch \"$0.deaf\"; while :; do sleep 0.05; done")
    engine = EngineHandle(tmp_path, python=python)
    pid = wait_for(lambda: engine.status()["pid"])
    wait_for(Path(python + ".deaf").exists)
    engine.stop(timeout=PATIENCE)
    assert has_ended(pid)
    assert engine.status()["state"] == "stopped"


def test_the_words_and_the_environment_of_the_engine(
    script: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    python = script('echo "$@"; echo "[$WORLD_SIZE$PYTHONPATH$EXTRA]"; exit 0')
    engine = EngineHandle(
        tmp_path,
        model="m",
        device="cuda:1",
        duty=0.25,
        python=python,
        extra_args=["--dtype", "bfloat16"],
        env={"EXTRA": "extra"},
    )
    wait_for(lambda: not engine.alive)
    words = Path(engine.status()["log"]).read_text()
    assert f"-m mosaicbank engine --bank {tmp_path} --model m --device cuda:1 --duty 0.25" in words
    assert f"--parent {os.getpid()} --dtype bfloat16" in words
    assert "[extra]" in words


def test_wrong_arguments_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="duty"):
        EngineHandle(tmp_path, duty=0.0)
    with pytest.raises(ValueError, match="list of words"):
        EngineHandle(tmp_path, extra_args="--duty 1")


TRAINER = """
import os, sys, time
sys.modules["torch"] = None  # A trainer without torch: the handle must not want it.
import mosaicbank
engine = mosaicbank.EngineHandle({bank!r}, model={model!r}, extra_args={words!r})
assert "mosaicbank._engine" not in sys.modules
pid = os.fork()
if pid == 0:
    # A worker: what it does with the handle touches nothing.
    engine.stop(); engine.pause(); engine.status()
    time.sleep(600)
while not getattr(engine.status()["engine"], "mosaics", 0):
    assert engine.alive, engine.status()
    time.sleep(0.05)
print(engine.status()["pid"], pid, flush=True)
{after}
"""


@pytest.mark.parametrize("after", ["time.sleep(600)", "sys.exit(3)"], ids=["killed", "exits"])
def test_the_engine_ends_with_the_trainer(
    model: Path, options: list[str], tmp_path: Path, after: str
) -> None:
    words = [*options, "--target", "500"]
    bank = str(tmp_path / "bank")
    text = TRAINER.format(bank=bank, model=str(model), words=words, after=after)
    trainer = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)
    assert trainer.stdout is not None
    engine, worker = map(int, trainer.stdout.readline().split())
    try:
        if "sleep" in after:
            assert not has_ended(engine)
            trainer.kill()
        trainer.wait(PATIENCE)
        # Though a worker that was forked from the trainer lives on.
        wait_for(lambda: has_ended(engine))
        assert not has_ended(worker)
    finally:
        os.kill(worker, signal.SIGKILL)
        trainer.kill()
        trainer.stdout.close()
    seeds(tmp_path / "bank")


def test_the_constructor_does_not_wait_and_the_handle_is_not_pickled(tmp_path: Path) -> None:
    import pickle

    # A file system that hangs would not hold it up either: all of it is in the thread.
    engine = EngineHandle(tmp_path / "bank", python="/no/such/python", retries=0)
    with pytest.raises(TypeError, match="belongs to the process"):
        pickle.dumps(engine)
    assert repr(engine).startswith("EngineHandle(")
    engine.stop()
