"""``mosaicbank.engine_status``: what is read from the engines' status files."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

import mosaicbank
from mosaicbank import _core


def write(folder: Path, name: str, **fields: Any) -> None:
    now = time.time()
    status = {
        "format": 1,
        "id": name,
        "command": "engine",
        "pid": 1,
        "host": "elsewhere.invalid",
        "state": "working",
        "started": now - 60,
        "time": now,
        "mosaics": 3,
        **fields,
    }
    (folder / f"engine-{name}.json").write_text(json.dumps(status))


def test_the_states_are_those_seen_from_here(tmp_path: Path) -> None:
    old = time.time() - 3600
    write(tmp_path, "a", started=1.0)
    write(tmp_path, "b", started=2.0, time=old)
    write(tmp_path, "c", started=3.0, time=old, state="stopping")
    write(tmp_path, "d", started=4.0, time=old, state="failed")
    # On this machine the process decides.
    write(tmp_path, "e", started=5.0, host=socket.gethostname(), pid=os.getpid())
    write(tmp_path, "f", started=6.0, host=socket.gethostname(), pid=2**30)
    found = mosaicbank.engine_status(tmp_path)
    assert [(s.id, s.state) for s in found] == [
        ("a", "working"),
        ("b", "dead"),
        ("c", "stopped"),
        ("d", "failed"),
        ("e", "working"),
        ("f", "dead"),
    ]
    assert [s.id for s in found if s.alive] == ["a", "e"]
    assert {s.state for s in found} <= set(_core.ENGINE_STATES)


def test_the_fields_are_typed(tmp_path: Path) -> None:
    write(
        tmp_path,
        "a",
        history=[[1.0, 2, 3, 4, 1]],
        coming=[[7, 2]],
        last_error={"time": 5.0, "message": "no room"},
        stages={"plan": 0.5, "denoise": 1.5},
        from_a_later_version=[1],
    )
    (status,) = mosaicbank.engine_status(str(tmp_path))
    assert (status.mosaics, status.instances, status.measured_duty) == (3, 0, None)
    assert status.history == [(1.0, 2, 3, 4, 1)] and status.coming == [(7, 2)]
    assert (status.last_error, status.last_error_time) == ("no room", 5.0)
    assert status.stages["denoise"] == 1.5 and status.stages["idle"] == 0.0
    assert "working" in repr(status)
    with pytest.raises(AttributeError):
        status.mosaics = 4  # type: ignore[misc]


def test_what_is_not_a_status_is_skipped(tmp_path: Path) -> None:
    write(tmp_path, "a")
    (tmp_path / "engine-empty.json").write_bytes(b"")
    (tmp_path / "engine-list.json").write_text("[]")
    (tmp_path / "engine-folder.json").mkdir()
    # Opening one would wait for a writer for ever.
    os.mkfifo(tmp_path / "engine-pipe.json")
    (tmp_path / "bank.toml").write_text("")
    assert [s.id for s in mosaicbank.engine_status(tmp_path)] == ["a"]
    with pytest.raises(FileNotFoundError):
        mosaicbank.engine_status(tmp_path / "none")
