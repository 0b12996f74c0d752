"""Judge the embedded model: are the pictures right, are the masks right, do they vary?

    python judge.py --art build/art/art.zip --model ../mosaicbank/models/embedded \\
        --work build/judge --samples 4 --json build/judge/report.json

(a) *Pictures*: a small classifier names the generated objects.  It is trained on composed
    source pictures of all five drawing styles (also the one that the generator never saw),
    never on generated ones.
(b) *Masks*: IoU of the pipeline's masks with the object that ``judge_network.py``'s segmenter
    finds in the same generated regions, and a contact sheet of the worst (``worst.png``: look at
    it before you believe a figure); and with the known alpha of composed pictures that were
    noised partway and denoised again (image-to-image regions), for several strengths: from the
    strongest noise the model draws another outline than the one that it is compared with.
(c) *Diversity*: mean pairwise distance within a category in the classifier's features,
    generated next to composed source pictures.
(d) *Rejects*: share of regions that the filter rejects.

The masks come from ``mosaicbank.Generator``.  ``--pipeline reference`` uses diffusers and a
plain Otsu threshold without the bilateral refinement; it serves development.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from compose import TRAIN_STYLES, Art, compose, prompt, subject
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    UNet2DConditionModel,
)
from judge_network import WEIGHTS, Judge
from model import Captions, SubjectAttention
from PIL import Image, ImageDraw
from torch import nn
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

ALPHA = "mask_iou_known_alpha"
"""Figures with this beginning are IoUs with known masks; the noise strength follows."""
ALL_STYLES = (*TRAIN_STYLES, "openmoji")
SIDE = 64
"""Side in px at which the classifier looks at a region."""
AREA_RANGE = (0.05, 0.95)
"""Accepted mask area as a share of the region (MosaicFusion's filter)."""
GOALS = {"top1": 0.70, "mask_iou_judge": 0.85, "mask_iou_known_alpha": 0.85, "rejected": 0.25}
WORST = 24
"""Regions on the contact sheet of the worst masks."""


# -------------------------------------------------------------------------- classifier


class Classifier(nn.Module):
    """A small residual network: ``float32 [B, 3, 64, 64]`` in -1..1 -> logits, features."""

    def __init__(self, classes: int, widths: tuple[int, ...] = (32, 64, 128, 192)) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, 2, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        self.blocks = nn.ModuleList()
        self.skips = nn.ModuleList()
        for i, width in enumerate(widths):
            before, stride = widths[max(0, i - 1)], 1 if i == 0 else 2
            self.blocks.append(
                nn.Sequential(
                    nn.Conv2d(before, width, 3, stride, 1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                    nn.Conv2d(width, width, 3, 1, 1, bias=False),
                    nn.BatchNorm2d(width),
                )
            )
            self.skips.append(nn.Conv2d(before, width, 1, stride))
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.stem(images)
        for block, skip in zip(self.blocks, self.skips, strict=True):
            x = F.relu(block(x) + skip(x))
        features = x.mean((2, 3))
        return self.head(features), features


def to_input(images: list[np.ndarray]) -> torch.Tensor:
    """``uint8 [H, W, 3]`` pictures of any size -> the classifier's input."""
    sized = [cv2.resize(i, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for i in images]
    return torch.from_numpy(np.stack(sized)).permute(0, 3, 1, 2).float() / 127.5 - 1


def augmented(rng: np.random.Generator, art: Art, count: int) -> tuple[list[np.ndarray], list[int]]:
    """Composed pictures, sometimes mirrored, blurred or noisy, and their category numbers."""
    images, labels = [], []
    for _ in range(count):
        name = art.names[rng.integers(len(art.names))]
        options = art.pictures[name]
        picture = options[rng.integers(len(options))]
        image, _, _ = compose(rng, picture, SIDE, SIDE, (0.5, 1.05), strength=1.5)
        if rng.random() < 0.3:
            image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.4))
        if rng.random() < 0.3:
            noise = rng.normal(0, rng.uniform(2, 14), image.shape)
            image = np.clip(image + noise, 0, 255).astype(np.uint8)
        if rng.random() < 0.3:
            image = np.ascontiguousarray(image[:, ::-1])
        images.append(image)
        labels.append(art.names.index(name))
    return images, labels


def train_classifier(art: Art, path: Path, samples: int, seed: int) -> tuple[Classifier, dict]:
    """Train (or load) the classifier; returns it with its accuracy on fresh pictures."""
    model = Classifier(len(art.names))
    if path.exists():
        state = torch.load(path, weights_only=True)
        if state["names"] == art.names and state["samples"] >= samples:
            model.load_state_dict(state["model"])
            return model.eval(), state["report"]
    rng = np.random.default_rng(seed)
    batch, total = 64, max(1, samples // 64)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total)
    for _ in tqdm(range(total), desc="classifier", mininterval=5):
        images, labels = augmented(rng, art, batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits, _ = model(to_input(images))
        loss = F.cross_entropy(logits.float(), torch.tensor(labels), label_smoothing=0.05)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    model.eval()
    images, labels = augmented(np.random.default_rng(seed + 1), art, 1024)
    with torch.no_grad():
        logits = model(to_input(images))[0]
    hit = logits.argsort(1, descending=True)[:, :5] == torch.tensor(labels)[:, None]
    report = {
        "samples": total * batch,
        "top1_on_source": hit[:, 0].float().mean().item(),
        "top5_on_source": hit.any(1).float().mean().item(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(
        {"model": model.state_dict(), "names": art.names, "samples": samples, "report": report},
        path,
    )
    return model, report


# --------------------------------------------------------------------------- pipelines


@dataclass
class Region:
    """One judged region: ``image`` uint8 [H, W, 3], ``mask`` bool [H, W]."""

    image: np.ndarray
    mask: np.ndarray
    accepted: bool


def otsu(attention: np.ndarray) -> np.ndarray:
    """Otsu threshold of a map in 0..1, on its 8-bit version: bool, same shape."""
    level = np.clip(np.round(attention * 255), 0, 255).astype(np.uint8)
    _, mask = cv2.threshold(level, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    return mask.astype(bool)


def accepted(mask: np.ndarray) -> bool:
    """The filter's rule: exactly one 4-connected component with 5..95 % of the area."""
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    shares = [(labels == i).mean() for i in range(1, count)]
    return sum(AREA_RANGE[0] <= s <= AREA_RANGE[1] for s in shares) == 1


class Reference:
    """diffusers + numpy: one region at a time, masks by Otsu alone."""

    name = "reference (diffusers, Otsu)"

    def __init__(self, folder: Path) -> None:
        self.tokens = Captions(CLIPTokenizer.from_pretrained(folder / "tokenizer"))
        self.text = CLIPTextModel.from_pretrained(
            folder / "text_encoder", dtype=torch.float32
        ).eval()
        self.unet = UNet2DConditionModel.from_pretrained(folder / "unet").eval()
        self.vae = AutoencoderKL.from_pretrained(folder / "vae").eval()
        self.scheduler = DPMSolverMultistepScheduler.from_pretrained(folder / "scheduler")
        self.probe = SubjectAttention()
        for name, module in self.unet.named_modules():
            if name.endswith("attn2") and not name.startswith("mid_block"):
                module.set_processor(self.probe)

    @torch.no_grad()
    def denoise(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        text: str,
        subject: str,
        guidance: float,
    ) -> tuple[np.ndarray, np.ndarray]:
        """From noisy ``latents [1, 4, h, w]``: image uint8 [H, W, 3] and attention [H, W]."""
        ids, position = self.tokens(text, subject)
        free, _ = self.tokens("", "")
        states = self.text(torch.tensor([free, ids]))[0]
        size = latents.shape[2:]
        sums: dict[int, torch.Tensor] = {}
        self.probe.subject = torch.tensor([0, position])
        for step in timesteps:
            noise = self.unet(torch.cat([latents] * 2), step, states).sample
            for found in self.probe.maps:
                count = found.shape[1]
                sums[count] = sums.get(count, 0) + found[1]
            self.probe.maps.clear()
            noise = noise[:1] + guidance * (noise[1:] - noise[:1])
            latents = self.scheduler.step(noise, step, latents).prev_sample
        image = self.vae.decode(latents / self.vae.config.scaling_factor).sample[0]
        image = ((image + 1) * 127.5).round().clamp(0, 255).permute(1, 2, 0).byte().numpy()
        levels, (h, w) = [], size
        for count in sorted(sums, reverse=True):
            level = (sums[count] / sums[count].max()).view(h, w).numpy()
            levels.append(cv2.resize(level, image.shape[1::-1], interpolation=cv2.INTER_CUBIC))
            h, w = -(-h // 2), -(-w // 2)
        attention = np.mean(levels, axis=0)
        return image, np.clip(attention / attention.max(), 0, 1)

    def generate(
        self, text: str, subject: str, side: int, steps: int, guidance: float, seed: int
    ) -> Region:
        self.scheduler.set_timesteps(steps)
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        noise = torch.randn(
            (1, 4, side // factor, side // factor), generator=torch.Generator().manual_seed(seed)
        )
        image, attention = self.denoise(noise, self.scheduler.timesteps, text, subject, guidance)
        mask = otsu(attention)
        return Region(image, mask, accepted(mask))

    @torch.no_grad()
    def renoise(
        self,
        image: np.ndarray,
        text: str,
        subject: str,
        steps: int,
        guidance: float,
        strength: float,
        seed: int,
    ) -> np.ndarray:
        """Noise ``image`` to ``strength`` (0..1 of the schedule), denoise: mask bool [H, W]."""
        self.scheduler.set_timesteps(steps)
        timesteps = self.scheduler.timesteps
        start = int(torch.argmin((timesteps - 1000 * strength).abs()))
        pixels = torch.from_numpy(image)[None].permute(0, 3, 1, 2).float() / 127.5 - 1
        latents = self.vae.encode(pixels).latent_dist.mean * self.vae.config.scaling_factor
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed))
        self.scheduler.set_begin_index(start)
        noisy = self.scheduler.add_noise(latents, noise, timesteps[start : start + 1])
        return otsu(self.denoise(noisy, timesteps[start:], text, subject, guidance)[1])


class Project:
    """The project's own pipeline: refined masks and the filter's verdict."""

    name = "mosaicbank"

    def __init__(self, folder: Path) -> None:
        import mosaicbank

        self.package = mosaicbank
        self.generator = mosaicbank.Generator.from_pretrained(
            str(folder), device="cpu", dtype="float32"
        )

    def generate(
        self, text: str, subject: str, side: int, steps: int, guidance: float, seed: int
    ) -> Region:
        return self._make(text, subject, side, steps, guidance, seed)

    def renoise(
        self,
        image: np.ndarray,
        text: str,
        subject: str,
        steps: int,
        guidance: float,
        strength: float,
        seed: int,
    ) -> np.ndarray:
        """An image-to-image region that starts from ``image``: its mask, bool [H, W]."""
        start = {"image": image, "strength": strength}
        return self._make(text, subject, len(image), steps, guidance, seed, **start).mask

    def _make(
        self, text: str, subject: str, side: int, steps: int, guidance: float, seed: int, **start
    ) -> Region:
        region = self.package.Region(
            box=(0, 0, side, side), prompt=text, subject=subject, guidance=guidance, **start
        )
        canvas = self.generator.generate_canvas(
            height=side,
            width=side,
            steps=steps,
            seed=seed,
            return_attention=True,
            regions=[region],
        )
        found = canvas.regions[0]
        return Region(canvas.image, found.mask, found.kept)


# ------------------------------------------------------------------------------ figures


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boolean masks (0 when both are empty)."""
    union = np.logical_or(a, b).sum()
    return float(np.logical_and(a, b).sum() / union) if union else 0.0


def alpha_key(strength: float) -> str:
    """Name of the known-alpha figure at a noise strength."""
    return f"{ALPHA}_at_{strength:g}"


def spread(features: torch.Tensor) -> float:
    """Mean pairwise L2 distance between rows of ``[N, D]``."""
    distances = torch.cdist(features, features)
    count = len(features)
    return float(distances.sum() / max(1, count * (count - 1)))


# -------------------------------------------------------------------------------- judge


def judge(args: argparse.Namespace) -> dict:
    """Run everything; returns the report that is printed and written."""
    listing = json.loads((args.model / "categories.json").read_text())["categories"]
    trained = {c["name"] for c in listing}
    if not trained:
        raise SystemExit(f"judge: {args.model}/categories.json lists no trained category")
    recipe = json.loads((args.model / "mosaicbank.json").read_text())["recipe"]
    steps, guidance = args.steps or recipe["steps"], args.guidance or recipe["guidance"]
    side = recipe["height"]
    art = Art(args.art, ALL_STYLES).only(trained)
    classifier, quality = train_classifier(
        art, args.work / "classifier.pt", args.classifier_samples, args.seed
    )
    segmenter = Judge(args.segmenter)
    pipeline = (Project if args.pipeline == "mosaicbank" else Reference)(args.model)
    rows, pictures, seconds = [], [], 0.0
    verdicts: list[Verdict] = []
    rng = np.random.default_rng(args.seed)
    for number, name in enumerate(tqdm(art.names, desc="regions", mininterval=5)):
        text, word = prompt(name, art.definitions[name]), subject(name)
        regions, agreement = [], []
        known = {s: [] for s in args.strength}
        for k in range(args.samples):
            seed = args.seed + 1000 * number + k
            start = time.perf_counter()
            region = pipeline.generate(text, word, side, steps, guidance, seed)
            seconds += time.perf_counter() - start
            regions.append(region)
            cover = segmenter(region.image)
            verdicts.append(Verdict(name, seed, region, cover, iou(region.mask, cover)))
            if verdicts[-1].counts:
                agreement.append(verdicts[-1].iou)
        for k in range(args.known):
            picture = art.draw(rng, name)
            while picture.style not in TRAIN_STYLES:
                picture = art.draw(rng, name)
            image, alpha, _ = compose(rng, picture, side, side)
            for strength, found in known.items():
                mask = pipeline.renoise(image, text, word, steps, guidance, strength, k)
                found.append(iou(mask, alpha > 0.5))
        with torch.no_grad():
            logits, features = classifier(to_input([r.image for r in regions]))
            sources = [compose(rng, art.draw(rng, name), side, side)[0] for _ in regions]
            source_features = classifier(to_input(sources))[1]
        order = logits.argsort(1, descending=True)
        rows.append(
            {
                "category": name,
                "samples": len(regions),
                "top1": float((order[:, 0] == number).float().mean()),
                "top5": float((order[:, :5] == number).any(1).float().mean()),
                "mask_iou_judge": float(np.mean(agreement)) if agreement else None,
                **{alpha_key(s): float(np.mean(v)) for s, v in known.items() if v},
                "rejected": float(np.mean([not r.accepted for r in regions])),
                "diversity": spread(features),
                "diversity_of_source": spread(source_features),
                "named": [art.names[i] for i in order[:, 0].tolist()],
            }
        )
        pictures.append(np.concatenate([outlined(r) for r in regions[:6]], axis=1))
    args.work.mkdir(parents=True, exist_ok=True)
    Image.fromarray(tile(pictures)).save(args.work / "regions.png")
    counted = sorted((v for v in verdicts if v.counts), key=lambda v: v.iou)
    if counted:
        worst_sheet(counted[:WORST]).save(args.work / "worst.png")
    overlaps = np.array([v.iou for v in counted])

    def mean(key: str) -> float | None:
        values = [r[key] for r in rows if r.get(key) is not None]
        return float(np.mean(values)) if values else None

    frequency = {c["name"]: c["frequency"] for c in listing}
    keys = (
        *("top1", "top5", "mask_iou_judge", "rejected", "diversity", "diversity_of_source"),
        *map(alpha_key, args.strength),
    )
    return {
        "pipeline": pipeline.name,
        "categories": len(rows),
        "rare": sum(frequency[r["category"]] == "r" for r in rows),
        "samples_per_category": args.samples,
        "steps": steps,
        "guidance": guidance,
        "seed": args.seed,
        "seconds_per_region": seconds / max(1, len(rows) * args.samples),
        "classifier": quality,
        "mean": {k: mean(k) for k in keys},
        "masks": {
            "regions": len(verdicts),
            "without_object_for_the_judge": len(verdicts) - len(counted),
            "below_0.8": float((overlaps < 0.8).mean()) if counted else None,
            "below_0.5": float((overlaps < 0.5).mean()) if counted else None,
            "worst": [
                {"category": v.name, "seed": v.seed, "iou": round(v.iou, 3)}
                for v in counted[:WORST]
            ],
        },
        "goals": GOALS,
        "per_category": rows,
    }


@dataclass
class Verdict:
    """A region, the object that the judge finds in it (bool ``[H, W]``), and their IoU."""

    name: str
    seed: int
    region: Region
    found: np.ndarray
    iou: float

    @property
    def counts(self) -> bool:
        """Whether the pipeline and the judge both see an object: otherwise IoU says little."""
        return bool(self.region.mask.any()) and (
            AREA_RANGE[0] <= self.found.mean() <= AREA_RANGE[1]
        )


def worst_sheet(verdicts: list[Verdict], columns: int = 6, zoom: int = 3) -> Image.Image:
    """Of every region: the picture, our mask, the judge's; category, seed and IoU below."""
    side = max(max(v.found.shape) for v in verdicts) * zoom // 2
    cell = (3 * side + 8, side + 16)
    rows = -(-len(verdicts) // columns)
    sheet = Image.new("RGB", (columns * cell[0], rows * cell[1]), "white")
    draw = ImageDraw.Draw(sheet)
    for number, verdict in enumerate(verdicts):
        x, y = number % columns * cell[0], number // columns * cell[1]
        image = verdict.region.image
        for k, mask in enumerate((None, verdict.region.mask, verdict.found)):
            shown = image.copy()
            if mask is not None:
                shown[~mask] = shown[~mask] // 4 + np.uint8([150, 0, 150])
            picture = Image.fromarray(shown).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(picture, (x + k * (side + 2), y))
        draw.text((x + 1, y + side + 2), f"{verdict.name[:24]} {verdict.iou:.2f}", fill="black")
    return sheet


def outlined(region: Region) -> np.ndarray:
    """The region with its mask's outline, 2 x enlarged, and a red bar when rejected."""
    image = cv2.resize(region.image, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    mask = cv2.resize(
        region.mask.astype(np.uint8), image.shape[1::-1], interpolation=cv2.INTER_NEAREST
    )
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    image = cv2.drawContours(image.copy(), contours, -1, (255, 255, 0), 1)
    if not region.accepted:
        image[:4] = (255, 0, 0)
    return image


def tile(strips: list[np.ndarray], columns: int = 3) -> np.ndarray:
    """Equal strips in columns."""
    rows = -(-len(strips) // columns)
    blank = [np.zeros_like(strips[0])] * (rows * columns - len(strips))
    strips = strips + blank
    parts = [np.concatenate(strips[c * rows : (c + 1) * rows], axis=0) for c in range(columns)]
    return np.concatenate(parts, axis=1)


def show(report: dict) -> None:
    """Print the table and the means beside the goals."""

    def cell(value: float | None) -> str:
        return "   -" if value is None else f"{value:4.2f}"

    alpha = next((k for k in report["mean"] if k.startswith(ALPHA)), "")
    print(f"{'category':28} top1 top5 IoUj IoUk rej. div. src.")
    for row in sorted(report["per_category"], key=lambda r: (r["top1"], r["top5"])):
        keys = (
            *("top1", "top5", "mask_iou_judge", alpha),
            *("rejected", "diversity", "diversity_of_source"),
        )
        print(f"{row['category']:28} " + " ".join(cell(row.get(k)) for k in keys))
    print(
        f"\npipeline: {report['pipeline']}; {report['categories']} categories "
        f"({report['rare']} rare) x {report['samples_per_category']}; "
        f"{report['seconds_per_region']:.2f} s per region"
    )
    masks = report["masks"]
    print(
        f"of {masks['regions']} masks {cell(masks['below_0.8'])} below 0.8, "
        f"{cell(masks['below_0.5'])} below 0.5 by the judge; "
        f"{masks['without_object_for_the_judge']} regions without an object for it"
    )
    for key, value in report["mean"].items():
        goal = report["goals"].get(ALPHA if key.startswith(ALPHA) else key)
        sign = "<=" if key == "rejected" else ">="
        print(f"{key:24} {cell(value)}" + (f"   goal {sign} {goal}" if goal else ""))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--art", type=Path, required=True, help="art.zip made by prepare.py")
    parser.add_argument("--model", type=Path, required=True, help="the exported directory")
    parser.add_argument("--work", type=Path, required=True, help="classifier and pictures go here")
    parser.add_argument("--pipeline", choices=("mosaicbank", "reference"), default="mosaicbank")
    parser.add_argument(
        "--segmenter", type=Path, default=WEIGHTS, help="the judge's weights (judge_network.py)"
    )
    parser.add_argument("--samples", type=int, default=4, help="generated regions per category")
    parser.add_argument("--known", type=int, default=1, help="known-alpha pictures per category")
    parser.add_argument(
        "--strength",
        type=float,
        nargs="*",
        default=[0.3, 0.5, 0.7],
        help="how far known-alpha pictures are noised, 0..1 (1 leaves nothing of them)",
    )
    parser.add_argument("--steps", type=int, help="default: the model's recipe")
    parser.add_argument("--guidance", type=float, help="default: the model's recipe")
    parser.add_argument("--classifier-samples", type=int, default=40_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, help="write the report here")
    args = parser.parse_args()
    if args.samples < 1 or args.known < 0 or not all(0 < s < 1 for s in args.strength):
        parser.error("--samples must be >= 1, --known >= 0, 0 < --strength < 1")
    if args.threads:
        torch.set_num_threads(args.threads)
    report = judge(args)
    show(report)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
