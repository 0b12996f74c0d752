"""The sampler next to Detectron2's RepeatFactorTrainingSampler, on LVIS-sized annotations, one run.

    python benches/sampler.py [--categories lvis_v1_train_cat_info.json]

100,170 images, 1,203 categories, about 1.27 million annotations with LVIS' long tail (from the
instance counts of the category file if it is given). Each side is built and run in its own process,
so that memory can be compared. Without Detectron2 its side is skipped, with a message.
"""

import argparse
import itertools
import json
import multiprocessing
import resource
import time
from collections import deque

import numpy as np

IMAGES, CATEGORIES, ANNOTATIONS = 100_170, 1_203, 1_270_141


def annotations(path):
    """``(offsets, classes)``, int64, of a long-tailed dataset."""
    rng = np.random.default_rng(0)
    if path:
        with open(path) as file:
            counts = np.array([c["instance_count"] for c in json.load(file)], float)
    else:
        counts = 1.0 / np.arange(1, CATEGORIES + 1) ** 1.5
    classes = rng.choice(len(counts), ANNOTATIONS, p=counts / counts.sum())
    image = np.sort(rng.integers(0, IMAGES, ANNOTATIONS))
    offsets = np.searchsorted(image, np.arange(IMAGES + 1))
    return offsets.astype(np.int64), classes.astype(np.int64)


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def private():
    """Private memory of this process in MB, without the pages of mapped files."""
    with open("/proc/self/smaps_rollup") as file:
        lines = [line.split() for line in file if line.startswith("Private_Dirty")]
    return sum(int(words[1]) for words in lines) / 1024


def build_ours(args, pipe):
    from mosaicbank import _core

    offsets, classes = annotations(args.categories)
    for mix in (0.0, 0.2):
        before, start = private(), time.perf_counter()
        factors, counts = _core.repeat_factors(offsets, classes, CATEGORIES)
        sampler = _core.MosaicSampler(factors, image_counts=counts, mix_ratio=mix, seed=1)
        it = iter(sampler)
        next(it)
        built, memory = time.perf_counter() - start, private() - before
        rates = []
        for _ in range(5):
            start = time.perf_counter()
            deque(itertools.islice(it, 1_000_000), maxlen=0)
            rates.append(1.0 / (time.perf_counter() - start))
        memory = max(memory, private() - before)
        pipe.send((f"mosaicbank, mix {mix}", built, memory, sorted(rates)[2]))


def build_detectron2(args, pipe):
    import torch
    from detectron2.data.samplers import RepeatFactorTrainingSampler

    torch.set_num_threads(1)
    offsets, classes = annotations(args.categories)
    before = private()
    dicts = [
        {"annotations": [{"category_id": int(c)} for c in classes[a:b]]}
        for a, b in zip(offsets, offsets[1:])
    ]
    listed = private() - before
    before, start = private(), time.perf_counter()
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(dicts, 0.001)
    it = iter(RepeatFactorTrainingSampler(factors, seed=1))
    next(it)
    built = time.perf_counter() - start
    start = time.perf_counter()
    deque(itertools.islice(it, 1_000_000), maxlen=0)
    rate = 1.0 / (time.perf_counter() - start)
    pipe.send((f"Detectron2 (and {listed:.0f} MB of lists)", built, private() - before, rate))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--categories", help="LVIS category file")
    args = parser.parse_args()
    print(f"{'':36} {'built':>9} {'memory':>10} {'rate':>14}")
    results = []
    for work in (build_ours, build_detectron2):
        if work is build_detectron2:
            try:
                import detectron2.data.samplers  # noqa: F401
            except ImportError:
                print("Detectron2 is not installed: left out")
                break
        receive, send = multiprocessing.get_context("spawn").Pipe(False)
        process = multiprocessing.get_context("spawn").Process(target=work, args=(args, send))
        process.start()
        send.close()
        while True:
            try:
                name, built, memory, rate = receive.recv()
            except EOFError:
                break
            results.append((built, rate))
            print(f"{name:36} {built * 1e3:6.1f} ms {memory:7.1f} MB {rate:9.2f} M/s")
        process.join()
    if len(results) == 3:
        (a, ra), _, (b, rb) = results
        print(f"{'ratio':36} {b / a:6.1f}    {'':10} {ra / rb:9.2f}")


if __name__ == "__main__":
    main()
