"""Mosaics by mosaicbank against the plain `diffusers` loop with attention capture.

Both sides use the same weights, steps, threads, noise and regions, in one run. The reference is the
loop of the parity tests (tests/python/parity/reference.py). The sides alternate, and the figures
are medians.

    python benches/diffusion_vs_diffusers.py                 # the embedded model
    python benches/diffusion_vs_diffusers.py --sd15          # SD 1.5's shape, random weights
    python benches/diffusion_vs_diffusers.py --device cuda   # and the GPU's table
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Callable

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "python"))

from parity import checkpoints, reference  # noqa: E402

EMBEDDED = ROOT / "python" / "mosaicbank" / "models" / "embedded"
CATEGORIES = ["banana", "teapot", "dog", "school_bus"]

# The embedded model's shape, for when its weights are not there: 7 M parameters, VAE factor 4.
EMBEDDED_SHAPE = replace(
    checkpoints.SMALL,
    name="embedded-shape",
    unet={
        **checkpoints.SMALL.unet,
        "block_out_channels": (64, 128, 128),
        "cross_attention_dim": 128,
    },
    text={
        **checkpoints.SMALL.text,
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_attention_heads": 4,
    },
)

# Stable Diffusion 1.5's, in full: 860 M parameters in the UNet.
SD15_SHAPE = replace(
    checkpoints.SD1,
    name="sd15",
    unet={
        "sample_size": 64,
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
    vae={
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "scaling_factor": 0.18215,
    },
    text={
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "hidden_act": "quick_gelu",
        "projection_dim": 768,
    },
)

# The processor's own time is the one to compare on a machine that is busy (with one thread).
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Ours:
    """mosaicbank on one model and device."""

    def __init__(self, model: Path, recipe: dict[str, Any], device: str, dtype: str) -> None:
        from mosaicbank import Generator

        self.generator = Generator.from_pretrained(str(model), device=device, dtype=dtype)
        self.recipe = recipe
        # Both sides read the attention of the levels that the recipe says.
        (source,) = self.generator.resolve_recipe(recipe)["masks"]
        self.levels = source["levels"]
        # Plain names, whose words are the subject that the loop looks for.
        known = [c for c in self.generator.categories or CATEGORIES if c.isidentifier()]
        self.categories = known[:4]

    def run(self, noise: np.ndarray, masks: bool = True, **changes: Any) -> list[Any]:
        """As many mosaics as `noise` [B, 4, h, w] has rows."""
        return self.generator.generate(
            [self.categories] * len(noise),
            recipe={**self.recipe, **changes},
            seeds=list(range(len(noise))),
            init_noise=noise,
            return_attention=masks,
            masks=masks,
        )


class Plain:
    """The plain loop on the same model and device, with the regions that ours were given."""

    def __init__(
        self,
        model: Path,
        regions: list[Any],
        levels: list[int],
        steps: int,
        device: str,
        dtype: str,
    ) -> None:
        self.pipeline = reference.Pipeline.load(model)
        for part in (self.pipeline.unet, self.pipeline.text_encoder):
            part.to(device, DTYPES[dtype])
        # As ours: the autoencoder stays in float32, which float16 would overflow.
        self.pipeline.vae.to(device)
        self.areas = [
            reference.Area(r.box, r.prompt, r.category.replace("_", " "), r.guidance)
            for r in regions
        ]
        self.size = (max(a.box[3] for a in self.areas), max(a.box[2] for a in self.areas))
        self.levels = levels
        self.steps = steps
        self.device = device

    @torch.inference_mode()
    def run(self, noise: np.ndarray, capture: bool = True) -> list[reference.Result]:
        rows = torch.from_numpy(noise).to(self.device)
        return [
            reference.mosaic(
                self.pipeline, *self.size, self.areas, self.steps, row[None], capture, self.levels
            )
            for row in rows
        ]


class Asked:
    """A region as both sides are asked for it."""

    def __init__(self, result: Any, guidance: float) -> None:
        self.box, self.prompt, self.category = result.box, result.prompt, result.category
        self.guidance = guidance


@contextmanager
def exact_float32() -> Iterator[None]:
    """TF32 off, on both sides: the switches are libtorch's."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def seconds(work: Callable[[], Any], options: argparse.Namespace) -> float:
    clock = CLOCKS[options.clock]
    if options.device != "cpu":
        torch.cuda.synchronize()
    start = clock()
    work()
    if options.device != "cpu":
        torch.cuda.synchronize()
    return clock() - start


def take_turns(
    works: dict[str, Callable[[], Any]], options: argparse.Namespace
) -> dict[str, list[float]]:
    """Times each work once a round, in turn, so that a slow minute falls on all of them."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(options.rounds):
        for name, work in works.items():
            times[name].append(seconds(work, options))
    return times


def ratio(above: list[float], below: list[float]) -> float:
    """The median over the rounds of above / below."""
    return statistics.median(a / b for a, b in zip(above, below))


def plan(model: Path, options: argparse.Namespace) -> tuple[Ours, list[Asked], tuple[int, ...]]:
    """Ours, warmed up, with the regions that the recipe stands for, and the noise's shape."""
    recipe: dict[str, Any] = {"regions": 4, "center": [1.0, 1.0]}  # four regions of one size
    if options.steps:
        recipe["steps"] = options.steps
    if options.height:
        recipe.update(height=options.height, width=options.width)
    # The mask refinement has a benchmark of its own; the loop does not do it.
    recipe["refine"] = None
    ours = Ours(model, recipe, options.device, options.dtype)
    whole = ours.generator.resolve_recipe(recipe)
    factor = ours.generator.factor
    shape = (4, 2 * whole["height"] // factor, 2 * whole["width"] // factor)
    zeros = np.random.default_rng(0).standard_normal((1, *shape)).astype(np.float32)
    (first,) = ours.run(zeros, steps=1)
    return ours, [Asked(r, whole["guidance"]) for r in first.regions], (whole["steps"], *shape)


def noise_of(batch: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((batch, *shape)).astype(np.float32)


def compare(model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Time, capture's share of it, and how far apart the two sides' results are."""
    ours, regions, (steps, *shape) = plan(model, options)
    plain = Plain(model, regions, ours.levels, steps, options.device, options.dtype)
    noise = noise_of(1, tuple(shape))
    with exact_float32():
        mine, theirs = ours.run(noise)[0], plain.run(noise)[0]
        times = take_turns(
            {
                "ours": lambda: ours.run(noise),
                "ours, no capture": lambda: ours.run(noise, masks=False),
                "plain": lambda: plain.run(noise),
                "plain, no capture": lambda: plain.run(noise, capture=False),
            },
            options,
        )
    return {
        "model": options.name,
        "device": options.device,
        "dtype": options.dtype,
        "threads": torch.get_num_threads(),
        "clock": options.clock,
        "steps": steps,
        "canvas": [int(n) * ours.generator.factor for n in shape[1:]],
        "seconds": {name: statistics.median(values) for name, values in times.items()},
        "speed_up": ratio(times["plain"], times["ours"]),
        "speed_up_without_capture": ratio(times["plain, no capture"], times["ours, no capture"]),
        "capture_cost": ratio(times["ours"], times["ours, no capture"]) - 1,
        "capture_cost_plain": ratio(times["plain"], times["plain, no capture"]) - 1,
        "pixels_max_difference": int(
            np.abs(mine.image.astype(int) - theirs.image.astype(int)).max()
        ),
        "attention_max_difference": max(
            float(np.abs(a.attention - b).max()) for a, b in zip(mine.regions, theirs.attention)
        ),
    }


# --- memory ------------------------------------------------------------------------------------


def peak_of_one_side(model: Path, options: argparse.Namespace) -> None:
    """In a process of its own: make one mosaic with one side, print its peak."""
    if options.side == "ours":
        ours, _regions, (_steps, *shape) = plan(model, options)
        ours.run(noise_of(1, tuple(shape)))
    else:
        regions = [Asked(argparse.Namespace(**r), r["guidance"]) for r in options.regions["areas"]]
        asked = options.regions
        plain = Plain(
            model, regions, asked["levels"], asked["steps"], options.device, options.dtype
        )
        plain.run(noise_of(1, tuple(asked["shape"])))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if options.device != "cpu":
        # One allocator for both sides: ours runs on the libtorch of this process.
        peak = torch.cuda.max_memory_allocated()
    print(json.dumps({"peak": peak}))


def memory(model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of one mosaic (resident, or the GPU's), each side in a process of its own."""
    ours, regions, (steps, *shape) = plan(model, options)
    levels = ours.levels
    del ours
    asked = {
        "areas": [vars(r) for r in regions],
        "levels": levels,
        "steps": steps,
        "shape": shape,
    }
    weights = sum(f.stat().st_size for f in model.rglob("*.safetensors"))
    out: dict[str, Any] = {"weights_bytes": weights}
    for side in ("ours", "plain"):
        command = [sys.executable, __file__, "--model", str(model), "--device", options.device]
        command += ["--dtype", options.dtype, "--side", side, "--regions", json.dumps(asked)]
        for name in ("threads", "steps", "height", "width"):
            if getattr(options, name):
                command += [f"--{name}", str(getattr(options, name))]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peak = json.loads(done.stdout.splitlines()[-1])["peak"]
        out[side] = {"peak_bytes": peak, "over_weights_bytes": peak - weights}
    return out


# --- GPU ---------------------------------------------------------------------------------------


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))


def table(model: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Mosaics/s and milliseconds per UNet call and region, for batches of 1, 4 and 16."""
    rows = []
    for dtype in ("float32", "bfloat16"):
        options = argparse.Namespace(**{**vars(options), "dtype": dtype})
        ours, regions, (steps, *shape) = plan(model, options)
        plain = Plain(model, regions, ours.levels, steps, options.device, dtype)
        for batch in (1, 4, 16):
            noise = noise_of(batch, tuple(shape))
            ours.run(noise)
            plain.run(noise[:1])
            times = take_turns(
                {"ours": partial(ours.run, noise), "plain": partial(plain.run, noise)},
                options,
            )
            row: dict[str, Any] = {"dtype": dtype, "batch": batch}
            for side, values in times.items():
                spent = statistics.median(values)
                row[side] = {
                    "mosaics_per_second": batch / spent,
                    "ms_per_region_and_step": 1000 * spent / (batch * len(regions) * steps),
                }
            row["speed_up"] = ratio(times["plain"], times["ours"])
            rows.append(row)
    return rows


def precision(model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """On the GPU: float32 against the plain loop, bfloat16's masks against float32's."""
    full = argparse.Namespace(**{**vars(options), "dtype": "float32"})
    with exact_float32():
        gpu, regions, (steps, *shape) = plan(model, full)
        gpu.recipe.pop("refine")
        noise = noise_of(4, tuple(shape))
        exact = gpu.run(noise)
        plain = Plain(model, regions, gpu.levels, steps, full.device, "float32").run(noise)
    half, _, _ = plan(model, argparse.Namespace(**{**vars(options), "dtype": "bfloat16"}))
    half.recipe.pop("refine")
    rough = half.run(noise)
    pairs = [(a, b) for m, n in zip(exact, rough) for a, b in zip(m.regions, n.regions)]
    return {
        "float32_pixels_vs_plain": max(
            int(np.abs(a.image.astype(int) - b.image.astype(int)).max())
            for a, b in zip(exact, plain)
        ),
        "float32_attention_vs_plain": max(
            float(np.abs(r.attention - t).max())
            for a, b in zip(exact, plain)
            for r, t in zip(a.regions, b.attention)
        ),
        "bfloat16_mask_iou": {
            "min": min(iou(a.mask, b.mask) for a, b in pairs),
            "mean": statistics.mean(iou(a.mask, b.mask) for a, b in pairs),
        },
    }


# --- the command -------------------------------------------------------------------------------


def show(result: dict[str, Any]) -> None:
    gib = 2**30
    if "speed_up" in result:
        spent = result["seconds"]
        print(
            f"{result['model']}: {result['canvas'][0]} x {result['canvas'][1]}, "
            f"{result['steps']} steps, 4 regions, {result['dtype']} on {result['device']}, "
            f"{result['threads']} threads, {result['clock']} clock"
        )
        for name, value in spent.items():
            print(f"  {name:20} {value:8.3f} s")
        print(f"  plain / ours         {result['speed_up']:8.2f}")
        print(f"    without capture    {result['speed_up_without_capture']:8.2f}")
        print(f"  capture costs ours   {100 * result['capture_cost']:8.1f} %")
        print(f"  capture costs plain  {100 * result['capture_cost_plain']:8.1f} %")
        print(f"  pixels differ by     {result['pixels_max_difference']:8} / 255 at most")
        print(f"  attention differs by {result['attention_max_difference']:8.1e} at most")
    if "memory" in result:
        weights = result["memory"]["weights_bytes"]
        print(f"  weights on disk      {weights / gib:8.2f} GiB")
        for side in ("ours", "plain"):
            peak = result["memory"][side]
            over = peak["over_weights_bytes"] / gib
            print(f"  peak, {side:14} {peak['peak_bytes'] / gib:8.2f} GiB ({over:+.2f})")
    for row in result.get("table", []):
        mine, theirs = row["ours"], row["plain"]
        print(
            f"  {row['dtype']:9} batch {row['batch']:2}: mosaics/s "
            f"{mine['mosaics_per_second']:8.3f} vs {theirs['mosaics_per_second']:8.3f}, "
            f"ms per region and step {mine['ms_per_region_and_step']:7.2f} vs "
            f"{theirs['ms_per_region_and_step']:7.2f}, ratio {row['speed_up']:.2f}"
        )
    if "precision" in result:
        print(f"  {json.dumps(result['precision'])}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a diffusers-layout directory")
    parser.add_argument("--sd15", action="store_true", help="SD 1.5's shape, random weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=list(DTYPES))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--height", type=int, help="of the base region")
    parser.add_argument("--width", type=int)
    parser.add_argument("--rounds", type=int, help="turns of each side")
    parser.add_argument("--clock", default="wall", choices=list(CLOCKS))
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--side", choices=["ours", "plain"], help=argparse.SUPPRESS)
    parser.add_argument("--regions", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        model = options.model
        if options.sd15:
            options.name = "SD 1.5's shape, random weights"
            options.steps = options.steps or 2
            options.rounds = options.rounds or 2
            if not (options.height and options.width):
                options.height, options.width = 384, 512
            model = model or checkpoints.write_checkpoint(SD15_SHAPE, Path(scratch) / "sd15")
        elif model is None and (EMBEDDED / "model_index.json").is_file():
            options.name, model = "the embedded model", EMBEDDED
        elif model is None:
            options.name = "the embedded model's shape, random weights"
            options.steps = options.steps or 12
            options.height, options.width = options.height or 64, options.width or 64
            model = checkpoints.write_checkpoint(EMBEDDED_SHAPE, Path(scratch) / "embedded")
        else:
            options.name = str(model)
        options.rounds = options.rounds or 7
        if options.side:
            peak_of_one_side(model, options)
            return
        result = compare(model, options)
        if not options.no_memory:
            result["memory"] = memory(model, options)
        if options.device != "cpu":
            result["precision"] = precision(model, options)
            result["table"] = table(model, options)
        show(result)
        if options.json:
            options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
