"""`mosaicbank report`: its figures, and the page in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import commands
from bank_helpers import ellipse, instance, picture
from mosaicbank import _core

EVIL = "</script><img src=x onerror='window.evil=1'>"
CATEGORIES = [
    {"id": 1, "name": "cup", "frequency": "f"},
    {"id": 2, "name": "cupboard", "frequency": "c"},
    {"id": 3, "name": EVIL, "frequency": "r"},
    {"id": 4, "name": "teapot", "frequency": "r"},
    {"id": 7, "name": "never seen", "frequency": "r"},
]
MOSAICS = 130
# A phone held upright, and a small laptop.
WINDOWS = [(390, 844), (1280, 900)]


def run(*arguments: Any) -> subprocess.CompletedProcess[str]:
    code = "import sys; from mosaicbank import _core; sys.exit(_core.main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def ok(*arguments: Any) -> str:
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def two_regions(rng: np.random.Generator, left: int, right: int, seed: int) -> dict[str, Any]:
    """A mosaic whose right region was rejected for every third seed."""
    height, width = 60, 100
    masks = np.zeros((2, height, width), bool)
    for i in range(2):
        masks[i, 5:55, 50 * i + 5 : 50 * i + 45] = ellipse(50, 40)
        masks[i, 25:35, 50 * i + 20 : 50 * i + 30] = False
    kept = 1 if seed % 3 == 0 else 2
    reason = f"width of {seed % 7} px is below 20 px" if seed % 2 else "the mask is empty"
    regions = [
        {
            "box": [50 * i, 0, 50 * i + 50, 60],
            "prompt": f"a photo of a single {CATEGORIES[c]['name']}",
            "category": c,
            "verdict": "kept" if i < kept else reason,
        }
        for i, c in enumerate((left, right))
    ]
    return {
        "image": picture(rng, height, width),
        "masks": masks[:kept],
        "classes": [left, right][:kept],
        "scores": [0.5, 0.75][:kept],
        "regions": regions,
        "region_of": list(range(kept)),
        "seed": seed,
        "recipe": "0a" * 32,
        "weights": "0b" * 32,
        "model": "test",
    }


def heartbeat(folder: Path) -> None:
    """What an engine that ran for ten minutes left behind."""
    start = time.time() - 3600
    history = [[start + 60 * i, 4 * i, 6 * i, 8 * i, 2 * i] for i in range(10)]
    beat = {
        "format": 1,
        "id": "elsewhere-1-a",
        "command": "engine",
        "pid": 1,
        "host": "elsewhere.invalid",
        "state": "stopped",
        "started": start,
        "time": start + 600,
        "model": EVIL,
        "device": "cpu float32",
        "mosaics": 40,
        "instances": 60,
        "regions": 80,
        "rejected": 20,
        "mosaics_per_second": 0.0666,
        "instances_per_second": 0.1,
        "target": 40,
        "history": history,
    }
    (folder / "engine-elsewhere-1-a.json").write_text(json.dumps(beat))


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "my <b>bank"
    rng = np.random.default_rng(0)
    made = _core.Bank.create(str(folder), CATEGORIES)
    made.put_mosaics([two_regions(rng, i % 4, (i + 1) % 4, i) for i in range(MOSAICS)])
    made.put_instances([instance(rng, 0) for _ in range(3)])
    for i in range(20):
        _core.draw_mosaic(made, i % 5, i)
        made.draw_instance(i)
    heartbeat(folder)
    return folder


@pytest.fixture(scope="module")
def page(bank: Path) -> Path:
    out = bank.parent / "report.html"
    said = ok("report", "--bank", bank, "--out", out)
    assert f"{MOSAICS} of {MOSAICS} mosaics" in said
    return out


def data_of(page: Path) -> dict[str, Any]:
    text = page.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found is not None
    return json.loads(found.group(1))


def test_the_figures_are_those_of_stats(bank, page):
    figures = data_of(page)["figures"]
    assert figures == json.loads(ok("stats", bank, "--json", "--all", "--scan"))
    # Without the scan, and without idle categories: less, but nothing else.
    plain = json.loads(ok("stats", bank, "--json"))
    assert len(plain["categories"]) == len(CATEGORIES)
    for key, value in plain.items():
        if key != "categories":
            assert figures[key] == value, key
    for mine, theirs in zip(figures["categories"], plain["categories"]):
        assert {key: mine[key] for key in theirs} == theirs
    # And they are right.
    opened = _core.Bank.open(str(bank))
    mosaics = [opened.mosaic(id) for id in opened.mosaic_ids()]
    rejected = [r for m in mosaics for r in m.regions if r["verdict"] != "kept"]
    contents = figures["contents"]
    assert contents["regions"] == 2 * MOSAICS and contents["rejected"] == len(rejected)
    assert {r["reason"]: r["regions"] for r in contents["reasons"]} == {
        "the mask is empty": sum("empty" in r["verdict"] for r in rejected),
        "width below the bound": sum("width" in r["verdict"] for r in rejected),
    }
    uses = dict(contents["mosaics_by_uses"])
    assert sum(uses.values()) == MOSAICS and sum(n * k for n, k in uses.items()) == 16
    assert sum(n * k for n, k in contents["instances_by_uses"]) == 20
    assert figures["target"] == 40 and len(figures["engines"][0]["history"]) == 11
    teapot = figures["categories"][3]
    assert teapot["regions"] == sum(r["category"] == 3 for m in mosaics for r in m.regions)
    assert teapot["mosaics"] == len(opened.mosaic_ids("teapot"))


def test_a_page_can_be_small_and_says_so(bank, tmp_path):
    out = tmp_path / "small.html"
    options = ["--max-mosaics", 8, "--max-instances", 4, "--pixels", 48]
    ok("report", "--bank", bank, "--out", out, *options)
    data = data_of(out)
    assert len(data["mosaics"]) == 8 and len(data["instances"]) == 4
    assert {o["category"] for m in data["mosaics"] for o in m["objects"]} == {0, 1, 2, 3}
    assert data["figures"]["mosaics"] == MOSAICS
    assert f"8 of {MOSAICS} mosaics" in out.read_text(encoding="utf-8")
    assert run("report", "--bank", bank, "--out", out, "--pixels", 4).returncode == 1
    missing = run("report", "--bank", tmp_path / "none", "--out", out)
    assert missing.returncode == 1 and "not found" in missing.stderr


# --- in a browser --------------------------------------------------------------------------------


def chromium(width: int, height: int, scheme: str) -> Any:
    """A headless Chromium; the test is skipped where there is none."""
    from selenium import webdriver

    names = ("chromium", "chromium-browser", "google-chrome")
    binary = next(filter(None, map(shutil.which, names)), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no Chromium with chromedriver here (Debian: chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # Named, so that selenium never looks for one in the network.
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    return browser


class Page:
    """The report in a browser, by what a reader would look for."""

    def __init__(self, browser: Any, path: Path):
        self.browser = browser
        self.url = path.as_uri()
        self.js = browser.execute_script
        browser.get(self.url)

    def go(self, hash: str) -> None:
        self.js("location.hash = arguments[0]", hash)
        self.wait("return document.querySelector('main > section:not([hidden])') !== null")

    def wait(self, script: str, *arguments: Any) -> Any:
        end = time.monotonic() + 120
        while True:
            found = self.js(script, *arguments)
            if found or time.monotonic() > end:
                assert found, script
                return found
            time.sleep(0.02)

    def one(self, selector: str) -> Any:
        return self.browser.find_element("css selector", selector)

    def text(self, selector: str) -> str:
        return self.js("return document.querySelector(arguments[0]).textContent", selector)

    def view(self) -> str:
        return self.js("return document.querySelector('main > section:not([hidden])').id")

    def visible(self, selector: str) -> int:
        script = (
            "return [...document.querySelectorAll(arguments[0])]"
            ".filter((e) => e.checkVisibility()).length"
        )
        return self.js(script, selector)

    def count(self) -> int:
        return int(self.text("#gallery .count").split()[0].replace(",", ""))

    def choose(self, form: str, name: str, value: str) -> None:
        script = (
            "const field = document.querySelector(arguments[0]).elements[arguments[1]];"
            "field.value = arguments[2]; field.dispatchEvent(new Event('input', {bubbles: true}))"
        )
        self.js(script, form, name, value)

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.browser.get_log("browser")]


@pytest.fixture(scope="module")
def wide(page: Path) -> Iterator[Page]:
    browser = chromium(*WINDOWS[1], "light")
    yield Page(browser, page)
    browser.quit()


@pytest.fixture(autouse=True)
def no_errors(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "wide" in request.fixturenames:
        assert request.getfixturevalue("wide").errors() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("window", WINDOWS, ids=["phone", "laptop"])
def test_every_view_fits_the_window_and_raises_nothing(page, window, scheme):
    browser = chromium(*window, scheme)
    try:
        report = Page(browser, page)
        mosaic = data_of(page)["mosaics"][0]["id"]
        hashes = ["#/", "#/gallery", "#/categories", "#/category/2", f"#/mosaic/{mosaic}"]
        for hash in hashes:
            report.go(hash)
            width = report.js("return document.documentElement.scrollWidth")
            assert width <= window[0], f"{hash}: {width} px wide"
            assert report.text("main > section:not([hidden]) h1").strip()
            assert len(browser.get_screenshot_as_png()) > 5000
        dark = report.js("return getComputedStyle(document.body).backgroundColor")
        assert sum(map(int, re.findall(r"\d+", dark)[:3])) < 120 or scheme == "light"
        assert report.js("return window.evil") is None
        assert report.js("return document.querySelectorAll('img[src=x]').length") == 0
        # Nothing was asked of anybody.
        asked = report.js("return performance.getEntriesByType('resource').map((e) => e.name)")
        assert [name for name in asked if not name.startswith("data:")] == []
        assert report.errors() == []
    finally:
        browser.quit()


def test_the_figures_on_the_page(wide, page):
    figures = data_of(page)["figures"]
    wide.go("#/")
    for key in ("mosaics", "instances", "added", "removed"):
        assert wide.text(f"[data-figure={key}]") == f"{figures[key]:,}"
    assert EVIL in wide.text("#overview table:last-of-type") + wide.text("#overview")
    wide.go("#/categories")
    script = (
        "return [...document.querySelectorAll('#category-table tbody tr')].map((row) =>"
        " [row.querySelector('th').textContent, Object.fromEntries("
        "  [...row.querySelectorAll('[data-figure]')]"
        "   .map((c) => [c.dataset.figure, c.textContent]))])"
    )
    rows = dict(wide.js(script))
    assert len(rows) == len(CATEGORIES)
    for category in figures["categories"]:
        shown = rows[category["name"]]
        assert len(shown) == 12
        for key, text in shown.items():
            assert float(text.replace(",", "")) == pytest.approx(category[key], abs=0.005), key
    # Sorted by a click on a head, the largest first.
    wide.one("th[data-key=regions] button").click()
    assert wide.one("th[data-key=regions]").get_attribute("aria-sort") == "descending"
    cells = wide.js(
        "return [...document.querySelectorAll('td[data-figure=regions]')]"
        ".map((c) => +c.textContent)"
    )
    assert cells == sorted(cells, reverse=True)
    wide.choose("#categories form", "show", "none")
    assert wide.text("#categories .count") == "1 of 5 categories"


def test_filters(wide, page):
    mosaics = data_of(page)["mosaics"]
    reasons = [[r["reason"] for r in m["regions"] if r["reason"]] for m in mosaics]
    wide.go("#/gallery")
    form = "#gallery form"
    of = [{o["category"] for o in [*m["objects"], *m["regions"]]} for m in mosaics]
    cases = [
        ("category", "teapot", sum(3 in c for c in of)),
        # A whole name is that category, a part of one all that have it.
        ("category", "cup", sum(0 in c for c in of)),
        ("category", "cupb", sum(1 in c for c in of)),
        ("category", "cu", sum(bool({0, 1} & c) for c in of)),
        ("category", EVIL, sum(2 in c for c in of)),
        ("band", "f", sum(0 in c for c in of)),
        ("reason", "*", sum(map(bool, reasons))),
        ("reason", "-", sum(not r for r in reasons)),
        ("reason", "width below the bound", sum("width below the bound" in r for r in reasons)),
        ("used", "no", sum(m["uses"] == 0 for m in mosaics)),
        ("used", "yes", sum(m["uses"] > 0 for m in mosaics)),
        ("regions", "2", MOSAICS),
        ("category", "nothing of this name", 0),
    ]
    for name, value, expected in cases:
        wide.choose(form, name, value)
        wide.wait("return location.hash.includes('?')")
        assert wide.count() == expected, (name, value)
        assert wide.js("return document.querySelectorAll('#cards .card').length") == min(
            expected, 60
        )
        wide.choose(form, name, "")
        wide.wait("return location.hash === '#/gallery'")
    # Two at once, from a link.
    wide.go("#/gallery?category=cup&used=yes")
    both = sum(0 in c and m["uses"] > 0 for c, m in zip(of, mosaics))
    assert 0 < both < MOSAICS and wide.count() == both
    wide.one("#gallery button[type=reset]").click()
    wide.wait("return location.hash === '#/gallery'")
    assert wide.count() == MOSAICS
    assert wide.one("#gallery .count").get_attribute("aria-live") == "polite"


def test_toggles(wide):
    wide.go("#/gallery")
    for what, mark in (("masks", ".mask"), ("boxes", ".box"), ("regions", ".region")):
        button = wide.one(f"#gallery button[data-shows={what}]")
        on = button.get_attribute("aria-pressed") == "true"
        assert on == (what != "regions")
        for _ in range(2):
            assert (wide.visible(f"#cards .card:first-child {mark}") > 0) == on
            button.click()
            on = not on
            assert button.get_attribute("aria-pressed") == str(on).lower()
    # The outline has the hole, and the picture and its marks have the same place.
    path = wide.js("return document.querySelector('#cards .mask').getAttribute('d')")
    assert path.count("M") == 2
    same = (
        "const [a, b] = ['img', 'svg'].map((s) =>"
        " document.querySelector('#cards .picture ' + s).getBoundingClientRect());"
        "return Math.abs(a.width - b.width) + Math.abs(a.height - b.height)"
    )
    assert wide.js(same) < 1


def test_cards_come_as_they_are_needed(wide):
    wide.go("#/gallery")
    cards = "return document.querySelectorAll('#cards .card').length"
    for _ in range(50):
        wide.js("window.scrollTo(0, document.documentElement.scrollHeight)")
        time.sleep(0.02)
    wide.wait(f"{cards} === {MOSAICS}")
    decoded = (
        "return [...document.querySelectorAll('#cards img')].slice(-5)"
        ".every((i) => i.naturalWidth > 0)"
    )
    wide.wait(decoded)


def test_with_the_keyboard_alone(wide):
    from selenium.webdriver.common.keys import Keys

    wide.browser.get("about:blank")
    wide.browser.get(wide.url + "#/gallery?category=teapot")
    wide.one("body").send_keys(Keys.TAB)
    focused = "return document.activeElement.textContent.trim()"
    assert wide.js(focused) == "Skip to the content"
    seen = []
    for _ in range(30):
        wide.browser.switch_to.active_element.send_keys(Keys.TAB)
        seen.append(wide.js("return document.activeElement.closest('.card') ? 'card' : 'other'"))
        if seen[-1] == "card":
            break
    assert seen[-1] == "card"
    outline = wide.js("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"
    wide.browser.switch_to.active_element.send_keys(Keys.ENTER)
    wide.wait("return location.hash.startsWith('#/mosaic/')")
    wide.wait("return document.activeElement.tagName === 'H1'")
    assert wide.js("return document.title").startswith("Mosaic of")
    wide.browser.back()
    wide.wait("return location.hash === '#/gallery?category=teapot'")
    wide.wait("return !document.querySelector('#gallery').hidden")
    assert 0 < wide.count() < MOSAICS
    # Every control has a name.
    nameless = (
        "return [...document.querySelectorAll('a, button, input, select')].filter((e) =>"
        " !(e.textContent.trim() || e.getAttribute('aria-label') || e.labels?.length))"
        ".map((e) => e.outerHTML)"
    )
    assert wide.js(nameless) == []


def test_one_mosaic(wide, page, bank):
    data = data_of(page)
    mosaic = next(m for m in data["mosaics"] if any(r["reason"] for r in m["regions"]))
    wide.go(f"#/mosaic/{mosaic['id']}")
    assert wide.view() == "mosaic"
    shown = wide.text("#mosaic")
    assert mosaic["regions"][0]["prompt"] in shown and mosaic["id"] in shown
    assert f"Rejected: {mosaic['regions'][1]['verdict']}" in shown
    # This one was put there by hand: nobody can make it again.
    assert "does not say how to make it again" in shown
    assert wide.js("return document.querySelectorAll('#mosaic .trace').length") == 2
    # Its category's view leads back to it.
    category = mosaic["objects"][0]["category"]
    wide.go(f"#/category/{category}")
    assert wide.text("#category h1") == CATEGORIES[category]["name"]
    links = wide.js(
        "return [...document.querySelectorAll('#category a')].map((a) => a.getAttribute('href'))"
    )
    assert f"#/mosaic/{mosaic['id']}" in links
    wide.go("#/mosaic/none")
    assert wide.view() == "overview"


def test_the_trace_of_a_generated_mosaic(tmp_path):
    folder = tmp_path / "bank"
    table = tmp_path / "categories.json"
    table.write_text(json.dumps([{"id": 1, "name": "banana", "frequency": "r"}]))
    recipe = {
        "height": 64,
        "width": 64,
        "steps": 2,
        "checks": {"size": {"components": "each", "min_area": 0.001, "max_area": 1.0}},
    }
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    words = ["--bank", folder, "--annotations", table, "--recipe", tmp_path / "recipe.json"]
    commands.ok("prewarm", *words, "--categories", "all", "--per-category", "2", "--threads", "1")
    out = tmp_path / "report.html"
    ok("report", "--bank", folder, "--out", out)
    data = data_of(out)
    # The engine told how it went, and the records how each region did.
    assert data["figures"]["engines"][0]["history"]
    opened = _core.Bank.open(str(folder))
    assert len(data["mosaics"]) == len(opened.mosaic_ids()) >= 2
    mosaic = data["mosaics"][0]
    trace = mosaic["regions"][0]["trace"]
    assert 0 < trace["threshold"] < 1 and trace["above"].startswith("M")
    browser = chromium(*WINDOWS[1], "light")
    try:
        report = Page(browser, out)
        report.go(f"#/mosaic/{mosaic['id']}")
        titles = report.js(
            "return [...document.querySelector('.trace').querySelectorAll('.title')]"
            ".map((t) => t.textContent)"
        )
        assert titles == ["Region and prompt", "Attention and threshold", "Refined mask", "Verdict"]
        assert report.text(".trace mark") == "banana"
        assert f"the threshold of {trace['threshold']:.2f}" in report.one(
            ".heat[role=img]"
        ).get_attribute("aria-label")
        # The canvas is painted: dark where there is no attention, light where there is most.
        spread = report.js(
            "const c = document.querySelector('.heat canvas');"
            "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
            "const g = d.filter((_, i) => i % 4 === 1); return Math.max(...g) - Math.min(...g)"
        )
        assert spread > 50
        command = report.text("#mosaic pre")
        assert command == f"mosaicbank reproduce --bank {folder} --id {mosaic['id']}"
        assert report.errors() == []
    finally:
        browser.quit()
