"""What is refused, and that the message names file, tensor or key, expected and found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from parity.checkpoints import SMALL, copy_checkpoint, edit_json, weights_file

PARTS = ["unet", "vae", "text_encoder"]
TENSOR = {
    "unet": "mid_block.attentions.0.proj_in.weight",
    "vae": "decoder.conv_out.bias",
    "text_encoder": "final_layer_norm.weight",
}


def from_pretrained(directory: Path, **options: Any) -> Any:
    from mosaicbank import Generator

    return Generator.from_pretrained(str(directory), **options)


@pytest.fixture
def model(checkpoint, tmp_path):
    return copy_checkpoint(checkpoint(SMALL), tmp_path / "model")


def refused(directory: Path, *words: str, error: Any = ValueError, **options: Any) -> None:
    with pytest.raises(error) as raised:
        from_pretrained(directory, **options)
    for word in words:
        assert word in str(raised.value), str(raised.value)


def change_tensors(component: Path, change: Any) -> Path:
    file = weights_file(component)
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return file


# --- tensors ---------------------------------------------------------------------------------


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_tensor(part, model):
    file = change_tensors(model / part, lambda t: t.pop(TENSOR[part]))
    refused(model, str(file), TENSOR[part], "nothing")


@pytest.mark.parametrize("part", PARTS)
def test_an_extra_tensor(part, model):
    file = change_tensors(model / part, lambda t: t.update({"lora.up": torch.zeros(2, 3)}))
    refused(model, str(file), "lora.up", "2, 3")


@pytest.mark.parametrize("part", PARTS)
def test_a_wrong_shape(part, model):
    name = TENSOR[part]

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = torch.zeros(7, *tensors[name].shape[1:])

    shape = list(load_file(weights_file(model / part))[name].shape)
    file = change_tensors(model / part, change)
    refused(model, str(file), name, str(shape[0]), "7")


@pytest.mark.parametrize("part", PARTS)
def test_a_wrong_dtype(part, model):
    name = TENSOR[part]

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = tensors[name].to(torch.int32)

    refused(model, str(change_tensors(model / part, change)), name, "I32")


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file(part, keep, model):
    file = weights_file(model / part)
    data = file.read_bytes()
    file.write_bytes(data[:keep])
    refused(model, str(file))


def test_a_header_of_any_length(model):
    file = weights_file(model / "unet")
    file.write_bytes((2**63).to_bytes(8, "little") + b"{}")
    refused(model, str(file))


# --- configurations --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "changes", "words"),
    [
        ("unet", {"act_fn": "relu"}, ["act_fn", "relu", "silu"]),
        ("unet", {"down_block_types": ["AttnDownBlock2D"] * 3}, ["AttnDownBlock2D"]),
        ("unet", {"down_block_types": ["DownBlock2D"] * 2}, ["down_block_types", "3", "2"]),
        ("unet", {"mid_block_type": "UNetMidBlock2D"}, ["mid_block_type", "UNetMidBlock2D"]),
        ("unet", {"class_embed_type": "timestep"}, ["class_embed_type", "timestep"]),
        ("unet", {"addition_embed_type": "text_time"}, ["addition_embed_type", "text_time"]),
        ("unet", {"block_out_channels": "wide"}, ["block_out_channels", "wide"]),
        ("unet", {"block_out_channels": ...}, ["block_out_channels"]),
        ("unet", {"attention_head_dim": 5}, ["attention_head_dim", "5"]),
        ("unet", {"attention_head_dim": [2, 4]}, ["attention_head_dim", "3", "2"]),
        ("unet", {"cross_attention_dim": 33}, ["cross_attention_dim", "33", "32"]),
        ("unet", {"in_channels": 9}, ["9", "4"]),
        ("unet", {"resnet_time_scale_shift": "scale_shift"}, ["resnet_time_scale_shift"]),
        ("unet", {"a_key_of_tomorrow": 3}, ["a_key_of_tomorrow", "3"]),
        ("vae", {"latent_channels": 16}, ["16", "4"]),
        ("vae", {"up_block_types": ["AttnUpDecoderBlock2D"] * 3}, ["AttnUpDecoderBlock2D"]),
        ("vae", {"scaling_factor": 0}, ["scaling_factor", "0"]),
        ("vae", {"norm_num_groups": 7}, ["norm_num_groups", "7"]),
        ("vae", {"_class_name": "AutoencoderTiny"}, ["AutoencoderTiny"]),
        ("text_encoder", {"hidden_act": "relu"}, ["hidden_act", "relu", "quick_gelu"]),
        ("text_encoder", {"hidden_size": ...}, ["hidden_size"]),
        ("text_encoder", {"num_attention_heads": 5}, ["num_attention_heads", "5"]),
    ],
    ids=lambda v: "-".join(f"{k}={x}" for k, x in v.items())[:50] if isinstance(v, dict) else "",
)
def test_values_of_config_json(part, changes, words, model):
    file = model / part / "config.json"
    edit_json(file, **changes)
    refused(model, str(file), *words)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"unet": 3}', "\x00\xff"])
def test_files_that_are_not_json_objects(text, model):
    for file in ("unet/config.json", "model_index.json", "scheduler/scheduler_config.json"):
        path = model / file
        before = path.read_bytes()
        path.write_text(text, encoding="latin-1")
        with pytest.raises((ValueError, OSError)) as raised:
            # A file of an unknown scheduler is read all the same: a recipe may name another.
            from_pretrained(model).scheduler_timesteps(None, 20)
        assert path.name in str(raised.value)
        path.write_bytes(before)


@pytest.mark.parametrize(
    "file",
    [
        "model_index.json",
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    ],
)
def test_a_file_that_is_not_there(file, model):
    (model / file).unlink()
    refused(model, file, error=FileNotFoundError)


def test_a_tokenizer_without_its_merges(model):
    (model / "tokenizer" / "merges.txt").unlink()
    refused(model, "merges.txt", error=FileNotFoundError)


def test_pipelines_of_other_families(model):
    edit_json(model / "model_index.json", text_encoder_2=["transformers", "CLIPTextModel"])
    refused(model, "model_index.json", "Stable Diffusion XL")
    edit_json(
        model / "model_index.json",
        text_encoder_2=...,
        transformer=["diffusers", "FluxTransformer2DModel"],
        unet=...,
    )
    refused(model, "model_index.json", "unet")


def test_directories_devices_and_dtypes(model, tmp_path):
    refused(tmp_path / "nowhere", "nowhere", error=FileNotFoundError)
    refused(model, "device", "tpu", "cuda", device="tpu")
    refused(model, "device", "cuda:99", device="cuda:99")
    refused(model, "dtype", "float64", "bfloat16", dtype="float64")


# --- what is asked of a generator --------------------------------------------------------------

NAMES = ["banana", "teapot", "dog", "cup"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"regions": 3}, ["regions", "1, 2 or 4", "3"]),
        ({"height": 66}, ["height", "66", "4"]),
        ({"overlap": [6, 8]}, ["overlap", "6", "8"]),
        ({"steps": 0}, ["steps", "0"]),
        ({"steps": "many"}, ["steps", "many"]),
        ({"guidance": -1}, ["guidance", "-1"]),
        ({"scheduler": "heun"}, ["scheduler", "heun", "dpm_solver"]),
        ({"window": {"kind": "round"}}, ["window", "round", "gaussian"]),
        ({"template": "a photo"}, ["template", "{category}"]),
        ({"masks.attention.levels": [7]}, ["masks", "attention", "levels [7]"]),
        ({"attention": {"levels": [7]}}, ["masks", "attention", "levels [7]"]),
        ({"masks": [{"kind": "guess"}]}, ["masks[0]", "guess", "attention"]),
        ({"checks": {"size": {"min_width": 900}}}, ["checks[0]", "size.min_width", "900"]),
        ({"keep": "some"}, ["keep", "some", "canvas"]),
        ({"clip_skip": 2}, ["clip_skip", "2"]),
    ],
    ids=lambda v: str(v) if isinstance(v, dict) else "",
)
def test_recipes(values, words, generator):
    base = {"height": 64, "width": 64, "steps": 2}
    with pytest.raises(ValueError) as raised:
        generator(SMALL).generate([NAMES], recipe={**base, **values}, seeds=[0])
    for word in words:
        assert word in str(raised.value)


def test_an_unknown_key_lists_the_known_ones(generator):
    from mosaicbank import Recipe

    for make in (lambda: Recipe(stepz=3), lambda: generator(SMALL).resolve_recipe({"stepz": 3})):
        with pytest.raises(ValueError, match="steps") as raised:
            make()
        assert "stepz" in str(raised.value)


def test_the_keys_of_a_recipe_are_those_of_the_crate(generator):
    from mosaicbank.generator import RECIPE_KEYS

    assert tuple(generator(SMALL).resolve_recipe()) == RECIPE_KEYS


@pytest.mark.parametrize("names", [NAMES[:3], [*NAMES, "bird"], []], ids=len)
def test_the_number_of_categories(names, generator):
    small = {"height": 64, "width": 64, "steps": 2}
    with pytest.raises(ValueError, match="regions"):
        generator(SMALL).generate([names], recipe=small, seeds=[0])


def test_empty_names_and_prompts(generator):
    from mosaicbank import Region

    gen = generator(SMALL)
    small = {"height": 64, "width": 64, "steps": 2}
    with pytest.raises(ValueError, match="category"):
        gen.generate([["banana", "", "dog", "cup"]], recipe=small, seeds=[0])
    with pytest.raises(ValueError, match="prompt"):
        gen.generate_canvas(64, 64, [Region(box=(0, 0, 64, 64), prompt=" ")], steps=2)
    with pytest.raises(ValueError, match="subject") as raised:
        region = Region(box=(0, 0, 64, 64), prompt="a photo of a dog", subject="cat")
        gen.generate_canvas(64, 64, [region], steps=2)
    assert "cat" in str(raised.value)
    with pytest.raises(ValueError, match="prompt"):
        long = Region(box=(0, 0, 64, 64), prompt="a photo " * 80 + "dog", subject="dog")
        gen.generate_canvas(64, 64, [long], steps=2)


def test_an_unknown_category(model):
    annotations = model.parent / "lvis.json"
    annotations.write_text(
        '{"images": [], "annotations": [], "categories": '
        '[{"id": 1, "name": "banana"}, {"id": 2, "name": "school_bus"}]}'
    )
    gen = from_pretrained(model, annotations=str(annotations))
    small = {"height": 64, "width": 64, "steps": 2, "regions": 1}
    assert len(gen.generate([["school_bus"]], recipe=small, seeds=[0])) == 1
    with pytest.raises(KeyError) as raised:
        gen.generate([["bananna"]], recipe=small, seeds=[0])
    assert "bananna" in str(raised.value)
    assert "banana" in str(raised.value).replace("bananna", "")


@pytest.mark.parametrize(
    ("box", "size", "words"),
    [
        ((0, 0, 62, 64), (64, 64), ["region 0", "62"]),
        ((0, 0, 64, 128), (64, 64), ["region 0", "128"]),
        ((32, 0, 32, 64), (64, 64), ["region 0"]),
        ((-4, 0, 32, 64), (64, 64), ["box", "-4"]),
        ((0, 0, 64, 64), (66, 64), ["66", "4"]),
    ],
)
def test_boxes_and_sizes_that_do_not_divide(box, size, words, generator):
    from mosaicbank import Region

    region = Region(box=box, prompt="a dog", subject="dog")
    with pytest.raises(ValueError) as raised:
        generator(SMALL).generate_canvas(*size, [region], steps=2)
    for word in words:
        assert word in str(raised.value)


def test_arrays_of_the_wrong_shape(generator):
    gen = generator(SMALL)
    small = {"height": 64, "width": 64, "steps": 2}
    for shape in [(1, 4, 8, 8), (2, 4, 32, 32), (4, 32, 32), (1, 3, 32, 32)]:
        with pytest.raises(ValueError, match="init_noise") as raised:
            noise = np.zeros(shape, dtype=np.float32)
            gen.generate([NAMES], recipe=small, seeds=[0], init_noise=noise)
        assert "32" in str(raised.value)
    with pytest.raises(ValueError, match="seeds"):
        gen.generate([NAMES], recipe=small, seeds=[0, 1])
    with pytest.raises((TypeError, ValueError)):
        gen.unet(np.zeros((1, 4, 8, 8)), 1.0, np.zeros((1, 77, 32)))
    wide = np.zeros((1, 77, 31), dtype=np.float32)
    with pytest.raises((ValueError, RuntimeError)):
        gen.unet(np.zeros((1, 4, 8, 8), dtype=np.float32), 1.0, wide)


def test_a_generator_works_on_after_a_refusal(generator):
    gen = generator(SMALL)
    small = {"height": 64, "width": 64, "steps": 2}
    with pytest.raises(ValueError):
        gen.generate([NAMES[:3]], recipe=small, seeds=[0])
    assert gen.generate([NAMES], recipe=small, seeds=[0])[0].image.shape == (128, 128, 3)
