"""Opening and reading a bank, one run.

    python benches/bank.py [--records 1000000] [--reads 2000] [--bank DIR]

Random reads: instances of 256 x 256 are drawn, checked and decoded. Opening: a bank of many small
records, in fresh processes: time from ``open`` to the first draw, and private memory after 200
draws. Making that bank takes minutes; ``--bank`` keeps it for another run.
"""

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "python"))

from bank_helpers import ellipse, picture
from mosaicbank import _core


def private():
    """Private memory of this process in MB, without the pages of mapped files."""
    with open("/proc/self/smaps_rollup") as file:
        lines = [line.split() for line in file if line.startswith("Private_Dirty")]
    return sum(int(words[1]) for words in lines) / 1024


def worker(path, pipe):
    before = private()
    start = time.perf_counter()
    bank = _core.Bank.open(path)
    opened = time.perf_counter() - start
    bank.draw_instance(0)
    first = time.perf_counter() - start
    for i in range(200):
        bank.draw_instance(i)
    pipe.send((opened * 1e3, first * 1e3, private() - before))


def fill(path, records):
    bank = _core.Bank.create(path, [f"c{i}" for i in range(1203)], max_bytes=0, max_per_category=0)
    rng = np.random.default_rng(0)
    alpha = ellipse(8, 8)
    batch = 20_000
    for start in range(0, records, batch):
        n = min(batch, records - start)
        pixels = rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
        bank.put_instances(
            [{"image": pixels[i], "alpha": alpha, "category": (start + i) % 1203} for i in range(n)]
        )
        print(f"\r{start + n} records", end="", file=sys.stderr)
    print(file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--reads", type=int, default=2000)
    parser.add_argument("--bank", help="directory of the large bank, kept")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        bank = _core.Bank.create(f"{tmp}/256", [f"c{i}" for i in range(10)])
        rng = np.random.default_rng(0)
        alpha = ellipse(256, 256, 1)
        bank.put_instances(
            [
                {"image": picture(rng, 256, 256), "alpha": alpha, "category": i % 10}
                for i in range(200)
            ]
        )
        times = []
        for i in range(args.reads):
            start = time.perf_counter()
            bank.draw_instance(i)
            times.append((time.perf_counter() - start) * 1e3)
        times.sort()
        print(
            f"read and decode 256 x 256: median {statistics.median(times):.3f} ms, "
            f"90 % {times[int(len(times) * 0.9)]:.3f} ms"
        )
        path = args.bank or f"{tmp}/large"
        if not os.path.exists(path):
            start = time.perf_counter()
            fill(path, args.records)
            print(f"writing {args.records} small records: {time.perf_counter() - start:.0f} s")
        rows = []
        context = multiprocessing.get_context("spawn")
        for _ in range(7):
            receive, send = context.Pipe(False)
            process = context.Process(target=worker, args=(path, send))
            process.start()
            rows.append(receive.recv())
            process.join()
        opened, first, memory = (statistics.median(column) for column in zip(*rows))
        size = os.path.getsize(f"{path}/data.mdb") / 2**20
        count = _core.Bank.open(path).stats()["instances"]
        print(
            f"open a bank of {count} records ({size:.0f} MiB): "
            f"{opened:.1f} ms, with the first draw {first:.1f} ms, private memory {memory:.1f} MB"
        )


if __name__ == "__main__":
    main()
