"""Runs ``mosaicbank`` commands, each in its own process.

The processes are forked from one that has imported torch and the engine: importing them anew takes
seconds of CPU time for each command.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

# A safety net against waiting forever; a command ends within seconds.
PATIENCE = 1800.0

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch", "mosaicbank._core", "mosaicbank._engine"])


def _run(words: Sequence[str], out: str, err: str) -> None:
    """In the new process: what the console script does."""
    for path, fd in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), fd)
    from mosaicbank._cli import main

    status = main(words)
    sys.stdout.flush()
    sys.stderr.flush()
    # Without the clean-up of the process that this one was forked from.
    os._exit(status)


def command(*words: object) -> subprocess.CompletedProcess[str]:
    """Run ``mosaicbank WORDS`` and return its status and output."""
    text = [str(word) for word in words]
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = _context.Process(target=_run, args=(text, str(out), str(err)))
        process.start()
        process.join(PATIENCE)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise TimeoutError(f"mosaicbank {' '.join(text)}: not done after {PATIENCE:.0f} s")
        output = [p.read_text() if p.exists() else "" for p in (out, err)]
        return subprocess.CompletedProcess(text, process.exitcode, *output)


def ok(*words: object) -> str:
    """Run ``mosaicbank WORDS``, which must succeed, and return its standard output."""
    done = command(*words)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout
