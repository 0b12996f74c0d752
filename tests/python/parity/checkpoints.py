"""Small seeded Stable Diffusion checkpoints, made with `diffusers` and `transformers`.

Real components in a small size, not mocks: the architectures are those of Stable Diffusion 1.4
and 2.x, every block type of them included, only narrow. Weights are seeded; a few of them are
scaled so that a comparison means something (attention that differs from pixel to pixel, pixels
that span the whole range) where freshly initialised networks give near-constant output.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from tokenizers import normalizers as tokenizers_normalizers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

CONTEXT = 77
START, END = "<|startoftext|>", "<|endoftext|>"

# What the tokenizer learns its merges from. Some of the words the prompts use are not here,
# so that they fall apart into several tokens.
CORPUS = """
a photo of a single banana on a wooden table, a close-up photo of the dog in the park
a painting of an old school bus, the yellow bus stops at the school in winter
elongated crescent-shaped yellow fruit with soft sweet flesh, a pot for brewing tea
pot for brewing tea; usually has a spout and handle, the cup and the tea are hot
a toy animal on the kitchen floor, two birds and a bird house, it's the bird's 2nd nest
"""

# As Stable Diffusion 1.4 ships it.
SD14_SCHEDULER: dict[str, Any] = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.7.0.dev0",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}

# As Stable Diffusion 2.1 ships it.
SD21_SCHEDULER: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "_diffusers_version": "0.8.0",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}


@dataclass(frozen=True)
class Shape:
    """What tells one small checkpoint from another."""

    name: str
    unet: dict[str, Any]
    vae: dict[str, Any]
    text: dict[str, Any]
    scheduler: dict[str, Any]
    pad: str = END
    seed: int = 0
    vae_factor: int = 8
    text_width: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "text_width", self.text["hidden_size"])


# Four levels as in SD 1.x: attention at 1/8, 1/16 and 1/32, none at 1/64. `attention_head_dim`
# is the *number* of heads, as in every SD 1 and 2 configuration.
SD1 = Shape(
    name="sd1",
    unet={
        "sample_size": 16,
        "block_out_channels": (32, 32, 64, 64),
        "layers_per_block": 2,
        "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
        "cross_attention_dim": 32,
        "attention_head_dim": 8,
    },
    vae={
        "block_out_channels": (32, 32, 64, 64),
        "layers_per_block": 1,
        "norm_num_groups": 32,
        "scaling_factor": 0.18215,
    },
    text={
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "hidden_act": "quick_gelu",
        "projection_dim": 32,
    },
    scheduler=SD14_SCHEDULER,
)

# As SD 2.x: linear projections, heads per block, attention in float32, gelu, v prediction,
# padding with "!" (token 0).
SD2 = Shape(
    name="sd2",
    unet={
        "sample_size": 16,
        "block_out_channels": (32, 64, 64, 96),
        "layers_per_block": 2,
        "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
        "cross_attention_dim": 48,
        "attention_head_dim": (2, 4, 8, 8),
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    vae={
        "block_out_channels": (32, 64, 64, 64),
        "layers_per_block": 2,
        "norm_num_groups": 16,
        "scaling_factor": 0.18215,
    },
    text={
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "hidden_act": "gelu",
        "projection_dim": 32,
    },
    scheduler=SD21_SCHEDULER,
    pad="!",
    seed=1,
)

# A shallow one, shaped as the model that is part of mosaicbank: VAE factor 4 and no attention in
# it, three UNet levels with cross-attention in each, DPM-Solver++.
SMALL = Shape(
    name="small",
    unet={
        "sample_size": 16,
        "block_out_channels": (32, 64, 64),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3,
        "up_block_types": ("CrossAttnUpBlock2D",) * 3,
        "cross_attention_dim": 32,
        "attention_head_dim": 2,
    },
    vae={
        "block_out_channels": (16, 48, 64),
        "layers_per_block": 1,
        "norm_num_groups": 16,
        "scaling_factor": 0.9,
        "mid_block_add_attention": False,
    },
    text={
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_act": "quick_gelu",
        "projection_dim": 32,
    },
    # As `diffusers` saves it, an infinite bound included.
    scheduler=dict(
        DPMSolverMultistepScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
        ).config
    )
    | {"_class_name": "DPMSolverMultistepScheduler"},
    seed=2,
    vae_factor=4,
)

SHAPES = (SD1, SD2, SMALL)


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def write_tokenizer(directory: Path, pad: str = END) -> None:
    """CLIP's byte-level BPE over `CORPUS`, as `vocab.json` and `merges.txt` (SD 1.4's files)."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = tokenizers_normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"),
                behavior="removed",
                invert=True,
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS.splitlines(), trainer)
    merges = [tuple(m) for m in json.loads(tokenizer.to_str())["model"]["merges"]]
    # CLIP's order: the bytes, the bytes that end a word, the merges, the two markers; "!" is 0.
    alphabet = [chr(c) for c in range(ord("!"), ord("~") + 1)]
    alphabet += [c for c in sorted(pre_tokenizers.ByteLevel.alphabet()) if c not in alphabet]
    words = alphabet + [c + "</w>" for c in alphabet]
    words += [a + b for a, b in merges if a + b not in set(words)]
    vocab = {word: index for index, word in enumerate([*words, START, END])}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (directory / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_json(
        directory / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "bos_token": START,
            "eos_token": END,
            "unk_token": END,
            "pad_token": pad,
            "do_lower_case": True,
            "errors": "replace",
            "model_max_length": CONTEXT,
            "tokenizer_class": "CLIPTokenizer",
        },
    )
    write_json(
        directory / "special_tokens_map.json",
        {"bos_token": START, "eos_token": END, "pad_token": pad, "unk_token": END},
    )


def reference_tokenizer(directory: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(str(directory))


def make_unet(shape: Shape) -> UNet2DConditionModel:
    torch.manual_seed(shape.seed)
    unet = UNet2DConditionModel(**shape.unet).eval()
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            # Freshly initialised cross-attention is almost uniform over the 77 tokens.
            if "attn2.to_q" in name or "attn2.to_k" in name:
                parameter.mul_(4.0)
    return unet


def make_vae(shape: Shape) -> AutoencoderKL:
    torch.manual_seed(shape.seed + 100)
    levels = len(shape.vae["block_out_channels"])
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=4,
        sample_size=16 * shape.vae_factor,
        **shape.vae,
    ).eval()
    with torch.no_grad():
        # Pixels that fill -1..1 (and a few beyond, so that clamping is tested).
        sample = vae.decode(torch.randn(1, 4, 8, 8) / shape.vae["scaling_factor"]).sample
        vae.decoder.conv_out.weight.mul_(0.5 / sample.std())
    return vae


def make_text_encoder(shape: Shape, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    torch.manual_seed(shape.seed + 200)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=CONTEXT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **shape.text,
    )
    encoder = CLIPTextModel(config).eval()
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            # transformers initialises transformers narrowly (std 0.02): a residual branch of
            # nothing would hide a wrong activation or a wrong head split.
            if parameter.ndim == 2 and "layers" in name:
                parameter.mul_(8.0)
            elif "token_embedding" in name:
                parameter.mul_(20.0)
    return encoder


def write_checkpoint(shape: Shape, directory: Path) -> Path:
    """The whole checkpoint in the diffusers layout, float32 safetensors."""
    write_tokenizer(directory / "tokenizer", shape.pad)
    tokenizer = reference_tokenizer(directory / "tokenizer")
    make_unet(shape).save_pretrained(directory / "unet")
    make_vae(shape).save_pretrained(directory / "vae")
    make_text_encoder(shape, tokenizer).save_pretrained(directory / "text_encoder")
    write_json(directory / "scheduler" / "scheduler_config.json", shape.scheduler)
    write_json(
        directory / "model_index.json",
        {
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": "0.30.0",
            "feature_extractor": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", shape.scheduler["_class_name"]],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    )
    return directory


def copy_checkpoint(source: Path, target: Path) -> Path:
    """A copy whose files may be changed."""
    shutil.copytree(source, target)
    return target


def edit_json(path: Path, **changes: Any) -> None:
    """Sets keys of a JSON file; a value of `...` removes the key."""
    value = json.loads(path.read_text(encoding="utf-8"))
    for key, new in changes.items():
        if new is ...:
            value.pop(key, None)
        else:
            value[key] = new
    write_json(path, value)


def weights_file(component: Path) -> Path:
    """The single safetensors file of a component's directory."""
    (found,) = component.glob("*.safetensors")
    return found
