"""Fixtures that every Python test may use."""

from __future__ import annotations

import os

# Before anything imports torch: its threads sleep while they wait. Those of several processes
# that spin on the same cores make each other many times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# No progress bars in the log, and never a download.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
