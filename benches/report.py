"""How long the report of a bank takes to build and to open, and how large it is.

Builds a bank of mosaics with pictures of a photograph's size, runs ``mosaicbank report``, and
opens the page in headless Chromium (where there is one, and selenium): time to the load event, to
the first cards of the gallery, and the frames while it is scrolled from end to end. What is asked
of it: 500 mosaics in 10 s, and 2 s to open.

    python benches/report.py [--mosaics 500] [--size 768 1024]
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "python"))

from bank_helpers import ellipse, picture
from mosaicbank import _core

CATEGORIES = 1203  # as many as LVIS has
BATCH = 25

SCROLL = """
const done = arguments[0];
const frames = [];
let last = performance.now(), still = 0;
const step = (now) => {
  frames.push(now - last);
  last = now;
  const before = window.scrollY;
  window.scrollBy(0, 120);
  still = window.scrollY === before ? still + 1 : 0;
  if (still < 30) requestAnimationFrame(step);
  else done([frames, document.querySelectorAll('#cards .card').length]);
};
requestAnimationFrame(step);
"""


def make_bank(folder: Path, mosaics: int, height: int, width: int) -> None:
    rng = np.random.default_rng(0)
    bands = [{"frequency": "rcf"[i % 3]} for i in range(CATEGORIES)]
    table = [{"id": i + 1, "name": f"thing_{i}", **band} for i, band in enumerate(bands)]
    bank = _core.Bank.create(str(folder), table)
    pictures = [picture(rng, height, width) for _ in range(20)]
    half = width // 2
    for start in range(0, mosaics, BATCH):
        batch = []
        for seed in range(start, min(start + BATCH, mosaics)):
            masks = np.zeros((2, height, width), bool)
            for i in range(2):
                h, w = (int(n) for n in rng.integers(half // 2, half, 2))
                masks[i, :h, i * half : i * half + w] = ellipse(h, w)
            batch.append(
                {
                    "image": pictures[seed % len(pictures)],
                    "masks": masks,
                    "classes": [(2 * seed + i) % CATEGORIES for i in range(2)],
                    "seed": seed,
                    "recipe": "0a" * 32,
                    "weights": "0b" * 32,
                    "model": "bench",
                }
            )
        bank.put_mosaics(batch)


def open_page(page: Path) -> None:
    try:
        from selenium import webdriver
    except ImportError:
        print("not opened: selenium is not installed")
        return
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        print("not opened: there is no Chromium with chromedriver")
        return
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(word)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        browser.set_window_size(1280, 900)
        browser.set_script_timeout(300)
        for name, hash in (("overview", ""), ("gallery", "#/gallery")):
            browser.get("about:blank")
            browser.get(page.as_uri() + hash)
            load, paint = browser.execute_script(
                "const n = performance.getEntriesByType('navigation')[0];"
                "const p = performance.getEntriesByName('first-contentful-paint')[0];"
                "return [n.loadEventEnd, p ? p.startTime : NaN]"
            )
            print(f"open {name}: load event {load:.0f} ms, first paint {paint:.0f} ms")
        start = time.perf_counter()
        while not browser.execute_script(
            "return [...document.querySelectorAll('#cards img')].slice(0, 5)"
            ".some((i) => i.complete && i.naturalWidth > 0)"
        ):
            time.sleep(0.01)
        late = time.perf_counter() - start
        print(f"first cards: {1000 * late:.0f} ms after the load event at most")
        frames, cards = browser.execute_async_script(SCROLL)
        frames = np.sort(np.asarray(frames[1:]))
        print(
            f"scrolled over {cards} cards: {len(frames)} frames, median {np.median(frames):.1f} ms,"
            f" 95 % below {np.quantile(frames, 0.95):.1f} ms, longest {frames[-1]:.0f} ms"
        )
    finally:
        browser.quit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mosaics", type=int, default=500)
    parser.add_argument("--size", type=int, nargs=2, default=(768, 1024), metavar=("H", "W"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bank, page = Path(folder, "bank"), Path(folder, "report.html")
        make_bank(bank, args.mosaics, *args.size)
        code = "import sys; from mosaicbank import _core; sys.exit(_core.main(sys.argv[1:]))"
        words = ["report", "--bank", str(bank), "--out", str(page)]
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code, *words], check=True)
        taken = time.perf_counter() - start
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        height, width = args.size
        print(
            f"build: {taken:.2f} s ({used.ru_utime + used.ru_stime:.2f} s of CPU) for"
            f" {args.mosaics} mosaics of {height} x {width} px; ratio to 10 s per 500:"
            f" {taken * 50 / args.mosaics:.2f}; page {page.stat().st_size / 2**20:.1f} MiB"
        )
        open_page(page)


if __name__ == "__main__":
    main()
