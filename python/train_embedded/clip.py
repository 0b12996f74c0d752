"""The scorer: a small CLIP that says how well a picture fits a prompt.

    python clip.py train  --art build/art/art.zip --extra build/art/extra.zip \\
        --run build/clip --minutes 60
    python clip.py export --art build/art/art.zip --run build/clip --to scorer
    python clip.py judge  --art build/art/art.zip --scorer scorer --work build/clip_judge

Both towers in ``transformers``' ``CLIPModel`` layout, with the embedded model's tokenizer. It is
trained on composed pictures in every drawing style but one (OpenMoji): every picture against one
text of each category (name, synonym or definition, in several templates). ``judge`` measures it
on the style that it never saw, and on pictures that the embedded model generates.

Training checkpoints into ``--run``, stops cleanly on Ctrl-C and goes on with the same command.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from augment import SIDE, Pool, to_input
from compose import TRAIN_STYLES, Art, compose, prompt, readable, subject
from prepare import EXTRA_STYLES, HELD_OUT_STYLES
from safetensors.torch import save_file
from tqdm import tqdm
from training import Budget, Ema, Stop, load, save
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

HERE = Path(__file__).resolve().parent
EMBEDDED = HERE.parent / "mosaicbank" / "models" / "embedded"
SCORER = HERE / "scorer"
RATE, BATCH = 1e-3, 64
CHANGE = 0.4
"""How far the training pictures' shape and colour go (see ``augment.Pool``)."""
MAX_TOKENS = 77
KEEP = 0.5
"""Share of a picture's patches that training reads (arXiv 2212.00794) until ``WHOLE``."""
WHOLE = 0.6
"""Progress from which training reads all patches."""
TEMPLATES = (
    "a photo of a single {}",
    "a photo of a {}",
    "a drawing of a {}",
    "a picture of one {}",
    "a small {} on a plain background",
    "{}",
)


def make_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """The untrained model: 64 px pictures in patches of 8 px; 2.7 million parameters in all."""
    shared = {"hidden_act": "quick_gelu", "projection_dim": 128}
    config = CLIPConfig(
        text_config={
            **shared,
            "vocab_size": len(tokenizer),
            "hidden_size": 96,
            "intermediate_size": 384,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "max_position_embeddings": MAX_TOKENS,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.eos_token_id,
        },
        vision_config={
            **shared,
            "hidden_size": 160,
            "intermediate_size": 640,
            "num_hidden_layers": 5,
            "num_attention_heads": 5,
            "image_size": SIDE,
            "patch_size": 8,
        },
        projection_dim=128,
        logit_scale_init_value=2.6592,
    )
    return CLIPModel(config)


def image_features(
    model: CLIPModel, images: torch.Tensor, kept: torch.Tensor | None = None
) -> torch.Tensor:
    """Unit vectors ``[B, 128]`` of pictures ``[B, 3, 64, 64]`` in -1..1.

    ``kept``: int64 ``[B, K]``, the patches that are read (None: all of them).
    """
    vision = model.vision_model
    tokens = vision.embeddings(images)
    if kept is not None:
        chosen = torch.cat([torch.zeros_like(kept[:, :1]), kept + 1], 1)
        tokens = tokens.gather(1, chosen[..., None].expand(-1, -1, tokens.shape[-1]))
    hidden = vision.encoder(inputs_embeds=vision.pre_layrnorm(tokens)).last_hidden_state
    pooled = vision.post_layernorm(hidden[:, 0])
    return F.normalize(model.visual_projection(pooled).float(), dim=-1)


def text_features(model: CLIPModel, tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Unit vectors ``[B, 128]`` of texts."""
    ids = tokenizer(
        texts, padding="longest", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
    pooled = model.text_model(input_ids=ids).pooler_output
    return F.normalize(model.text_projection(pooled).float(), dim=-1)


def text_of(rng: np.random.Generator, name: str, definition: str, synonyms: list[str]) -> str:
    """A training text of a category: a third of them are the generator's own prompt."""
    draw = rng.random()
    if draw < 0.35:
        return prompt(name, definition)
    if draw < 0.5:
        return prompt(name, None)
    words = name if draw < 0.75 else synonyms[rng.integers(len(synonyms))]
    text = TEMPLATES[rng.integers(len(TEMPLATES))].format(readable(words))
    return f"{text}, {definition}" if rng.random() < 0.3 else text


# ----------------------------------------------------------------------------- figures


@torch.no_grad()
def zero_shot(model: CLIPModel, tokenizer, art: Art, texts: list[str], each: int) -> dict:
    """Top-1 over the categories of ``art`` on ``each`` composed pictures of every category.

    ``texts``: one per category of ``art``. The pictures are those of ``compose.py`` as they are.
    """
    rng = np.random.default_rng(11)
    words = text_features(model, tokenizer, texts)
    right = []
    for number, name in enumerate(art.names):
        made = [compose(rng, art.draw(rng, name), SIDE, SIDE)[0] for _ in range(each)]
        features = image_features(model, to_input(np.stack(made)))
        right.append(((features @ words.T).argmax(1) == number).float().mean().item())
    order = np.argsort(right)
    return {
        "top1": float(np.mean(right)),
        "pictures": each * len(right),
        "worst": {art.names[i]: round(right[i], 3) for i in order[:12]},
    }


def auc(good: np.ndarray, bad: np.ndarray) -> float:
    """Area under the ROC curve: how often a value of ``good`` is above one of ``bad``."""
    order = np.sort(bad)
    below = np.searchsorted(order, good, "left") + np.searchsorted(order, good, "right")
    return float(below.mean() / (2 * len(bad)))


# ---------------------------------------------------------------------------- training


def arts(args: argparse.Namespace) -> tuple[Art, Art]:
    """The pictures for training, and those of the style that is left out."""
    seen = Art(args.art, TRAIN_STYLES, tier=args.tier)
    if args.extra is not None:
        seen.extend(args.extra, EXTRA_STYLES)
    return seen, Art(args.art, HELD_OUT_STYLES, tier=args.tier)


def train(args: argparse.Namespace) -> None:
    """Train, or go on."""
    seen, unseen = arts(args)
    curated = json.loads((HERE / "curated.json").read_text())
    synonyms = {c["name"]: c["synonyms"] for c in curated}
    tokenizer = CLIPTokenizer.from_pretrained(args.model / "tokenizer")
    vae = None
    if args.vae is not None:
        from diffusers import AutoencoderKL

        vae = AutoencoderKL.from_pretrained(args.vae / "vae").eval()
    model = make_clip(tokenizer)
    ema = Ema([model], 0.998)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98), fused=True)
    path = args.run / "clip.pt"
    state = load(path) or {}
    if state:
        if state["categories"] != seen.names:
            raise SystemExit(f"clip: {path} was trained on other categories; take another --run")
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        ema.average = state["ema"]
    budget = Budget(args.minutes, args.samples, state)
    pool = Pool(seen, vae, [args.seed, budget.steps], CHANGE)
    rng = np.random.default_rng([args.seed, budget.steps, 1])
    patches = (SIDE // 8) ** 2
    stop, saved, recent = Stop(), time.monotonic(), []
    log = (args.run / "clip_log.jsonl").open("a")

    def checkpoint(each: int) -> None:
        save(
            path,
            {
                "model": model.state_dict(),
                "optimiser": optimiser.state_dict(),
                "ema": ema.average,
                "categories": seen.names,
                **budget.state(),
            },
        )
        ema.swap()
        found = {
            key: zero_shot(model, tokenizer, art, prompts(art), each)["top1"]
            for key, art in (("seen", seen), ("left_out", unseen))
        }
        ema.swap()
        loss, hit = np.mean(recent[-200:] or [(0, 0)], axis=0)
        entry = {**budget.state(), "loss": float(loss), "hit": float(hit), **found}
        log.write(json.dumps({**entry, "time": int(time.time())}) + "\n")
        log.flush()

    bar = tqdm(total=100, unit="%", desc="clip", mininterval=10)
    while budget.progress < 1 and not stop.asked:
        for group in optimiser.param_groups:
            group["lr"] = budget.rate(RATE, 300, 0.6)
        images, _, labels = pool.batch(BATCH)
        texts = [text_of(rng, n, seen.definitions[n], synonyms[n]) for n in seen.names]
        kept = None
        if budget.progress < WHOLE:
            scores = torch.from_numpy(rng.random((BATCH, patches)))
            kept = scores.argsort(1)[:, : round(KEEP * patches)]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            words = text_features(model, tokenizer, texts)
            features = image_features(model, images, kept)
        logits = model.logit_scale.exp() * features @ words.T
        loss = F.cross_entropy(logits, labels, label_smoothing=0.05)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        with torch.no_grad():
            model.logit_scale.clamp_(max=4.6052)
        ema.update(budget.steps)
        budget.tick(BATCH)
        recent.append((loss.item(), (logits.argmax(1) == labels).float().mean().item()))
        bar.update(max(0, min(100, 100 * budget.progress) - bar.n))
        if time.monotonic() - saved > 60 * args.save_minutes:
            checkpoint(2)
            saved = time.monotonic()
    checkpoint(4)


def prompts(art: Art) -> list[str]:
    """The generator's prompt of every category of ``art``."""
    return [prompt(n, art.definitions[n]) for n in art.names]


# ------------------------------------------------------------------------------ export


def run_export(args: argparse.Namespace) -> None:
    """The averaged weights as a ``transformers`` directory: float16, at most 6 MB in all."""
    state = load(args.run / "clip.pt")
    if state is None:
        raise SystemExit(f"clip: no checkpoint {args.run}/clip.pt; run the stage `train` first")
    part = args.to.with_name(args.to.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for source in sorted((args.model / "tokenizer").iterdir()):
        shutil.copyfile(source, part / source.name)
    tokenizer = CLIPTokenizer.from_pretrained(part)
    model = make_clip(tokenizer)
    ema = Ema([model], 0.0)
    ema.average = state["ema"]
    ema.swap()
    tensors = {
        name: value.detach().to(torch.float16).contiguous()
        for name, value in model.state_dict().items()
        if not name.endswith("position_ids")
    }
    save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})
    (part / "model.safetensors").chmod(0o644)
    config = model.config.to_dict() | {"architectures": ["CLIPModel"], "dtype": "float32"}
    config = {k: v for k, v in config.items() if not k.startswith("_")}
    (part / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": SIDE},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": SIDE, "width": SIDE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "do_convert_rgb": True,
    }
    (part / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
    args.to.mkdir(parents=True, exist_ok=True)
    for source in sorted(part.iterdir()):
        source.replace(args.to / source.name)
    part.rmdir()
    size = sum(p.stat().st_size for p in args.to.iterdir()) / 1e6
    print(f"{args.to}: {size:.2f} MB, {state['samples']} samples, {len(state['categories'])} names")


# ------------------------------------------------------------------------------- judge


def run_judge(args: argparse.Namespace) -> dict:
    """Zero-shot figures of every style group, and the AUC on generated pictures."""
    model = CLIPModel.from_pretrained(args.scorer, dtype=torch.float32).eval()
    tokenizer = CLIPTokenizer.from_pretrained(args.scorer)
    listing = json.loads((args.model / "categories.json").read_text())["categories"]
    names = {c["name"] for c in listing}
    report: dict = {"categories": len(names)}
    for key, styles in (("seen", TRAIN_STYLES), ("left_out", HELD_OUT_STYLES)):
        art = Art(args.art, styles)
        art = art.only(names & set(art.names))
        bare = [prompt(n, None) for n in art.names]
        report[f"zero_shot_{key}"] = zero_shot(model, tokenizer, art, prompts(art), args.each)
        report[f"zero_shot_{key}_by_name_alone"] = zero_shot(model, tokenizer, art, bare, args.each)
    art = Art(args.art).only(names)
    features = image_features_of(model, generated(args, art))
    rng = np.random.default_rng(args.seed)
    count = len(art.names)
    labels = np.repeat(np.arange(count), args.generated)
    for key, texts in (
        ("", prompts(art)),
        ("_by_name_alone", [prompt(n, None) for n in art.names]),
    ):
        with torch.no_grad():
            scores = (features @ text_features(model, tokenizer, texts).T).numpy()
        good = scores[np.arange(len(labels)), labels]
        wrong = (labels[:, None] + rng.integers(1, count, (len(labels), 20))) % count
        bad = np.take_along_axis(scores, wrong, 1)
        report[f"generated{key}"] = {
            "pictures": len(labels),
            "auc": auc(good, bad.ravel()),
            "right_above_its_wrong": float((good[:, None] > bad).mean()),
            "top1": float((scores.argmax(1) == labels).mean()),
            "mean_right": float(good.mean()),
            "mean_wrong": float(bad.mean()),
        }
    return report


@torch.no_grad()
def image_features_of(model: CLIPModel, images: list[np.ndarray]) -> torch.Tensor:
    """Unit vectors of pictures ``uint8 [H, W, 3]`` of any size."""
    sized = [cv2.resize(i, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for i in images]
    return torch.cat([image_features(model, b) for b in to_input(np.stack(sized)).split(64)])


def generated(args: argparse.Namespace, art: Art) -> list[np.ndarray]:
    """``--generated`` pictures of every category by the embedded model, kept in ``--work``."""
    from judge import Project, Reference

    path = args.work / f"generated_{args.generated}_{args.seed}.npz"
    if path.exists():
        return list(np.load(path)["images"])
    recipe = json.loads((args.model / "mosaicbank.json").read_text())["recipe"]
    pipeline = (Project if args.pipeline == "mosaicbank" else Reference)(args.model)
    images = []
    for number, name in enumerate(tqdm(art.names, desc="generated", mininterval=5)):
        for k in range(args.generated):
            seed = args.seed + 1000 * number + k
            options = (recipe["height"], recipe["steps"], recipe["guidance"], seed)
            text = prompt(name, art.definitions[name])
            images.append(pipeline.generate(text, subject(name), *options).image)
    args.work.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, images=np.stack(images))
    return images


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=("train", "export", "judge"))
    parser.add_argument("--art", type=Path, required=True, help="art.zip made by prepare.py")
    parser.add_argument("--extra", type=Path, help="extra.zip made by prepare.py --extra")
    parser.add_argument("--run", type=Path, help="folder for checkpoints (train, export)")
    parser.add_argument("--to", type=Path, help="directory to export to")
    parser.add_argument("--scorer", type=Path, default=SCORER, help="directory to judge")
    parser.add_argument(
        "--model",
        type=Path,
        default=EMBEDDED,
        help="the embedded model: its tokenizer (train, export), its pictures (judge)",
    )
    parser.add_argument("--work", type=Path, help="generated pictures go here (judge)")
    parser.add_argument("--json", type=Path, help="write the judgement here")
    parser.add_argument("--pipeline", choices=("mosaicbank", "reference"), default="mosaicbank")
    parser.add_argument(
        "--generated", type=int, default=3, help="generated pictures per category (judge)"
    )
    parser.add_argument("--each", type=int, default=10, help="composed pictures per category")
    parser.add_argument("--tier", type=int, choices=(1, 2, 3, 4), default=2)
    parser.add_argument(
        "--vae", type=Path, help="a model's directory: a quarter of the pictures go through its VAE"
    )
    parser.add_argument("--minutes", type=float, help="active minutes, earlier runs included")
    parser.add_argument("--samples", type=int, help="training samples, earlier runs included")
    parser.add_argument("--save-minutes", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    for path in (args.art, args.extra):
        if path is not None and not path.is_file():
            parser.error(f"{path}: no such file; make it with prepare.py")
    needed = {"train": ("run",), "export": ("run", "to"), "judge": ("work",)}[args.stage]
    for option in needed:
        if getattr(args, option) is None:
            parser.error(f"the stage `{args.stage}` needs --{option}")
    if args.threads:
        torch.set_num_threads(args.threads)
        cv2.setNumThreads(args.threads)
    torch.manual_seed(args.seed)
    if args.stage == "train":
        args.run.mkdir(parents=True, exist_ok=True)
        train(args)
    elif args.stage == "export":
        run_export(args)
    else:
        report = run_judge(args)
        print(json.dumps(report, indent=1))
        if args.json is not None:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
