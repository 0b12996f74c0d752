"""UNet and VAE against `diffusers`, and the forms in which their weights come."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from parity.checkpoints import (
    CONTEXT,
    SD1,
    SD2,
    SHAPES,
    SMALL,
    copy_checkpoint,
    edit_json,
    weights_file,
    write_checkpoint,
)
from parity.reference import Pipeline, relative_error

# Sides that halve evenly, and sides whose halves are rounded up at one, two or all levels.
SIZES = [(16, 16), (9, 13), (10, 14), (17, 19), (8, 24), (5, 31)]


def inputs(shape, batch: int, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(batch * 1000 + size[0] * 100 + size[1])
    latents = torch.randn(batch, 4, *size)
    return latents, torch.randn(batch, CONTEXT, shape.text_width)


def from_pretrained(directory: Path, dtype: str = "float32"):
    from mosaicbank import Generator

    return Generator.from_pretrained(str(directory), device="cpu", dtype=dtype)


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
def test_unet_output(shape, size, checkpoint, generator):
    unet = Pipeline.load(checkpoint(shape)).unet
    latents, embeddings = inputs(shape, 2, size)
    for timestep in (1.0, 501.0, 979.2, 999.0):
        expected = unet(latents, torch.tensor(timestep), embeddings).sample.numpy()
        ours = generator(shape).unet(latents.numpy(), timestep, embeddings.numpy())
        assert ours.dtype == np.float32
        assert relative_error(ours, expected) <= 1e-4


def test_unet_rows_do_not_depend_on_each_other(generator):
    latents, embeddings = inputs(SD1, 4, (9, 13))
    ours = generator(SD1)
    together = ours.unet(latents.numpy(), 301.0, embeddings.numpy())
    for row in range(4):
        alone = ours.unet(latents[row : row + 1].numpy(), 301.0, embeddings[row : row + 1].numpy())
        assert relative_error(together[row : row + 1], alone) <= 1e-5


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
def test_vae_decode(shape, size, checkpoint, generator):
    vae = Pipeline.load(checkpoint(shape)).vae
    latents, _ = inputs(shape, 2, size)
    expected = vae.decode(latents / vae.config.scaling_factor).sample.clamp(-1, 1).numpy()
    ours = generator(shape).decode(latents.numpy())
    assert ours.shape == (2, 3, size[0] * shape.vae_factor, size[1] * shape.vae_factor)
    assert ours.dtype == np.float32
    assert relative_error(np.clip(ours, -1, 1), expected) <= 1e-4


def test_the_scaling_factor_is_the_configs(checkpoint, tmp_path):
    """SDXL's 0.13025 in place of SD 1's value: read from the file, not assumed."""
    directory = copy_checkpoint(checkpoint(SD1), tmp_path / "model")
    edit_json(directory / "vae" / "config.json", scaling_factor=0.13025)
    vae = Pipeline.load(directory).vae
    latents, _ = inputs(SD1, 1, (9, 13))
    expected = vae.decode(latents / 0.13025).sample.clamp(-1, 1).numpy()
    ours = np.clip(from_pretrained(directory).decode(latents.numpy()), -1, 1)
    assert relative_error(ours, expected) <= 1e-4


def test_vae_of_published_checkpoints(checkpoint, generator, tmp_path):
    """Older files call the middle attention's layers otherwise, and hold 1x1 convolutions."""
    directory = copy_checkpoint(checkpoint(SD1), tmp_path / "model")
    file = weights_file(directory / "vae")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, tensor in load_file(file).items():
        target = name
        if ".attentions.0." in name:
            for new_name, old_name in old.items():
                target = target.replace(new_name, old_name)
        renamed[target] = tensor
    assert any("proj_attn" in name for name in renamed)
    save_file(renamed, file, metadata={"format": "pt"})
    latents, _ = inputs(SD1, 1, (8, 8))
    expected = generator(SD1).decode(latents.numpy())
    assert np.array_equal(from_pretrained(directory).decode(latents.numpy()), expected)


# --- forms of weight files -------------------------------------------------------------------


def unet_output(generator, shape=SD1) -> np.ndarray:
    latents, embeddings = inputs(shape, 1, (9, 13))
    return generator.unet(latents.numpy(), 501.0, embeddings.numpy())


def shard(component: Path, parts: int) -> None:
    """Splits the component's one file into shards with an index, as large checkpoints come."""
    file = weights_file(component)
    tensors = load_file(file)
    names = sorted(tensors)
    file.unlink()
    weight_map = {}
    for part in range(parts):
        shard_name = f"{file.stem}-{part + 1:05}-of-{parts:05}.safetensors"
        mine = {name: tensors[name] for name in names[part::parts]}
        save_file(mine, component / shard_name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(mine, shard_name))
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}}
    index["weight_map"] = weight_map
    target = component / f"{file.name}.index.json"
    target.write_text(json.dumps(index))


def test_sharded_weights(checkpoint, generator, tmp_path):
    directory = copy_checkpoint(checkpoint(SD1), tmp_path / "model")
    shard(directory / "unet", 3)
    shard(directory / "text_encoder", 2)
    # The reference reads what we wrote: the form is right.
    Pipeline.load(directory)
    ours = from_pretrained(directory)
    assert np.array_equal(unet_output(ours), unet_output(generator(SD1)))
    assert np.array_equal(ours.encode_prompts(["a dog"]), generator(SD1).encode_prompts(["a dog"]))


def test_a_shard_that_is_missing_is_named(checkpoint, tmp_path):
    directory = copy_checkpoint(checkpoint(SD1), tmp_path / "model")
    shard(directory / "unet", 3)
    gone = directory / "unet" / "diffusion_pytorch_model-00002-of-00003.safetensors"
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=gone.name):
        from_pretrained(directory)


@pytest.mark.parametrize("sharded", [False, True])
def test_fp16_variant(sharded, checkpoint, tmp_path):
    """`*.fp16.safetensors` are read where there is no other, into the dtype asked for."""
    directory = copy_checkpoint(checkpoint(SD1), tmp_path / "model")
    for part in ("unet", "vae", "text_encoder"):
        file = weights_file(directory / part)
        half = {name: tensor.half() for name, tensor in load_file(file).items()}
        file.unlink()
        save_file(half, file.with_name(f"{file.stem}.fp16.safetensors"))
    if sharded:
        file = weights_file(directory / "unet")
        tensors = load_file(file)
        file.unlink()
        first = "diffusion_pytorch_model.fp16-00001-of-00001.safetensors"
        save_file(tensors, directory / "unet" / first)
        index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, first)}
        name = "diffusion_pytorch_model.safetensors.index.fp16.json"
        (directory / "unet" / name).write_text(json.dumps(index))
    ours = unet_output(from_pretrained(directory))
    unet = UNet2DConditionModel.from_pretrained(
        str(directory / "unet"), variant="fp16", torch_dtype=torch.float32
    ).eval()
    latents, embeddings = inputs(SD1, 1, (9, 13))
    expected = unet(latents, torch.tensor(501.0), embeddings).sample.numpy()
    assert relative_error(ours, expected) <= 1e-4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("shape", [SD1, SD2], ids=lambda s: s.name)
def test_half_precision_is_close(dtype, shape, checkpoint, generator):
    ours = unet_output(from_pretrained(checkpoint(shape), dtype), shape)
    expected = unet_output(generator(shape), shape)
    assert 0 < relative_error(ours, expected) <= (5e-2 if dtype == "bfloat16" else 1e-2)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("form", [".bin", ".pt"])
def test_pickles_are_refused(part, form, checkpoint, tmp_path):
    directory = copy_checkpoint(checkpoint(SMALL), tmp_path / "model")
    file = weights_file(directory / part)
    name = file.name
    base = "pytorch_model" if part == "text_encoder" else "diffusion_pytorch_model"
    torch.save(load_file(file), file.with_name(base + form))
    file.unlink()
    with pytest.raises((FileNotFoundError, ValueError)) as raised:
        from_pretrained(directory)
    assert name in str(raised.value)
    assert base + form in str(raised.value)


# --- the real size ---------------------------------------------------------------------------

SD15_UNET = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}


@pytest.mark.skipif(
    os.environ.get("MOSAICBANK_LONG_TESTS", "") in ("", "0"),
    reason="860 M parameters, 3.4 GB: make test-long",
)
def test_unet_of_sd15s_real_shape(tmp_path):
    from dataclasses import replace

    text = {**SD1.text, "hidden_size": 768, "intermediate_size": 768, "num_attention_heads": 12}
    shape = replace(SD1, name="sd15", unet=SD15_UNET, text=text)
    directory = write_checkpoint(shape, tmp_path / "model")
    unet = UNet2DConditionModel.from_pretrained(str(directory / "unet")).eval()
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964
    latents, embeddings = inputs(shape, 1, (48, 64))
    expected = unet(latents, torch.tensor(501.0), embeddings).sample.numpy()
    del unet
    ours = from_pretrained(directory).unet(latents.numpy(), 501.0, embeddings.numpy())
    assert relative_error(ours, expected) <= 1e-4
