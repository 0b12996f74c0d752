"""The embedded model: sizes, tokenizer files, and the diffusers-layout export.

Everything is a small member of the Stable Diffusion 1.x family: CLIP tokenizer and text
encoder, a UNet with cross-attention on all its levels, and a KL autoencoder.
"""

from __future__ import annotations

import gzip
import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

MAX_TOKENS = 77
START, END = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True)
class Preset:
    """Sizes of one variant of the model and of its training."""

    region: int  # base region side, px
    vae_channels: tuple[int, ...]  # one level per factor of 2, plus one
    vae_layers: int
    unet_channels: tuple[int, ...]
    unet_layers: int
    heads: int
    text_hidden: int
    text_layers: int
    merges: int  # BPE merges kept from CLIP's 48,894
    batch: int
    vae_batch: int
    rate: float  # AdamW learning rate of the UNet stage
    vae_rate: float
    ema: float
    tier: int  # categories of curated.json up to this tier

    @property
    def factor(self) -> int:
        """Pixels per latent cell."""
        return 2 ** (len(self.vae_channels) - 1)


PRESETS = {
    "cpu": Preset(
        region=64,
        vae_channels=(16, 48, 64),
        vae_layers=1,
        unet_channels=(64, 128, 128),
        unet_layers=1,
        heads=2,
        text_hidden=128,
        text_layers=2,
        merges=8000,
        batch=32,
        vae_batch=8,
        rate=7e-4,
        vae_rate=1.5e-3,
        ema=0.998,
        tier=1,
    ),
    "gpu": Preset(
        region=128,
        vae_channels=(32, 64, 96, 96),
        vae_layers=1,
        unet_channels=(96, 160, 192),
        unet_layers=1,
        heads=4,
        text_hidden=192,
        text_layers=3,
        merges=8000,
        batch=256,
        vae_batch=128,
        rate=8e-4,
        vae_rate=1e-3,
        ema=0.9995,
        tier=4,
    ),
}

NOISE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
"""Stable Diffusion 1.x's noise schedule."""


# --------------------------------------------------------------------------- tokenizer


def write_tokenizer(folder: Path, merges: int) -> CLIPTokenizer:
    """Write CLIP tokenizer files with CLIP's first ``merges`` merges, and load them.

    The merges come from the vocabulary file inside the ``open_clip_torch`` package (MIT;
    the vocabulary is OpenAI CLIP's, MIT).  Ids follow CLIP's order: 256 bytes, 256 bytes
    at the end of a word, one token per merge, start, end.
    """
    import open_clip

    source = Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
    with gzip.open(source, "rt", encoding="utf-8") as lines:
        pairs = [line.split() for line in lines.read().splitlines()[1 : merges + 1]]
    if len(pairs) != merges or any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"{source}: expected {merges} merges, got {len(pairs)}")
    from open_clip.tokenizer import bytes_to_unicode

    units = list(bytes_to_unicode().values())
    words = units + [u + "</w>" for u in units] + ["".join(p) for p in pairs] + [START, END]
    vocabulary = {word: number for number, word in enumerate(words)}
    if len(vocabulary) != len(words):
        raise ValueError("the kept merges make a token twice")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in pairs), encoding="utf-8"
    )
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                **special,
                "add_prefix_space": False,
                "do_lower_case": True,
                "errors": "replace",
                "model_max_length": MAX_TOKENS,
                "tokenizer_class": "CLIPTokenizer",
            },
            indent=2,
        )
        + "\n"
    )
    return CLIPTokenizer.from_pretrained(folder)


class Captions:
    """Token ids and the subject token of captions, remembered."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        self.tokenizer = tokenizer
        self.known: dict[tuple[str, str], tuple[list[int], int]] = {}

    def __call__(self, text: str, subject: str) -> tuple[list[int], int]:
        """77 token ids, and the position of the subject's last sub-token (-1: none).

        The last sub-token is the one that covers the last letter or digit of ``subject``,
        so a closing bracket, which CLIP glues to the following comma, never counts.
        """
        key = (text, subject)
        if key not in self.known:
            out = self.tokenizer(
                text,
                padding="max_length",
                max_length=MAX_TOKENS,
                truncation=True,
                return_offsets_mapping=True,
            )
            position = -1
            if subject:
                start = text.index(subject)
                last = max(i for i, ch in enumerate(subject) if ch.isalnum()) + start
                position = next(
                    i for i, (a, b) in enumerate(out["offset_mapping"]) if a <= last < b
                )
            self.known[key] = (out["input_ids"], position)
        return self.known[key]


# ------------------------------------------------------------------------------ models


def make_vae(preset: Preset) -> AutoencoderKL:
    """The KL autoencoder, untrained.

    4 normalisation groups: with 16 groups on 16 channels every channel of the decoder's last
    layer would lose its mean, and with it the picture's colours.
    """
    levels = len(preset.vae_channels)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=preset.vae_channels,
        layers_per_block=preset.vae_layers,
        norm_num_groups=4,
        mid_block_add_attention=False,
        sample_size=preset.region,
    )


def make_unet(preset: Preset) -> UNet2DConditionModel:
    """The denoiser, untrained: cross-attention on every level."""
    levels = len(preset.unet_channels)
    return UNet2DConditionModel(
        sample_size=preset.region // preset.factor,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        block_out_channels=preset.unet_channels,
        layers_per_block=preset.unet_layers,
        cross_attention_dim=preset.text_hidden,
        attention_head_dim=preset.heads,
        norm_num_groups=32,
    )


def make_text_encoder(preset: Preset, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The text encoder, untrained."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=preset.text_hidden,
            intermediate_size=4 * preset.text_hidden,
            projection_dim=preset.text_hidden,
            num_hidden_layers=preset.text_layers,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            hidden_act="quick_gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
    )


def _heads(attn, x: torch.Tensor) -> torch.Tensor:
    """``[B, T, H * D]`` -> ``[B, H, T, D]``."""
    return x.view(x.shape[0], -1, attn.heads, x.shape[-1] // attn.heads).transpose(1, 2)


class PlainAttention:
    """Self-attention by plain matrix products, in the dtype of the values.

    On a CPU the fused kernel's backward pass takes a third of a training step at these
    sizes (256 positions, small heads); this is twice as fast over the whole step.
    """

    def install(self, unet: UNet2DConditionModel) -> None:
        """Use this processor in all self-attention layers of ``unet``."""
        for name, module in unet.named_modules():
            if name.endswith("attn1"):
                module.set_processor(self)

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
        q, k, v = (_heads(attn, to(hidden_states)) for to in (attn.to_q, attn.to_k, attn.to_v))
        scores = torch.matmul(q * attn.scale, k.transpose(-1, -2))
        out = torch.matmul(torch.softmax(scores, -1, dtype=v.dtype), v)
        return attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))


class SubjectAttention:
    """Cross-attention that also hands out the subject token's probability map.

    ``subject``: int64 ``[B]`` token positions, set before each UNet call (None: off).
    ``maps``: per layer the head mean ``float32 [B, Q]``, emptied by the caller.
    """

    def __init__(self) -> None:
        self.subject: torch.Tensor | None = None
        self.maps: list[torch.Tensor] = []

    def install(self, unet: UNet2DConditionModel) -> None:
        """Use this processor in all cross-attention layers of ``unet``."""
        for name, module in unet.named_modules():
            if name.endswith("attn2"):
                module.set_processor(self)

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
        batch, queries, _ = hidden_states.shape
        q = _heads(attn, attn.to_q(hidden_states))
        k = _heads(attn, attn.to_k(encoder_hidden_states))
        v = _heads(attn, attn.to_v(encoder_hidden_states))
        probability = (torch.matmul(q, k.transpose(-1, -2)).float() * attn.scale).softmax(-1)
        if self.subject is not None:
            index = self.subject.clamp(min=0).view(batch, 1, 1, 1)
            index = index.expand(-1, attn.heads, queries, 1)
            self.maps.append(probability.gather(-1, index).squeeze(-1).mean(1))
        out = torch.matmul(probability.to(v.dtype), v).transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](out))


# ------------------------------------------------------------------------------ export


def _write_weights(module: torch.nn.Module, path: Path, prefix: str = "") -> None:
    """float16 safetensors; ``prefix`` is put before every tensor name that lacks it."""
    tensors = {}
    for name, value in module.state_dict().items():
        if name.endswith("position_ids"):
            continue
        name = name if name.startswith(prefix) else prefix + name
        tensors[name] = value.detach().cpu().to(torch.float16).contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)


def export(
    folder: Path,
    preset: Preset,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    recipe: dict,
) -> None:
    """Write the diffusers-layout directory, beside ``folder`` first, then moved file by file.

    ``recipe`` becomes ``mosaicbank.json``: the settings that suit this small model.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=folder.name + ".", suffix=".part", dir=folder.parent))
    write_tokenizer(part / "tokenizer", preset.merges)
    for name, module, weights in (
        ("unet", unet, "diffusion_pytorch_model.safetensors"),
        ("vae", vae, "diffusion_pytorch_model.safetensors"),
        ("text_encoder", text_encoder, "model.safetensors"),
    ):
        (part / name).mkdir()
        if name == "text_encoder":
            config = module.config.to_dict()
            config = {k: v for k, v in config.items() if not k.startswith("_")}
            config |= {"architectures": ["CLIPTextModel"], "dtype": "float32"}
            text = json.dumps(config, indent=2, sort_keys=True) + "\n"
            (part / name / "config.json").write_text(text)
            # Published CLIP checkpoints carry this prefix; transformers reads both spellings.
            _write_weights(module, part / name / weights, "text_model.")
        else:
            module.save_config(part / name)
            config = json.loads((part / name / "config.json").read_text())
            config = {k: v for k, v in config.items() if k != "_name_or_path"}
            (part / name / "config.json").write_text(json.dumps(config, indent=2) + "\n")
            _write_weights(module, part / name / weights)
    scheduler = DPMSolverMultistepScheduler(
        **NOISE,
        algorithm_type="dpmsolver++",
        solver_order=2,
        prediction_type="epsilon",
        timestep_spacing="linspace",
        steps_offset=1,
        use_karras_sigmas=False,
        lower_order_final=True,
    )
    scheduler.save_pretrained(part / "scheduler")
    (part / "model_index.json").write_text(
        json.dumps(
            {
                "_class_name": "StableDiffusionPipeline",
                "_diffusers_version": "0.30.0",
                "feature_extractor": [None, None],
                "image_encoder": [None, None],
                "requires_safety_checker": False,
                "safety_checker": [None, None],
                "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
                "text_encoder": ["transformers", "CLIPTextModel"],
                "tokenizer": ["transformers", "CLIPTokenizer"],
                "unet": ["diffusers", "UNet2DConditionModel"],
                "vae": ["diffusers", "AutoencoderKL"],
            },
            indent=2,
        )
        + "\n"
    )
    (part / "mosaicbank.json").write_text(json.dumps(recipe, indent=2) + "\n")
    for source in sorted(part.rglob("*")):
        if source.is_file():
            target = folder / source.relative_to(part)
            target.parent.mkdir(parents=True, exist_ok=True)
            source.replace(target)
    shutil.rmtree(part)


def describe(preset: Preset) -> dict:
    """A preset as plain data, for checkpoints and logs."""
    return asdict(preset)
