"""Output folders: a program writes into a folder that is new, empty or its own, or not at all."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

# Holds the name of the program that a folder belongs to.
MARKER = ".mosaicbank"


def new_folder(path: Path) -> Path:
    """Make a folder for output.

    Args:
        path: a folder that does not exist or is empty.

    Raises:
        ValueError: it holds something. Nothing is removed.
        OSError: it cannot be made.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    _refuse(path, sorted(os.listdir(path)), "a new or an empty folder")
    return path


def next_folder(path: Path) -> Path:
    """Make the first of ``path``, ``path-2``, ``path-3``, ... that does not exist or is empty."""
    for n in itertools.count(1):
        made = path if n == 1 else path.with_name(f"{path.name}-{n}")
        if not made.exists() or (made.is_dir() and not os.listdir(made)):
            return new_folder(made)
    raise AssertionError("unreachable")


def own_folder(path: Path, program: str) -> Path:
    """Make a folder for output, or take the one that an earlier run of ``program`` made.

    Args:
        path: a folder that does not exist, is empty, or was made by this function for ``program``.
        program: name of the program; it stays in the file ``.mosaicbank``.

    Raises:
        ValueError: it holds something else. Nothing is removed.
        OSError: it cannot be made.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    marker = path / MARKER
    if marker.is_file() and marker.read_text(errors="replace").strip() == program:
        return path
    expected = f"a new or an empty folder, or one that an earlier run of {program} made"
    _refuse(path, sorted(os.listdir(path)), expected)
    marker.write_text(program + "\n")
    return path


def _refuse(path: Path, found: list[str], expected: str) -> None:
    if found:
        names = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
        raise ValueError(f"output folder: expected {expected}, got {path} with {names}")
