"""Train the embedded model: autoencoder, then UNet with text encoder, then export.

    python train.py vae    --art build/art/art.zip --run build/run --minutes 15
    python train.py unet   --art build/art/art.zip --run build/run --minutes 90
    python train.py export --art build/art/art.zip --run build/run --to DIRECTORY

Every stage checkpoints into ``--run`` (written beside, then renamed), resumes from there,
stops cleanly on Ctrl-C or SIGTERM, and draws ``vae.png`` / ``unet.png`` sample grids.
``--preset cpu`` (64 px regions) is meant for a few CPU hours, ``--preset gpu`` (128 px
regions, all categories) for some minutes on a GPU.

The learning rate is constant after a short warm-up and falls to zero over the last part of
``--minutes`` (or ``--samples``); to go on later with more time or more categories
(``--tier 2``), run the same command again with a larger ``--minutes``.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from compose import Art, caption, compose, prompt
from diffusers import AutoencoderKL, DDPMScheduler, DPMSolverMultistepScheduler
from model import (
    NOISE,
    PRESETS,
    Captions,
    PlainAttention,
    Preset,
    SubjectAttention,
    describe,
    export,
    make_text_encoder,
    make_unet,
    make_vae,
    write_tokenizer,
)
from prepare import split
from safetensors.torch import load_file
from tqdm import tqdm
from training import Budget, Ema, Stop, grid, load, save, to_images, to_tensor

ATTENTION_WEIGHT = 0.05
"""Weight of the subject token's mask loss, layer by layer, beside the noise loss."""
OUTLINE_WEIGHT = 0.5
"""Weight of the loss of the layers' mean map (`outline_loss`) beside the noise loss."""
KL_WEIGHT = 1e-3
"""Weight of the mean KL divergence per latent value."""
NEW_FACTOR = 2.0
"""How much more often categories are drawn that a checkpoint did not have yet."""
MASK_LEVELS = 1
"""Attention levels, from the finest on, whose mean map is trained on the outline: those that the
exported recipe takes the mask from."""
SYNC_STEPS = 8
"""Steps after which ``--workers`` average their weights."""
SNR_CAP = 5.0
"""Min-SNR weighting (arXiv 2303.09556): steps with less noise than this count less."""
SNR_FLOOR = 0.15
"""Added to the min-SNR weights, so that the last, almost noiseless steps are learnt too."""
ASPECTS = (
    ((4, 4), 0.80),
    ((3, 4), 0.05),
    ((4, 3), 0.05),
    ((5, 5), 0.03),
    ((4, 5), 0.035),
    ((5, 4), 0.035),
)
"""Region sizes in quarters of the base side, (height, width), and how often each is drawn:
the mosaic's jittered centre and overlap make regions from 3/4 to 5/4 of the base."""


# ------------------------------------------------------------------------- autoencoder


def train_vae(args: argparse.Namespace, preset: Preset, device: torch.device) -> None:
    """Stage 1: L1 + L2 + 0.5 x gradient L1 + small KL on composed pictures of all categories."""
    art = Art(args.art)
    vae = make_vae(preset).to(device)
    optimiser = torch.optim.AdamW(vae.parameters(), lr=preset.vae_rate, weight_decay=1e-4)
    path = args.run / "vae.pt"
    state = load(path)
    if state is not None:
        vae.load_state_dict(state["vae"])
        optimiser.load_state_dict(state["optimiser"])
    ema = Ema([vae], 0.995)
    if state is not None:
        ema.average = [a.to(device) for a in state["ema"]]
    budget = Budget(args.minutes, args.samples, state or {})
    rng = np.random.default_rng([args.seed, budget.steps, 1])
    stop, saved = Stop(), time.monotonic()

    def batch(count: int) -> torch.Tensor:
        images = [
            compose(rng, art.draw(rng), preset.region, preset.region, (0.6, 1.5))[0]
            for _ in range(count)
        ]
        return to_tensor(np.stack(images), device)

    def checkpoint() -> None:
        ema.swap()
        vae.eval()
        with torch.no_grad():
            test = batch(24)
            means = vae.encode(torch.cat([batch(64) for _ in range(4)])).latent_dist.mean
            scale = 1.0 / means.std().item()
            back = vae.decode(vae.encode(test).latent_dist.mean).sample
        grid(to_images(torch.stack([test, back], 1).flatten(0, 1)), 12, args.run / "vae.png", 3)
        weights = {k: v.clone() for k, v in vae.state_dict().items()}
        ema.swap()
        vae.train()
        save(
            path,
            {
                "vae": vae.state_dict(),
                "weights": weights,
                "ema": ema.average,
                "scale": scale,
                "optimiser": optimiser.state_dict(),
                "preset": describe(preset),
                **budget.state(),
            },
        )
        tqdm.write(
            f"vae: {budget.seen} samples, L1 {(test - back).abs().mean():.4f} "
            f"(range -1..1), latent scale {scale:.4f}",
            file=sys.stderr,
        )

    bar = tqdm(total=100, unit="%", desc="vae")
    while budget.progress < 1 and not stop.asked:
        rate = budget.rate(preset.vae_rate, 50, 0.5)
        for group in optimiser.param_groups:
            group["lr"] = rate
        images = batch(preset.vae_batch)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            posterior = vae.encode(images).latent_dist
            back = vae.decode(posterior.sample()).sample
        error = back.float() - images
        gradient = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        loss = error.abs().mean() + error.square().mean() + 0.5 * gradient
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        (loss + KL_WEIGHT * divergence).backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        ema.update(budget.steps)
        budget.tick(len(images))
        bar.set_postfix(
            loss=f"{loss.item():.4f}", kl=f"{divergence.item():.2f}", samples=budget.seen
        )
        bar.update(max(0, min(100, 100 * budget.progress) - bar.n))
        if time.monotonic() - saved > 60 * args.save_minutes:
            checkpoint()
            saved = time.monotonic()
    checkpoint()


# -------------------------------------------------------------------------------- unet


class Pool:
    """Composed and encoded samples, reused a few times with new noise.

    Composing and encoding cost a share of a step on a CPU; a batch takes
    ``fresh`` new samples and the rest from the last ``capacity`` ones.  ``seed`` is (seed,
    step, worker): all workers draw the same region sizes, so that none waits long.
    """

    def __init__(
        self,
        art: Art,
        vae,
        scale: float,
        preset: Preset,
        captions: Captions,
        seed: list[int],
        device: torch.device,
        fresh: float,
        capacity: int = 4096,
    ) -> None:
        self.art, self.vae, self.scale, self.preset = art, vae, scale, preset
        self.captions, self.device, self.fresh, self.capacity = captions, device, fresh, capacity
        self.rng = np.random.default_rng(seed)
        self.size_rng = np.random.default_rng(seed[:2])
        self.samples: dict[tuple[int, int], list[tuple]] = {}

    @torch.no_grad()
    def _make(self, size: tuple[int, int], count: int) -> list[tuple]:
        quarter = self.preset.region // 4
        height, width = size[0] * quarter, size[1] * quarter
        images, alphas, texts = [], [], []
        for _ in range(count):
            picture = self.art.draw(self.rng)
            image, alpha, words = compose(self.rng, picture, height, width)
            definition = self.art.definitions[picture.category]
            texts.append(caption(self.rng, picture.category, definition, picture.style, words))
            images.append(image)
            alphas.append(alpha)
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            posterior = self.vae.encode(to_tensor(np.stack(images), self.device)).latent_dist
        latents = (posterior.mean.float() * self.scale).half()
        masks = F.interpolate(
            torch.from_numpy(np.stack(alphas))[:, None].to(self.device),
            latents.shape[2:],
            mode="area",
        )[:, 0].half()
        return [(z, m, *t) for z, m, t in zip(latents, masks, texts, strict=True)]

    def batch(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents ``[B, 4, h, w]``, coverage ``[B, h, w]``, ids ``[B, 77]``, subject ``[B]``."""
        weights = np.array([w for _, w in ASPECTS])
        size = ASPECTS[self.size_rng.choice(len(ASPECTS), p=weights / weights.sum())][0]
        held = self.samples.setdefault(size, [])
        fresh = count if len(held) < 4 * count else max(1, round(self.fresh * count))
        new = self._make(size, fresh)
        old = [held[i] for i in self.rng.integers(len(held), size=count - fresh)] if held else []
        held.extend(new)
        del held[: -self.capacity]
        rows = new + old
        tokens = [self.captions(row[2], row[3]) for row in rows]
        return (
            torch.stack([r[0] for r in rows]).float(),
            torch.stack([r[1] for r in rows]).float(),
            torch.tensor([t[0] for t in tokens], device=self.device),
            torch.tensor([t[1] for t in tokens], device=self.device),
        )


def attention_loss(
    maps: list[torch.Tensor],
    masks: torch.Tensor,
    subject: torch.Tensor,
    shapes: dict[int, tuple[int, int]],
) -> torch.Tensor:
    """Mean binary cross-entropy of the subject's probability maps against the coverage.

    ``maps``: ``[B, Q]`` per layer; ``masks``: ``[B, h, w]``; rows without subject are left out;
    ``shapes``: positions -> (height, width) of that UNet level.
    """
    rows = subject >= 0
    if not rows.any():
        return masks.new_zeros(())
    losses = []
    for probability in maps:
        target = F.interpolate(masks[:, None], shapes[probability.shape[1]], mode="area")[:, 0]
        p = probability[rows].clamp(1e-4, 1 - 1e-4)
        losses.append(F.binary_cross_entropy(p, target.flatten(1)[rows].clamp(0, 1)))
    return torch.stack(losses).mean()


def outline_loss(
    maps: list[torch.Tensor],
    masks: torch.Tensor,
    subject: torch.Tensor,
    shapes: dict[int, tuple[int, int]],
) -> torch.Tensor:
    """Mean soft Dice loss of what becomes the mask: the mean of the finest level's maps.

    Arguments as in :func:`attention_loss`. The single layers may be blurred as long as their
    mean follows the outline.
    """
    rows = subject >= 0
    if not rows.any():
        return masks.new_zeros(())
    size = masks.shape[1:]
    target = masks[rows]
    finest = sorted(shapes, reverse=True)[:MASK_LEVELS]
    layers = [
        F.interpolate(
            probability[rows].unflatten(1, shapes[probability.shape[1]])[:, None],
            size,
            mode="bilinear",
        )[:, 0]
        for probability in maps
        if probability.shape[1] in finest
    ]
    mean = torch.stack(layers).mean(0)
    overlap = (mean * target).sum((1, 2))
    return (1 - 2 * overlap / (mean.square() + target.square()).sum((1, 2))).mean()


@torch.no_grad()
def sample(
    unet,
    text_encoder,
    vae,
    scale: float,
    captions: Captions,
    texts: list[str],
    size: tuple[int, int],
    steps: int,
    guidance: float,
    seed: int,
    device: torch.device,
) -> np.ndarray:
    """Pictures ``uint8 [B, H, W, 3]`` of ``texts`` on latents of ``size``, with guidance."""
    scheduler = DPMSolverMultistepScheduler(**NOISE, algorithm_type="dpmsolver++")
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn((len(texts), 4, *size), generator=generator).to(device)
    ids = torch.tensor([captions(t, "")[0] for t in [*texts, ""]], device=device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        states = text_encoder(ids)[0]
    both = torch.cat([states[:-1], states[-1:].expand(len(texts), -1, -1)])
    for step in scheduler.timesteps:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            noise = unet(torch.cat([latents, latents]), step, both).sample.float()
        wanted, free = noise.chunk(2)
        latents = scheduler.step(free + guidance * (wanted - free), step, latents).prev_sample
    with torch.autocast(device.type, dtype=torch.bfloat16):
        return to_images(vae.decode(latents / scale).sample)


def load_published(folder: Path, unet: torch.nn.Module, text_encoder: torch.nn.Module) -> None:
    """Copy an exported model's UNet and text encoder weights into the given modules."""
    weights = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    unet.load_state_dict({k: v.float() for k, v in weights.items()})
    own = set(text_encoder.state_dict())
    weights = {}
    for name, value in load_file(folder / "text_encoder" / "model.safetensors").items():
        name = name if name in own else name.removeprefix("text_model.")
        weights[name] = value.float()
    text_encoder.load_state_dict(weights)


def load_trained(run: Path, preset: Preset, device: torch.device, start: Path | None = None):
    """The trained autoencoder and its latent scale."""
    state = load(run / "vae.pt")
    if state is None and start is not None:
        vae = AutoencoderKL.from_pretrained(start / "vae").to(device).eval().requires_grad_(False)
        return vae, vae.config.scaling_factor
    if state is None:
        raise SystemExit(f"train: no {run / 'vae.pt'}; run the stage `vae` first")
    vae = make_vae(preset).to(device).eval().requires_grad_(False)
    vae.load_state_dict(state["weights"])
    return vae, state["scale"]


class Workers:
    """Single-threaded processes on one CPU that train side by side (local SGD).

    Each takes its own steps with its own batches; every ``SYNC_STEPS`` steps the weights become
    their mean (arXiv 1805.09767).  This is much faster than several threads where other
    programs run too: oneDNN's backward convolutions spin at barriers while a thread is
    descheduled (measured: 7 times slower), and averaging gradients makes the workers wait for
    each other in every step.  Worker 0 decides when to stop.
    """

    def __init__(self, rank: int, count: int, run: Path) -> None:
        self.rank, self.count, self.steps = rank, count, 0
        if count > 1:
            file = (run / "rendezvous").resolve()
            torch.distributed.init_process_group(
                "gloo", init_method=file.as_uri(), rank=rank, world_size=count
            )

    @property
    def meet(self) -> bool:
        """Whether this step is one at which the workers meet."""
        return self.count > 1 and self.steps % SYNC_STEPS == 0

    def agree(self, go: bool) -> bool:
        """Worker 0's decision whether to go on; between meetings: yes."""
        if self.count == 1:
            return go
        if not self.meet:
            return True
        decision = torch.tensor([float(go)])
        torch.distributed.broadcast(decision, 0)
        return bool(decision[0])

    @torch.no_grad()
    def average(self, parameters: list[torch.nn.Parameter]) -> None:
        """Count a step; at a meeting replace every parameter by the mean over the workers."""
        self.steps += 1
        if not self.meet:
            return
        flat = torch.cat([p.flatten() for p in parameters])
        torch.distributed.all_reduce(flat)
        flat /= self.count
        for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.copy_(part.view_as(p))


def helper(args: argparse.Namespace, rank: int) -> None:
    """Entry of workers 1, 2, ...: the same training, silent; worker 0 tells it to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    train_unet(args, PRESETS[args.preset], torch.device("cpu"), rank)


def start_unet(args: argparse.Namespace, preset: Preset, device: torch.device) -> None:
    """Stage 2 in one process, or with ``--workers`` processes on the CPU."""
    helpers = []
    if args.workers > 1:
        torch.set_num_threads(1)
        (args.run / "rendezvous").unlink(missing_ok=True)
        context = torch.multiprocessing.get_context("spawn")
        helpers = [
            context.Process(target=helper, args=(args, rank), daemon=True)
            for rank in range(1, args.workers)
        ]
        for process in helpers:
            process.start()
    train_unet(args, preset, device, 0)
    for process in helpers:
        process.join(60)


def train_unet(args: argparse.Namespace, preset: Preset, device: torch.device, rank: int) -> None:
    """Noise prediction with mask supervision of the subject token's attention."""
    tier = args.tier or preset.tier
    art = Art(args.art, tier=tier)
    vae, scale = load_trained(args.run, preset, device, args.start)
    tokenizer = write_tokenizer(args.run / "tokenizer", preset.merges)
    captions = Captions(tokenizer)
    unet = make_unet(preset).to(device)
    text_encoder = make_text_encoder(preset, tokenizer).to(device)
    modules = [unet, text_encoder]
    ema = Ema(modules, preset.ema)
    names = [n for m in modules for n, _ in m.named_parameters()]
    decayed = [
        p.ndim > 1 and "embedding" not in n for n, p in zip(names, ema.parameters, strict=True)
    ]
    groups = [
        {
            "params": [p for p, d in zip(ema.parameters, decayed, strict=True) if d == want],
            "weight_decay": 0.01 * want,
        }
        for want in (True, False)
    ]
    optimiser = torch.optim.AdamW(groups, lr=preset.rate, betas=(0.9, 0.99), fused=True)
    path = args.run / "unet.pt"
    state = load(path)
    if state is not None:
        unet.load_state_dict(state["unet"])
        text_encoder.load_state_dict(state["text_encoder"])
        optimiser.load_state_dict(state["optimiser"])
        ema.average = [a.to(device) for a in state["ema"]]
    elif args.start is not None:
        load_published(args.start, unet, text_encoder)
        listing = json.loads((args.start / "categories.json").read_text())["categories"]
        seen = json.loads((args.start / "mosaicbank.json").read_text())["samples_seen"]
        state = {"categories": [c["name"] for c in listing], "samples": seen}
        ema.average = [p.detach().clone() for p in ema.parameters]
    budget = Budget(args.minutes, args.samples, state or {})
    workers = Workers(rank, args.workers, args.run)
    boosted: list[str] = []
    if state is not None:
        known = set(state["categories"])
        boosted = sorted(set(art.names) - known) or state.get("boosted", [])
        art.boost(set(boosted), NEW_FACTOR)
    probe = SubjectAttention()
    probe.install(unet)
    if device.type == "cpu":
        PlainAttention().install(unet)
        text_encoder.config._attn_implementation = "eager"
    pool = Pool(
        art, vae, scale, preset, captions, [args.seed, budget.steps, rank], device, args.fresh
    )
    signal_share = DDPMScheduler(**NOISE).alphas_cumprod.to(device)
    ratio = signal_share / (1 - signal_share)
    # Steps are drawn by their weight instead of weighting the loss: no step is computed
    # only to count for little.
    importance = ratio.clamp(max=SNR_CAP) / ratio + SNR_FLOOR
    noise_source = torch.Generator(device).manual_seed(args.seed * 7919 + 13 * budget.steps + rank)
    stop, saved, drawn = Stop(), time.monotonic(), time.monotonic()
    log = (args.run / "unet_log.jsonl").open("a")
    recent: list[tuple[float, float, float]] = []

    def checkpoint(draw: bool) -> None:
        save(
            path,
            {
                "unet": unet.state_dict(),
                "text_encoder": text_encoder.state_dict(),
                "ema": ema.average,
                "optimiser": optimiser.state_dict(),
                "tier": tier,
                "categories": art.names,
                "boosted": boosted,
                "preset": describe(preset),
                **budget.state(),
            },
        )
        losses = np.mean(recent[-200:], axis=0) if recent else [float("nan")] * 3
        entry = {
            **budget.state(),
            "noise_loss": float(losses[0]),
            "attention_loss": float(losses[1]),
            "outline_loss": float(losses[2]),
            "tier": tier,
            "time": int(time.time()),
        }
        log.write(json.dumps(entry) + "\n")
        log.flush()
        if draw:
            ema.swap()
            unet.eval()
            shown = art.names[:: max(1, -(-len(art.names) // 48))]
            texts = [prompt(n, art.definitions[n]) for n in shown]
            side = preset.region // preset.factor
            images = sample(
                unet,
                text_encoder,
                vae,
                scale,
                captions,
                texts,
                (side, side),
                12,
                args.guidance,
                0,
                device,
            )
            grid(images, 12, args.run / "unet.png")
            grid(images, 12, args.run / f"unet_{budget.seen:07d}.png")
            unet.train()
            ema.swap()

    bar = tqdm(total=100, unit="%", desc="unet", mininterval=5, disable=rank > 0)
    while True:
        if not workers.agree(budget.progress < 1 and not stop.asked):
            break
        rate = budget.rate(preset.rate, 200, args.decay)
        for group in optimiser.param_groups:
            group["lr"] = rate
        latents, masks, ids, subject = pool.batch(preset.batch)
        noise = torch.randn(latents.shape, generator=noise_source, device=device)
        steps = torch.multinomial(importance, len(latents), True, generator=noise_source)
        share = signal_share[steps].view(-1, 1, 1, 1)
        noisy = share.sqrt() * latents + (1 - share).sqrt() * noise
        probe.subject, height, width = subject, latents.shape[2], latents.shape[3]
        shapes = {}
        for _ in preset.unet_channels:
            shapes[height * width] = (height, width)
            height, width = -(-height // 2), -(-width // 2)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            predicted = unet(noisy, steps, text_encoder(ids)[0]).sample
        noise_loss = (predicted.float() - noise).square().mean()
        mask_loss = attention_loss(probe.maps, masks, subject, shapes)
        edge_loss = outline_loss(probe.maps, masks, subject, shapes)
        probe.maps.clear()
        probe.subject = None
        (noise_loss + ATTENTION_WEIGHT * mask_loss + OUTLINE_WEIGHT * edge_loss).backward()
        torch.nn.utils.clip_grad_norm_(ema.parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        workers.average(ema.parameters)
        ema.update(budget.steps)
        budget.tick(len(latents) * args.workers)
        recent.append((noise_loss.item(), mask_loss.item(), edge_loss.item()))
        del recent[:-200]
        if not math.isfinite(recent[-1][0]):
            raise SystemExit(
                f"train: the loss is not finite after {budget.seen} samples; "
                f"the last checkpoint in {args.run} is from before that"
            )
        means = np.mean(recent, axis=0)
        bar.set_postfix(
            noise=f"{means[0]:.4f}", mask=f"{means[1]:.3f}", samples=budget.seen, refresh=False
        )
        bar.update(max(0, min(100, 100 * budget.progress) - bar.n))
        now = time.monotonic()
        if rank == 0 and now - saved > 60 * args.save_minutes:
            draw = now - drawn > 60 * args.grid_minutes
            checkpoint(draw)
            saved, drawn = time.monotonic(), time.monotonic() if draw else drawn
    if rank == 0:
        checkpoint(draw=True)


# ------------------------------------------------------------------------------ export


def run_export(args: argparse.Namespace, preset: Preset, device: torch.device) -> None:
    """Stage 3: the EMA weights as a diffusers directory (untrained parts stay random)."""
    state = load(args.run / "unet.pt")
    vae, scale = load_trained(args.run, preset, device, args.start)
    vae.register_to_config(scaling_factor=round(scale, 6))
    tokenizer = write_tokenizer(args.run / "tokenizer", preset.merges)
    unet, text_encoder = make_unet(preset), make_text_encoder(preset, tokenizer)
    ema = Ema([unet, text_encoder], 0.0)
    if state is not None:
        ema.average = list(state["ema"])
        ema.swap()
    seen = state["samples"] if state else 0
    # The refinement's defaults suit regions of 384 x 512 px: on small ones they eat thin parts.
    recommended = {
        "height": preset.region,
        "width": preset.region,
        "steps": args.steps,
        "guidance": args.guidance,
        "refine": [
            {
                "kind": "bilateral",
                "sigma_spatial": preset.region / 32,
                "sigma_luma": 8.0,
                "sigma_chroma": 8.0,
                "lambda": 32.0,
            }
        ],
        # The attention was trained to be the share of each cell that the object covers: the finest
        # level alone has the sharpest outline. A threshold near one half agrees best with known
        # outlines, a lower one with another segmenter: one that reaches both goals of `judge.py`.
        "masks": [
            {
                "kind": "attention",
                "levels": list(range(MASK_LEVELS)),
                "threshold": {"fixed": 0.35},
            }
        ],
    }
    recipe = {"recipe": recommended, "samples_seen": seen}
    export(args.to, preset, vae, unet, text_encoder, recipe)
    listing = args.to / "categories.json"
    if listing.exists() and state is not None:
        content = json.loads(listing.read_text())
        both = content["categories"] + content["prepared_categories"]
        both.sort(key=lambda c: c["id"])
        content.update(split(both, set(state["categories"])))
        listing.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    size = sum(p.stat().st_size for p in args.to.rglob("*") if p.is_file()) / 2**20
    print(f"{args.to}: {size:.1f} MiB, {seen} samples seen")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=("vae", "unet", "export"))
    parser.add_argument("--art", type=Path, required=True, help="art.zip made by prepare.py")
    parser.add_argument("--run", type=Path, required=True, help="folder for checkpoints and grids")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="cpu")
    parser.add_argument(
        "--tier",
        type=int,
        choices=(1, 2, 3, 4),
        help="categories of curated.json up to this tier (default: preset's)",
    )
    parser.add_argument(
        "--minutes", type=float, help="active training minutes, earlier runs included"
    )
    parser.add_argument("--samples", type=int, help="training samples, earlier runs included")
    parser.add_argument(
        "--decay",
        type=float,
        default=0.35,
        help="share of the budget over which the learning rate falls (unet)",
    )
    parser.add_argument(
        "--fresh", type=float, default=0.5, help="share of newly composed samples per batch (unet)"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        help="single-threaded processes that share the work (unet on the CPU)",
    )
    parser.add_argument(
        "--from",
        dest="start",
        type=Path,
        help="begin with an exported model's weights when there is no checkpoint",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-minutes", type=float, default=3.0)
    parser.add_argument("--grid-minutes", type=float, default=10.0)
    parser.add_argument("--to", type=Path, help="directory to export to")
    parser.add_argument("--steps", type=int, default=12, help="recommended steps (export)")
    parser.add_argument("--guidance", type=float, default=6.0, help="recommended guidance")
    args = parser.parse_args()
    if not args.art.is_file():
        parser.error(f"--art {args.art}: no such file; make it with prepare.py")
    if args.stage == "export" and args.to is None:
        parser.error("the stage `export` needs --to")
    if args.workers < 1:
        parser.error("--workers must be at least 1")
    if args.workers > 1 and args.device != "cpu":
        parser.error("--workers is for --device cpu")
    if not 0 < args.decay <= 1 or not 0 < args.fresh <= 1:
        parser.error("--decay and --fresh must lie in (0, 1]")
    args.run.mkdir(parents=True, exist_ok=True)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    preset = PRESETS[args.preset]
    stage = {"vae": train_vae, "unet": start_unet, "export": run_export}[args.stage]
    stage(args, preset, torch.device("cpu" if args.stage == "export" else args.device))
    return 0


if __name__ == "__main__":
    sys.exit(main())
