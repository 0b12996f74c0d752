"""The bilateral solver against SciPy's sparse matrices, one run, one thread each.

    OMP_NUM_THREADS=1 python benches/bilateral.py [--repeat 7] [--size 384 512]

Times the solver alone (one target: grid, bistochastization, conjugate gradients) and the whole
refinement (two passes; both sides build the grid once). Prints the median CPU times and
their ratio. The reference is ``tests/python/bilateral_reference.py``; ``solve`` is compared with
both of its methods to find the grid's vertices: hashed rows and NumPy's unique rows.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

# One thread each; read when NumPy is first imported.
for _key in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_key] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "python"))

import numpy as np  # noqa: E402

import bilateral_reference as reference  # noqa: E402
import pictures  # noqa: E402
from mosaicbank import masks  # noqa: E402


def timed(work):
    """Processor time of this thread, s, and the result: other work on the machine is not ours."""
    start = time.thread_time()
    out = work()
    return time.thread_time() - start, out


def guides(height, width):
    yield (
        "synthetic",
        pictures.synthetic(height, width, seed=height),
        pictures.blob(height, width, 1),
    )
    yield "noisy", pictures.synthetic(height, width, 3, noise=25.0), pictures.blob(height, width, 2)
    if not (pictures.SHARED / "data" / "coco100").is_dir():
        print("no real pictures here (MOSAICBANK_SHARED)", file=sys.stderr)
        return
    for i, (rgb, mask) in enumerate(pictures.real(12)):
        if rgb.shape[0] >= height and rgb.shape[1] >= width and mask[:height, :width].any():
            yield f"real {i}", np.ascontiguousarray(rgb[:height, :width]), mask[:height, :width]


def compare(name, rgb, mask, repeat):
    """Prints both jobs for one guide; gives their ratios."""
    target = 255.0 * mask.astype(np.float32)
    trust = np.full(mask.shape, 0.999)

    def solved(hashed):
        return reference.solve(reference.Grid(rgb, hashed=hashed), target, trust)

    def ours():
        return masks.bilateral_solve(rgb, target)

    jobs = {
        "hashed": (lambda: solved(True), ours),
        "unique": (lambda: solved(False), ours),
        "refine": (lambda: reference.refine(mask, rgb), lambda: masks.refine_mask(mask, rgb)),
    }
    ratios = {}
    for what, (theirs, own) in jobs.items():
        slow, fast = [], []
        own()
        # In turns, so that whatever else the machine does meets both.
        for _ in range(repeat):
            t, expected = timed(theirs)
            slow.append(t)
            t, found = timed(own)
            fast.append(t)
        a, b = 1e3 * statistics.median(slow), 1e3 * statistics.median(fast)
        ratios[what] = a / b
        if what != "refine":
            vertices, difference = found.vertices, np.abs(found.map - expected).max()
        else:
            vertices, difference = "", np.count_nonzero(found != expected)
        print(f"{name:12} {vertices:>8} {what:>8} {a:9.1f} {b:8.2f} {a / b:6.1f} {difference:9.2g}")
    return ratios


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--size", type=int, nargs=2, default=(384, 512), metavar=("H", "W"))
    options = parser.parse_args()
    print(
        f"{'guide':12} {'vertices':>8} {'what':>8} {'SciPy ms':>9} {'ours ms':>8} {'ratio':>6} "
        f"{'max diff':>9}"
    )
    found = [compare(*guide, options.repeat) for guide in guides(*options.size)]
    for what in ("hashed", "unique", "refine"):
        r = [ratios[what] for ratios in found]
        print(f"{what}: {min(r):.1f} to {max(r):.1f}, median {statistics.median(r):.1f} times")


if __name__ == "__main__":
    main()
