"""Tokenizer and text encoder against `transformers`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from parity.checkpoints import (
    CONTEXT,
    SD1,
    SD2,
    SHAPES,
    copy_checkpoint,
    edit_json,
    reference_tokenizer,
    weights_file,
)
from parity.reference import Pipeline, relative_error

PROMPTS = [
    "",
    "a photo of a single banana",
    "a photo of a single Teapot, pot for brewing tea; usually has a spout and handle",
    "  two\tspaces  and\na line ",
    "it's the bird's 2nd nest, isn't it? 1234 5.6",
    "naïve café, ÜBER straße — 日本語 🐕 e\u0301",
    "<|startoftext|> a <|endoftext|> b",
    "!!! ... ,,, a!b?c",
    "school_bus " * 60,
]


def from_pretrained(directory: Path):
    from mosaicbank import Generator

    return Generator.from_pretrained(str(directory), device="cpu", dtype="float32")


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_tokens_and_offsets(shape, prompt, checkpoint, generator):
    tokenizer = reference_tokenizer(checkpoint(shape) / "tokenizer")
    expected = tokenizer(
        prompt,
        padding="max_length",
        max_length=CONTEXT,
        truncation=True,
        return_offsets_mapping=True,
    )
    ids, offsets = generator(shape).tokenize(prompt)
    assert list(ids) == expected.input_ids
    assert [tuple(o) for o in offsets] == expected.offset_mapping


@pytest.mark.parametrize("form", ["vocab", "json"])
def test_both_forms_of_tokenizer_files(form, checkpoint, generator, tmp_path):
    directory = copy_checkpoint(checkpoint(SD2), tmp_path / "model")
    tokenizer = reference_tokenizer(directory / "tokenizer")
    if form == "json":
        for file in (directory / "tokenizer").iterdir():
            file.unlink()
        tokenizer.save_pretrained(directory / "tokenizer")
        assert (directory / "tokenizer" / "tokenizer.json").is_file()
        assert not (directory / "tokenizer" / "vocab.json").exists()
    ours = from_pretrained(directory)
    for prompt in PROMPTS:
        assert ours.tokenize(prompt) == generator(SD2).tokenize(prompt)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
def test_embeddings(shape, checkpoint, generator):
    expected = Pipeline.load(checkpoint(shape)).encode(PROMPTS).numpy()
    ours = generator(shape).encode_prompts(PROMPTS)
    assert ours.dtype == np.float32
    assert ours.shape == (len(PROMPTS), CONTEXT, shape.text_width)
    assert relative_error(ours, expected) <= 1e-4


def test_an_embedding_does_not_depend_on_its_batch(generator):
    ours = generator(SD1)
    together = ours.encode_prompts(PROMPTS)
    for index, prompt in enumerate(PROMPTS):
        assert np.array_equal(together[index], ours.encode_prompts([prompt])[0])


def test_tensors_with_the_prefix_of_published_checkpoints(checkpoint, generator, tmp_path):
    directory = copy_checkpoint(checkpoint(SD1), tmp_path / "model")
    file = weights_file(directory / "text_encoder")
    tensors = load_file(file)
    assert not any(name.startswith("text_model.") for name in tensors)
    prefixed = {f"text_model.{name}": tensor for name, tensor in tensors.items()}
    # Some published checkpoints carry this buffer.
    prefixed["text_model.embeddings.position_ids"] = torch.arange(CONTEXT)[None]
    save_file(prefixed, file, metadata={"format": "pt"})
    expected = generator(SD1).encode_prompts(PROMPTS[:3])
    assert np.array_equal(from_pretrained(directory).encode_prompts(PROMPTS[:3]), expected)


def test_the_penultimate_layer(checkpoint, generator):
    """`clip_skip=1` is what `diffusers` computes for it: the hidden state, then the norm."""
    pipeline = Pipeline.load(checkpoint(SD1))
    encoder: CLIPTextModel = pipeline.text_encoder
    ids = pipeline.token_ids(PROMPTS[:3])
    hidden = encoder(ids, output_hidden_states=True).hidden_states[-2]
    expected = encoder.final_layer_norm(hidden).numpy()
    ours = generator(SD1).encode_prompts(PROMPTS[:3], clip_skip=1)
    assert relative_error(ours, expected) <= 1e-4
    assert relative_error(ours, generator(SD1).encode_prompts(PROMPTS[:3])) > 1e-2


def test_sd2_ships_one_layer_less(checkpoint, tmp_path):
    """SD 2's text encoder lists the penultimate layer as its last: the config alone says so."""
    directory = copy_checkpoint(checkpoint(SD2), tmp_path / "model")
    layers = SD2.text["num_hidden_layers"] - 1
    file = weights_file(directory / "text_encoder")
    kept = {k: v for k, v in load_file(file).items() if f"layers.{layers}." not in k}
    save_file(kept, file, metadata={"format": "pt"})
    edit_json(directory / "text_encoder" / "config.json", num_hidden_layers=layers)
    expected = Pipeline.load(directory).encode(PROMPTS[:3]).numpy()
    ours = from_pretrained(directory).encode_prompts(PROMPTS[:3])
    assert relative_error(ours, expected) <= 1e-4


def test_the_two_activations_differ(checkpoint, tmp_path, generator):
    """That the parity above can tell `gelu` from `quick_gelu`."""
    directory = copy_checkpoint(checkpoint(SD1), tmp_path / "model")
    config = directory / "text_encoder" / "config.json"
    assert json.loads(config.read_text())["hidden_act"] == "quick_gelu"
    edit_json(config, hidden_act="gelu")
    other = from_pretrained(directory).encode_prompts(PROMPTS[1:3])
    assert relative_error(other, generator(SD1).encode_prompts(PROMPTS[1:3])) > 1e-3
