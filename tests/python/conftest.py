"""What every Python test may rely on."""

from __future__ import annotations

import importlib.util
import os

# Before anything imports torch: its threads sleep while they wait. If several processes busy-wait
# on the same cores, each runs many times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# No progress bars in the log, and never a download.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

#: Detectron2 has an environment of its own; its tests run there (``make test-detectron2``).
HAS_DETECTRON2 = importlib.util.find_spec("detectron2") is not None
collect_ignore = [] if HAS_DETECTRON2 else ["in_detectron2"]


def pytest_report_header() -> str:
    """Says which tests this environment cannot run."""
    if HAS_DETECTRON2:
        return "Detectron2: found"
    return "Detectron2: not here, so in_detectron2/ is left out (make test-detectron2 runs it)"
