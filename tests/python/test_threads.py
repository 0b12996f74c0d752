"""Threads of Python beside a running generator: nothing may deadlock.

Each case runs in a process of its own with a time limit, so that a hang is a failure.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import mosaicbank

# Seconds. A case takes a few; a deadlock never ends.
LIMIT = 300

BEGIN = """
import sys, threading
import mosaicbank

generator = mosaicbank.Generator.from_pretrained({model!r}, threads=1)
recipe = {{"height": 64, "width": 64, "regions": 1, "steps": 4, "refine": None}}
name = (generator.categories or ["cat"])[0]
running = threading.Event()


def generate(progress=lambda done, steps: running.set()):
    return generator.generate([[name]], recipe, progress=progress)


"""

# While one thread generates, another uses the generator in every way.
READ = """
readers = [
    lambda: generator.categories,
    lambda: generator.device,
    lambda: repr(generator),
    lambda: generator.resolve_recipe(recipe),
    lambda: generator.tokenize("a cat"),
    lambda: generator.scheduler_timesteps(None, 4),
    lambda: generator.encode_prompts(["a cat"]),
]
for read in readers:
    running.clear()
    worker = threading.Thread(target=generate)
    worker.start()
    running.wait()
    read()
    worker.join()
print("done")
"""

# A progress callback uses the generator that calls it.
CALLBACK = """
seen = []


def progress(done, steps):
    seen.append((generator.categories, generator.tokenize("a cat"), generator.resolve_recipe()))


generate(progress)
assert len(seen) >= 4, seen
print("done")
"""

# Two threads generate at once; each gets what it would have got alone.
BOTH = """
alone = generate()[0].image
made = []
workers = [threading.Thread(target=lambda: made.extend(generate())) for _ in range(2)]
[worker.start() for worker in workers]
[worker.join() for worker in workers]
assert [(m.image == alone).all() for m in made] == [True, True]
print("done")
"""


@pytest.mark.parametrize("case", [READ, CALLBACK, BOTH], ids=["read", "callback", "both"])
def test_threads_do_not_deadlock(case: str) -> None:
    model = Path(mosaicbank.__path__[0], "models", "embedded")
    done = subprocess.run(
        [sys.executable, "-c", BEGIN.format(model=str(model)) + case],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0 and done.stdout.strip() == "done", done.stderr
