"""MosaicFusion as a plain loop on `diffusers` modules: what ours is compared with.

Written for reading, not for speed: one region at a time, every attention probability computed
in full and only then reduced.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from transformers import CLIPTextModel, CLIPTokenizer

CONTEXT = 77


def relative_error(ours: Any, theirs: Any) -> float:
    """Largest absolute difference over the reference's largest magnitude."""
    a = np.asarray(ours, dtype=np.float64)
    b = np.asarray(theirs, dtype=np.float64)
    assert a.shape == b.shape, f"expected {b.shape}, got {a.shape}"
    assert np.isfinite(a).all()
    assert np.isfinite(b).all()
    return float(np.abs(a - b).max() / np.abs(b).max())


@dataclass
class Pipeline:
    """The parts of a checkpoint, loaded by the reference libraries in float32."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scheduler: Any

    @classmethod
    def load(cls, directory: Path) -> Pipeline:
        config = json.loads((directory / "scheduler" / "scheduler_config.json").read_text())
        scheduler = getattr(diffusers, config["_class_name"])
        return cls(
            CLIPTokenizer.from_pretrained(str(directory / "tokenizer")),
            CLIPTextModel.from_pretrained(str(directory / "text_encoder")).float().eval(),
            UNet2DConditionModel.from_pretrained(str(directory / "unet")).eval(),
            AutoencoderKL.from_pretrained(str(directory / "vae")).eval(),
            scheduler.from_pretrained(str(directory / "scheduler")),
        )

    def token_ids(self, prompts: Sequence[str]) -> torch.Tensor:
        return self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=CONTEXT,
            truncation=True,
            return_tensors="pt",
        ).input_ids

    def encode(self, prompts: Sequence[str]) -> torch.Tensor:
        return self.text_encoder(self.token_ids(prompts).to(self.text_encoder.device))[0]

    def subject_token(self, prompt: str, subject: str) -> int:
        """Position of the last sub-token of the subject's first mention, as a word of its own."""
        found = re.search(rf"\b{re.escape(subject)}\b", prompt, re.IGNORECASE)
        assert found is not None
        end = found.end()
        offsets = self.tokenizer(
            prompt,
            padding="max_length",
            max_length=CONTEXT,
            truncation=True,
            return_offsets_mapping=True,
        ).offset_mapping
        return max(i for i, (_, stop) in enumerate(offsets) if 0 < stop <= end)

    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """Latents [B, 4, h, w] at latent scale to uint8 [B, H, W, 3]."""
        scaled = latents / self.vae.config.scaling_factor
        image = self.vae.decode(scaled.to(self.vae.dtype)).sample.float()
        pixels = ((image / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).cpu().numpy()


class Maps:
    """One region's attention: sums of the subject token's probabilities by resolution."""

    def __init__(self, token: int, height: int, width: int, levels: Sequence[int]) -> None:
        self.token = token
        # Level 0 is the latent's size, each next one the ceiling of half the one above.
        self.sizes = []
        for level in range(max(levels) + 1):
            if level in levels:
                self.sizes.append((height, width))
            height, width = math.ceil(height / 2), math.ceil(width / 2)
        self.sums: dict[tuple[int, int], torch.Tensor] = {}
        self.counts: dict[tuple[int, int], int] = defaultdict(int)

    def add(self, probabilities: torch.Tensor) -> None:
        """Takes one layer's [batch, heads, pixels, tokens]; its second half is conditional."""
        batch, _heads, pixels, _tokens = probabilities.shape
        size = next((s for s in self.sizes if s[0] * s[1] == pixels), None)
        if size is None:
            return
        conditional = probabilities[batch // 2 :, :, :, self.token]
        seen = self.sums.get(size, 0.0)
        self.sums[size] = seen + conditional.mean((0, 1)).reshape(size).double()
        self.counts[size] += 1

    def aggregate(self, height: int, width: int) -> np.ndarray:
        """float32 [height, width] in 0..1: the mean over resolutions, each over its maximum."""
        total = torch.zeros(height, width)
        for size, summed in self.sums.items():
            level = (summed / self.counts[size]).float().cpu()
            level = level / level.max()
            total += F.interpolate(
                level[None, None], size=(height, width), mode="bicubic", align_corners=False
            )[0, 0]
        total /= len(self.sums)
        return (total / total.max()).clamp(0, 1).numpy()


class Recorder:
    """A cross-attention processor that computes every probability and shows them to `maps`."""

    maps: Maps | None = None

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor:
        assert encoder_hidden_states is not None
        batch, pixels, _width = hidden_states.shape
        heads = attn.heads

        def split(x: torch.Tensor) -> torch.Tensor:
            return x.reshape(batch, x.shape[1], heads, -1).transpose(1, 2)

        q = split(attn.to_q(hidden_states))
        k = split(attn.to_k(encoder_hidden_states))
        v = split(attn.to_v(encoder_hidden_states))
        probabilities = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        if self.maps is not None:
            self.maps.add(probabilities)
        out = (probabilities @ v).transpose(1, 2).reshape(batch, pixels, -1)
        return attn.to_out[1](attn.to_out[0](out))


def gaussian_window(height: int, width: int) -> torch.Tensor:
    """Separable; variance 0.01 of the squared side, centred at (n - 1) / 2."""

    def axis(n: int) -> torch.Tensor:
        offset = torch.arange(n, dtype=torch.float64) - (n - 1) / 2
        return torch.exp(-(offset**2) / (2 * 0.01 * n * n))

    return torch.outer(axis(height), axis(width)).float()


@dataclass
class Area:
    """A region: pixel box (x0, y0, x1, y1), prompt, subject, guidance."""

    box: tuple[int, int, int, int]
    prompt: str
    subject: str
    guidance: float = 7.5


@dataclass
class Result:
    image: np.ndarray  # uint8 [H, W, 3]
    attention: list[np.ndarray]  # float32 [h, w] each, region pixels, 0..1
    latents: torch.Tensor  # [1, 4, H/f, W/f]


def install(unet: UNet2DConditionModel, recorder: Recorder | None) -> None:
    """Puts the recorder in every cross-attention of the down and up blocks."""

    def processor(name: str) -> Any:
        captured = ".attn2." in name and not name.startswith("mid_block")
        return recorder if recorder is not None and captured else AttnProcessor2_0()

    unet.set_attn_processor({name: processor(name) for name in unet.attn_processors})


def mosaic(
    pipeline: Pipeline,
    height: int,
    width: int,
    areas: Sequence[Area],
    steps: int,
    noise: torch.Tensor,
    capture: bool = True,
    levels: Sequence[int] = (0, 1, 2),
) -> Result:
    """Denoise the regions on slices of one shared latent, merge, step, decode. The attention is
    read at `levels`."""
    unet, scheduler = pipeline.unet, pipeline.scheduler
    factor = height // noise.shape[2]
    assert (height, width) == (noise.shape[2] * factor, noise.shape[3] * factor)
    empty = pipeline.encode([""])
    embeddings = [torch.cat([empty, pipeline.encode([a.prompt])]) for a in areas]
    boxes = [tuple(v // factor for v in a.box) for a in areas]
    maps = [
        Maps(pipeline.subject_token(a.prompt, a.subject), y1 - y0, x1 - x0, levels)
        for a, (x0, y0, x1, y1) in zip(areas, boxes)
    ]
    recorder = Recorder()
    install(unet, recorder if capture else None)

    scheduler.set_timesteps(steps)
    latents = noise * scheduler.init_noise_sigma
    windows = [gaussian_window(y1 - y0, x1 - x0).to(latents) for x0, y0, x1, y1 in boxes]
    for t in scheduler.timesteps:
        model_input = scheduler.scale_model_input(latents, t)
        weighted, weights = torch.zeros_like(latents), torch.zeros_like(latents)
        for area, box, embedding, window, region in zip(areas, boxes, embeddings, windows, maps):
            x0, y0, x1, y1 = box
            recorder.maps = region
            part = model_input[:, :, y0:y1, x0:x1].to(unet.dtype)
            empty_noise, prompt_noise = unet(torch.cat([part, part]), t, embedding).sample.chunk(2)
            predicted = empty_noise + area.guidance * (prompt_noise - empty_noise)
            weighted[:, :, y0:y1, x0:x1] += window * predicted
            weights[:, :, y0:y1, x0:x1] += window
        merged = torch.where(weights > 0, weighted / weights, torch.zeros_like(weighted))
        latents = scheduler.step(merged, t, latents).prev_sample
    attention = []
    if capture:
        attention = [
            m.aggregate(a.box[3] - a.box[1], a.box[2] - a.box[0]) for a, m in zip(areas, maps)
        ]
    return Result(pipeline.decode(latents)[0], attention, latents)
