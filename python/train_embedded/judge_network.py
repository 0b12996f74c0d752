"""The judge's segmenter: a small U-Net that finds the one object in a small picture.

    python judge_network.py --art build/art/art.zip --extra build/art/extra.zip \\
        --run build/judge_network --minutes 60 --to judge_network.safetensors

It is trained on composed pictures with known alpha, in every drawing style but one (OpenMoji):
that one measures it. It never sees a generated picture or a mask of the pipeline, so that its
word on them is independent. With ``--vae`` a quarter of the training pictures go through the
embedded model's autoencoder, which gives them the look of generated ones.

Training checkpoints into ``--run``, stops cleanly on Ctrl-C and goes on with the same command.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from augment import Pool, to_input
from compose import TRAIN_STYLES, Art, compose
from prepare import EXTRA_STYLES, HELD_OUT_STYLES
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm
from training import Budget, Ema, Stop, load, save

SIDE = 64
"""Side in px at which the network looks at a picture."""
WIDTHS = (24, 48, 64, 64)
"""Channels at 32, 16, 8 and 4 px."""
BORDER = 2
"""Width in px of the border from which the background is guessed."""
RATE, BATCH = 3e-3, 32
HERE = Path(__file__).resolve().parent
WEIGHTS = HERE / "judge_network.safetensors"


# ----------------------------------------------------------------------------- network


class Block(nn.Module):
    """Two 3 x 3 convolutions with a skip connection: ``[B, C, h, w]`` in and out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.two = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norms[0](self.one(x)))
        return F.relu(x + self.norms[1](self.two(y)))


def from_backdrop(images: torch.Tensor) -> torch.Tensor:
    """How far every pixel is from two guesses of the background.

    ``[B, C, H, W]`` -> ``[B, 2 C, H, W]``.

    The guesses run straight from the left border to the right one, and from the top to the bottom.
    The difference from them looks much the same in every drawing style, so a network that has it
    leans less on the styles that it was trained on.
    """
    height, width = images.shape[2:]
    across = torch.linspace(0, 1, width).view(1, 1, 1, -1)
    left, right = images[..., :BORDER].mean(3, True), images[..., -BORDER:].mean(3, True)
    down = torch.linspace(0, 1, height).view(1, 1, -1, 1)
    top, bottom = images[..., :BORDER, :].mean(2, True), images[..., -BORDER:, :].mean(2, True)
    guesses = (left * (1 - across) + right * across, top * (1 - down) + bottom * down)
    return torch.cat([(images - guess).abs() for guess in guesses], 1)


class JudgeNetwork(nn.Module):
    """``float32 [B, 3, 64, 64]`` in -1..1 -> logits of the object's coverage ``[B, 64, 64]``.

    A U-Net of four levels on the picture and its distance from the background. It starts at half
    the resolution (2 x 2 px become channels) and ends with a few full-resolution channels beside
    the picture itself, which carry the outline.
    """

    def __init__(self, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        self.stem = nn.Conv2d(9 * 4, widths[0], 3, padding=1)
        self.encoder = nn.ModuleList(Block(w) for w in widths)
        pairs = list(zip(widths, widths[1:]))
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in pairs)
        self.up = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairs)
        self.decoder = nn.ModuleList(Block(w) for w in widths[:-1])
        self.fine = nn.Conv2d(widths[0], 32, 1)
        self.head = nn.Sequential(nn.Conv2d(17, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = torch.cat([images, from_backdrop(images)], 1)
        x = F.relu(self.stem(F.pixel_unshuffle(images, 2)))
        levels = []
        for i, block in enumerate(self.encoder):
            x = block(x if i == 0 else F.relu(self.down[i - 1](x)))
            levels.append(x)
        for i in reversed(range(len(self.decoder))):
            x = F.interpolate(self.up[i](x), scale_factor=2.0, mode="nearest") + levels[i]
            x = self.decoder[i](x)
        fine = F.pixel_shuffle(F.relu(self.fine(x)), 2)
        return self.head(torch.cat([fine, images.to(fine.dtype)], 1))[:, 0]


class Judge:
    """The trained network as a segmenter of pictures of any size."""

    def __init__(self, weights: Path = WEIGHTS) -> None:
        if not weights.is_file():
            raise SystemExit(f"judge: {weights} is missing; make it with judge_network.py")
        self.network = JudgeNetwork()
        self.network.load_state_dict({k: v.float() for k, v in load_file(weights).items()})
        self.network.eval()

    def coverage(self, images: list[np.ndarray]) -> list[np.ndarray]:
        """Coverage in 0..1, ``float32 [H, W]``, of pictures ``uint8 [H, W, 3]``.

        The mean over the picture and its mirror image.
        """
        sized = [cv2.resize(i, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for i in images]
        batch = to_input(np.stack(sized))
        with torch.no_grad():
            logits = self.network(batch) + self.network(batch.flip(3)).flip(2)
        maps = torch.sigmoid(logits / 2).numpy()
        return [
            cv2.resize(m, i.shape[1::-1], interpolation=cv2.INTER_LINEAR)
            for m, i in zip(maps, images, strict=True)
        ]

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """The object in ``uint8 [H, W, 3]`` as bool ``[H, W]``."""
        return self.coverage([image])[0] > 0.5


# ------------------------------------------------------------------------------ figures


def measure(network: nn.Module, art: Art, count: int, seed: int = 7) -> dict[str, float]:
    """Mean IoU, share below 0.8 and below 0.5 on ``count`` freshly composed pictures of ``art``.

    The pictures are those of ``compose.py`` as they are, the threshold is one half, and both the
    network's plain answer and the mean with its mirror image are given.
    """
    rng = np.random.default_rng(seed)
    made = [compose(rng, art.draw(rng), SIDE, SIDE) for _ in range(count)]
    truth = torch.from_numpy(np.stack([m[1] for m in made])) > 0.5
    plain, mirrored = [], []
    network.eval()
    with torch.no_grad():
        for batch in to_input(np.stack([m[0] for m in made])).split(64):
            one = network(batch)
            plain.append(one)
            mirrored.append(one + network(batch.flip(3)).flip(2))
    network.train()

    def overlap(logits: list[torch.Tensor]) -> torch.Tensor:
        found = torch.cat(logits) > 0
        return (found & truth).sum((1, 2)) / (found | truth).sum((1, 2)).clamp(min=1)

    best = overlap(mirrored)
    return {
        "iou": best.mean().item(),
        "iou_without_mirror": overlap(plain).mean().item(),
        "below_0.8": (best < 0.8).float().mean().item(),
        "below_0.5": (best < 0.5).float().mean().item(),
        "pictures": count,
    }


# ---------------------------------------------------------------------------- training


def loss_of(logits: torch.Tensor, alphas: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with the coverage, and one minus the soft IoU of every picture."""
    logits = logits.float()
    found = torch.sigmoid(logits)
    overlap = (found * alphas).sum((1, 2))
    union = (found + alphas - found * alphas).sum((1, 2))
    return F.binary_cross_entropy_with_logits(logits, alphas) + (1 - overlap / (union + 1)).mean()


def arts(args: argparse.Namespace) -> tuple[Art, Art]:
    """The pictures for training, and those of the style that is left out."""
    seen = Art(args.art, TRAIN_STYLES)
    if args.extra is not None:
        seen.extend(args.extra, EXTRA_STYLES)
    return seen, Art(args.art, HELD_OUT_STYLES)


def train(args: argparse.Namespace) -> JudgeNetwork:
    """Train, or go on; returns the network with averaged weights."""
    seen, unseen = arts(args)
    vae = None
    if args.vae is not None:
        from diffusers import AutoencoderKL

        vae = AutoencoderKL.from_pretrained(args.vae / "vae").eval()
    network = JudgeNetwork()
    ema = Ema([network], 0.998)
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.01, fused=True)
    path = args.run / "judge_network.pt"
    state = load(path) or {}
    if state:
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        ema.average = state["ema"]
    budget = Budget(args.minutes, args.samples, state)
    pool = Pool(seen, vae, [args.seed, budget.steps])
    stop, saved, recent = Stop(), time.monotonic(), []
    log = (args.run / "judge_network_log.jsonl").open("a")

    def checkpoint(count: int) -> dict:
        save(
            path,
            {
                "network": network.state_dict(),
                "optimiser": optimiser.state_dict(),
                "ema": ema.average,
                **budget.state(),
            },
        )
        ema.swap()
        found = {
            "seen": measure(network, seen, count),
            "left_out": measure(network, unseen, count),
        }
        ema.swap()
        entry = {**budget.state(), "loss": float(np.mean(recent[-200:] or [0])), **found}
        log.write(
            json.dumps({**entry, "cpu": time.process_time(), "time": int(time.time())}) + "\n"
        )
        log.flush()
        return entry

    bar = tqdm(total=100, unit="%", desc="judge network", mininterval=10)
    while budget.progress < 1 and not stop.asked:
        for group in optimiser.param_groups:
            group["lr"] = budget.rate(RATE, 200, 0.6)
        images, alphas, _ = pool.batch(BATCH)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = network(images.contiguous(memory_format=torch.channels_last))
        loss = loss_of(logits, alphas)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        ema.update(budget.steps)
        budget.tick(BATCH)
        recent.append(loss.item())
        bar.update(max(0, min(100, 100 * budget.progress) - bar.n))
        if time.monotonic() - saved > 60 * args.save_minutes:
            checkpoint(256)
            saved = time.monotonic()
    entry = checkpoint(args.measure)
    print(json.dumps(entry, indent=1))
    ema.swap()
    if args.to is not None:
        weights = {k: v.half() for k, v in network.state_dict().items() if v.ndim or "num" not in k}
        save_file(weights, args.to, metadata={"figures": json.dumps(entry)})
        args.to.chmod(0o644)
    return network


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--art", type=Path, required=True, help="art.zip made by prepare.py")
    parser.add_argument("--extra", type=Path, help="extra.zip made by prepare.py --extra")
    parser.add_argument("--run", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--to", type=Path, help="write the weights here (float16 safetensors)")
    parser.add_argument(
        "--vae", type=Path, help="a model's directory: a quarter of the pictures go through its VAE"
    )
    parser.add_argument("--minutes", type=float, help="active minutes, earlier runs included")
    parser.add_argument("--samples", type=int, help="training samples, earlier runs included")
    parser.add_argument("--measure", type=int, default=1024, help="pictures of the last figures")
    parser.add_argument("--save-minutes", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    for path in (args.art, args.extra):
        if path is not None and not path.is_file():
            parser.error(f"{path}: no such file; make it with prepare.py")
    args.run.mkdir(parents=True, exist_ok=True)
    if args.threads:
        torch.set_num_threads(args.threads)
        cv2.setNumThreads(args.threads)
    torch.manual_seed(args.seed)
    train(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
