"""An engine beside a training run: started, watched over and ended by the trainer.

`EngineHandle` runs ``mosaicbank engine`` as a child process, in this Python environment or in
another one (the trainer's torch need not be the engine's). Nothing here imports torch, and
nothing waits: the child is started, restarted and read from a daemon thread.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Optional, Union

from mosaicbank import _loader

if TYPE_CHECKING:
    from mosaicbank._core import EngineStatus

__all__ = ["EngineHandle"]

_LOG = logging.getLogger("mosaicbank")

# The longest pause before another start, seconds.
_MOST_BACKOFF = 60.0
# An engine that ran for this long was not started in vain: the count of failures begins anew.
_GOOD_RUN = 60.0
# How often the thread looks at the child, seconds.
_LOOK = 0.2
# After this time a child that was asked to end is killed, seconds.
_PATIENCE = 5.0
# The log is begun anew when it has grown to this many bytes.
_MOST_LOG = 8 << 20
# Of the log, what is shown when an engine fails.
_TAIL = 2000
# Exit status of an engine that was asked to end (128 + SIGINT), and of one that had nothing to do.
_ASKED_TO_END = 130
# Variables that belong to the trainer's environment and would mislead another one's Python.
_OWN_PYTHON = ("PYTHONHOME", "PYTHONPATH", "PYTHONEXECUTABLE", "__PYVENV_LAUNCHER__")
# What launchers tell the trainer's ranks; it is not for the engine.
_OF_LAUNCHERS = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)

# A DataLoader worker that is forked while a process is being started would hold the start's pipe
# open, and the start would never end: the two wait for each other (milliseconds).
_SPAWNING = threading.Lock()
os.register_at_fork(
    before=_SPAWNING.acquire,
    after_in_parent=_SPAWNING.release,
    after_in_child=_SPAWNING.release,
)


class EngineHandle:
    """Runs an engine for a bank for as long as this process lives.

    The constructor returns at once. The engine ends with ``stop()``, at the end of a ``with``
    block, and with this process, even when that is killed. When it fails it is started again,
    after 1, 2, 4, ... seconds; after ``retries`` failures in a row there is one warning, and the
    training goes on with what the bank has.

    In a forked child (a DataLoader worker) only ``status()`` does anything.

    Args:
        bank: the bank's directory. It need not exist if the engine can create it.
        model: ``"embedded"``, or a model directory.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:<index>"``.
        duty: share of the device's time that the engine may use, above 0 and at most 1.
        python: another environment's Python, with mosaicbank and its engine; empty: this one.
        extra_args: further words of ``mosaicbank engine``, such as ``["--target", "50"]``.
        retries: failures in a row after which it gives up.
        backoff: seconds until the first restart.
        log: file for what the engine prints; None: ``engine-<pid>.log`` in the bank.
        env: environment variables to set for the engine, over those of this process.

    Raises:
        ValueError: ``duty`` is out of range.
    """

    def __init__(
        self,
        bank: Union[str, os.PathLike[str]],
        model: Union[str, os.PathLike[str]] = "embedded",
        device: str = "cpu",
        duty: float = 1.0,
        python: str = "",
        extra_args: Sequence[str] = (),
        *,
        retries: int = 5,
        backoff: float = 1.0,
        log: Optional[Union[str, os.PathLike[str]]] = None,
        env: Optional[Mapping[str, str]] = None,
    ) -> None:
        if not 0.0 < duty <= 1.0:
            raise ValueError(f"duty: expected above 0 and at most 1, got {duty}")
        if isinstance(extra_args, str):
            raise ValueError(f"extra_args: expected a list of words, got {extra_args!r}")
        self._owner = os.getpid()
        self._bank = Path(bank)
        self._log = Path(log) if log is not None else self._bank / f"engine-{self._owner}.log"
        self._retries = retries
        self._backoff = backoff
        self._command = [
            str(python) or sys.executable,
            *("-m", "mosaicbank", "engine"),
            *("--bank", str(self._bank), "--model", str(model), "--device", device),
            *("--duty", repr(float(duty)), "--parent", str(self._owner)),
            *(str(word) for word in extra_args),
        ]
        self._env = _environment(bool(python), env)
        self._stopping = threading.Event()
        # Written by the thread only, read by whoever asks: single assignments, no lock that a
        # forked child could inherit locked.
        self._state = "starting"
        self._pid: Optional[int] = None
        self._restarts = 0
        self._error: Optional[str] = None
        self._thread = threading.Thread(
            target=self._supervise, name="mosaicbank engine", daemon=True
        )
        self._thread.start()

    # --- what the trainer asks ---------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """What the engine is doing; never waits.

        Returns:
            ``state``: ``starting``, ``running``, ``restarting``, ``failed`` (given up) or
            ``stopped``; ``pid``; ``restarts``; ``last_error``; ``log``; ``engine``: the engine's
            own :class:`mosaicbank.EngineStatus` (state, rates, stock, rejects, ...), or None.
        """
        return {
            "state": self._state,
            "pid": self._pid,
            "restarts": self._restarts,
            "last_error": self._error,
            "log": str(self._log),
            "engine": self._engine_status(),
        }

    @property
    def alive(self) -> bool:
        """Whether there is an engine, or there will be one again."""
        return self._state in ("starting", "running", "restarting")

    def stop(self, timeout: float = _PATIENCE + 1.0) -> None:
        """End the engine, and wait for its end for ``timeout`` seconds at most.

        What it wrote into the bank stays; a batch that it was making is lost.
        """
        if os.getpid() != self._owner:
            return
        self._stopping.set()
        if timeout > 0 and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def pause(self) -> None:
        """Let all engines of the bank pause."""
        if os.getpid() == self._owner:
            self._pause_file.touch()

    def resume(self) -> None:
        """Let all engines of the bank go on."""
        if os.getpid() == self._owner and self._pause_file.exists():
            self._pause_file.unlink()

    def __enter__(self) -> EngineHandle:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        value: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"EngineHandle(bank={str(self._bank)!r}, state={self._state!r}, pid={self._pid})"

    def __reduce__(self) -> Any:
        raise TypeError("an EngineHandle belongs to the process that made it: it is not pickled")

    @property
    def _pause_file(self) -> Path:
        return self._bank / "pause"

    def _engine_status(self) -> Optional[EngineStatus]:
        """The status of the process that this handle started last."""
        pid, host = self._pid, socket.gethostname()
        try:
            found: list[EngineStatus] = _loader.core().engine_status(self._bank)
        except OSError:  # The bank is yet to be made.
            return None
        own = (status for status in found if (status.pid, status.host) == (pid, host))
        return max(own, key=lambda status: status.time, default=None)

    # --- the thread --------------------------------------------------------------------------

    def _supervise(self) -> None:
        failures = 0
        try:
            while not self._stopping.is_set():
                begin = time.monotonic()
                status = self._run_once()
                if self._stopping.is_set() or status in (0, _ASKED_TO_END):
                    break
                if time.monotonic() - begin >= _GOOD_RUN:
                    failures = 0
                failures += 1
                self._error = self._why(status)
                if failures > self._retries:
                    self._state = "failed"
                    message = (
                        f"the mosaicbank engine failed {failures} times and is not started "
                        f"again; the training goes on with what the bank has. The last time: "
                        f"{self._error}"
                    )
                    _LOG.warning("%s", message)
                    warnings.warn(message, RuntimeWarning, stacklevel=2)
                    return
                pause = min(self._backoff * 2.0 ** (failures - 1), _MOST_BACKOFF)
                _LOG.info("the mosaicbank engine ended (%s); again in %.0f s", self._error, pause)
                self._state = "restarting"
                if self._stopping.wait(pause):
                    break
                self._restarts += 1
            self._state = "stopped"
        except Exception as error:  # Never the trainer's problem; it is told once.
            self._error = repr(error)
            self._state = "failed"
            _LOG.warning("the mosaicbank engine is not watched over any more: %r", error)

    def _run_once(self) -> Optional[int]:
        """Start the engine and wait for its end; its exit status, None when it did not start."""
        output: Any = subprocess.DEVNULL
        try:
            output = self._open_log()
        except OSError as error:
            _LOG.info("no log of the mosaicbank engine: %s", error)
        try:
            with _SPAWNING:
                child = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=self._env,
                    close_fds=True,
                    # Ctrl-C in the terminal is the trainer's, which decides what becomes of the
                    # engine.
                    start_new_session=True,
                )
        except OSError as error:
            self._error = str(error)
            return None
        finally:
            if output is not subprocess.DEVNULL:
                output.close()
        self._pid = child.pid
        self._state = "running"
        while True:
            try:
                return child.wait(_LOOK)
            except subprocess.TimeoutExpired:
                if self._stopping.is_set():
                    return _end(child)

    def _open_log(self) -> Any:
        fresh = not self._log.exists() or self._log.stat().st_size > _MOST_LOG
        if not self._log.parent.is_dir():
            # A bank that is yet to be made.
            self._log.parent.mkdir(parents=True, exist_ok=True)
        return open(self._log, "wb" if fresh else "ab")

    def _why(self, status: Optional[int]) -> str:
        """An error message for the end of an engine."""
        if status is None:
            return f"{self._command[0]} could not be started: {self._error}"
        ended = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        try:
            with open(self._log, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
                lines = file.read().decode("utf-8", "replace").strip().splitlines()
        except OSError:
            lines = []
        said = [line for line in lines if line.startswith("mosaicbank:")] or lines
        return f"{ended}; {said[-1]}" if said and status > 0 else ended


def _end(child: subprocess.Popen[bytes]) -> int:
    """Ask a process to end, and kill it when it does not."""
    child.terminate()
    try:
        return child.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


def _environment(other_python: bool, own: Optional[Mapping[str, str]]) -> dict[str, str]:
    environment = dict(os.environ)
    for name in _OF_LAUNCHERS:
        environment.pop(name, None)
    if other_python:
        for name in _OWN_PYTHON:
            environment.pop(name, None)
    environment.update(own or {})
    return environment
