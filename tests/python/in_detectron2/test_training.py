"""Training runs of a small Mask R-CNN in real Detectron2."""

from __future__ import annotations

import collections
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import material as made
import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.engine import HookBase, SimpleTrainer

import mosaicbank
from mosaicbank.detectron2 import (
    MosaicTrainer,
    build_mosaic_train_loader,
    mosaic_hooks,
    train_net,
)
from mosaicbank.detectron2.evaluation import category_ap

NAMES = list(made.CATEGORIES.values())


class Record(HookBase):
    """Keeps what every batch was made of, and does something at one iteration."""

    def __init__(self, at=None, do=None):
        self.batches, self.at, self.do = [], at, do

    def after_step(self):
        batch = self.trainer.data_loader.last_batch
        keys = ("index", "kind", "category")
        self.batches.append([tuple(s["mosaicbank"][k] for k in keys) for s in batch])
        if self.trainer.iter == self.at:
            self.do()


def losses(cfg):
    lines = (Path(cfg.OUTPUT_DIR) / "metrics.json").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [row for row in rows if "total_loss" in row]


def train(cfg, hook=None, resume=False):
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    trainer = MosaicTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    record = hook or Record()
    trainer.register_hooks([record])
    trainer.train()
    return trainer, record


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "method", "mask_format", "stage"),
    [
        (0, None, "polygon", "after"),
        (2, "fork", "bitmask", "before"),
        (2, "spawn", "polygon", "before"),
    ],
)
def test_thirty_iterations(cfg, bank, monkeypatch, workers, method, mask_format, stage):
    cfg = made.small_model(cfg)
    cfg.DATALOADER.NUM_WORKERS = workers
    cfg.INPUT.MASK_FORMAT = mask_format
    cfg.MOSAIC.PASTE.STAGE = stage
    before = torch.multiprocessing.get_start_method(allow_none=True)
    if method is not None:
        torch.multiprocessing.set_start_method(method, force=True)
    try:
        trainer, record = train(cfg)
    finally:
        torch.multiprocessing.set_start_method(before, force=True)
    assert trainer.iter == 30
    rows = losses(cfg)
    assert rows[-1]["iteration"] >= 19 and all(math.isfinite(r["total_loss"]) for r in rows)
    assert {"loss_mask", "loss_cls", "loss_box_reg", "loss_rpn_cls"} <= set(rows[-1])
    kinds = collections.Counter(kind for batch in record.batches for _, kind, _ in batch)
    assert sum(kinds.values()) == 60 and 5 <= kinds["mosaic"] <= 35 and kinds["miss"] == 0
    latest = {name: value for name, (value, _) in trainer.storage.latest().items()}
    counts = trainer.data_loader.counts
    assert counts.errors == latest["mosaic/errors"] == 0
    assert counts.pasted > 20 and latest["mosaic/pasted_per_sample"] > 0
    assert latest["mosaic/stock"] == 12 and latest["mosaic/engine_state"] == 0
    shares = [v for v, _ in trainer.storage.history("mosaic/share").values()]
    assert len(shares) == 6 and np.mean(shares) == pytest.approx(counts.mosaics / 60)


@pytest.mark.slow
def test_resume_in_mid_epoch(cfg, bank):
    """The batches of a run that stops at 7 and is resumed are those of one that does not stop."""
    cfg = made.small_model(cfg)
    cfg.DATALOADER.NUM_WORKERS = 2
    cfg.SOLVER.MAX_ITER = 14
    cfg.SOLVER.CHECKPOINT_PERIOD = 7
    _, whole = train(cfg)

    class Stop(Exception):
        pass

    def stop():
        raise Stop

    cfg.OUTPUT_DIR += "-stopped"
    first = Record(at=8, do=stop)  # two iterations after the checkpoint
    with pytest.raises(Stop):
        train(cfg, first)
    resumed_trainer, second = train(cfg, resume=True)
    assert resumed_trainer.start_iter == 7
    assert first.batches == whole.batches[:9]
    assert second.batches == whole.batches[7:]
    kinds = {kind for batch in second.batches for _, kind, _ in batch}
    assert kinds == {"real", "mosaic"}


@pytest.mark.slow
def test_three_lines_for_a_trainer_of_ones_own(cfg, bank):
    from detectron2.modeling import build_model

    cfg = made.small_model(cfg)
    model = build_model(cfg)
    loader = build_mosaic_train_loader(cfg)
    trainer = SimpleTrainer(model, loader, torch.optim.SGD(model.parameters(), 1e-3))
    trainer.register_hooks(mosaic_hooks(loader))
    images = []

    class Pictures(HookBase):
        def after_step(self):
            images.extend(self.trainer.storage._vis_data)
            self.trainer.storage.clear_images()

    trainer.register_hooks([Pictures()])
    trainer.train(0, 10)
    assert loader.counts.samples == 20
    assert "mosaic/share" in trainer.storage.latest()
    name, picture, _ = images[0]
    assert name == "mosaic/sample" and picture.shape[0] == 3 and picture.dtype == np.uint8
    state = trainer.state_dict()["hooks"]["MosaicHook"]
    assert state["ranks"][0]["drawn"] == 20
    assert mosaic_hooks(iter([])) == []


@pytest.mark.slow
def test_evaluation_hands_ap_to_the_bank(cfg, bank, training_set):
    cfg = made.small_model(cfg)
    cfg.DATASETS.TEST = (training_set,)
    cfg.SOLVER.MAX_ITER = 2
    train(cfg)
    (file,) = (Path(cfg.MOSAIC.BANK) / "feedback").glob("*")
    written = json.loads(file.read_text())
    assert file.name == "evaluation-00000002.json"
    assert (written["version"], written["iteration"]) == (1, 2)
    assert written["task"] in ("segm", "bbox")
    assert {(c["id"], c["name"]) for c in written["categories"]} == set(made.CATEGORIES.items())
    ring = next(c for c in written["categories"] if c["id"] == 13)
    assert ring["ap"] is None  # no ground truth
    others = [c["ap"] for c in written["categories"] if c["id"] != 13]
    assert all(ap is None or 0 <= ap <= 100 for ap in others)


def test_per_category_ap_out_of_results():
    segm = {"AP": 20.0, "AP50": 30.0, "AP-cat": 10.0, "AP-big dog": 50.0}
    bbox = {"AP": 1.0, "AP-cat": 2.0}
    expected = ("segm", {"cat": 10.0, "big dog": 50.0})
    assert category_ap({"bbox": bbox, "segm": segm}) == expected
    assert category_ap({"val": {"bbox": bbox, "segm": segm}, "other": {}}) == expected
    assert category_ap({"bbox": bbox}) == ("bbox", {"cat": 2.0})
    assert category_ap({"bbox": {"AP": 1.0}}) == (None, {})


def test_lvis_evaluator_reports_every_category(training_set, tmp_path, monkeypatch):
    """Perfect predictions have AP 100 in every category with ground truth."""
    monkeypatch.setattr(np, "float", float, raising=False)  # lvis 0.5.3 wants it
    from detectron2.structures import Boxes, Instances

    from mosaicbank import masks
    from mosaicbank.detectron2 import LVISCategoryEvaluator

    data = json.loads(Path(MetadataCatalog.get(training_set).json_file).read_text())
    for a in data["annotations"]:
        a["area"] = float(masks.rle_area(masks.rle_from_polygons(a["segmentation"], 120, 128)))
    path = tmp_path / "lvis.json"
    path.write_text(json.dumps(data))
    name = f"lvis_{tmp_path.name}"
    classes = [c["name"] for c in data["categories"]]
    MetadataCatalog.get(name).set(
        json_file=str(path),
        evaluator_type="lvis",
        thing_classes=classes,
        thing_dataset_id_to_contiguous_id={c["id"]: i for i, c in enumerate(data["categories"])},
    )
    evaluator = LVISCategoryEvaluator(name, tasks=("segm",), distributed=False)
    evaluator.reset()
    contiguous = {c["id"]: i for i, c in enumerate(data["categories"])}
    for image in data["images"]:
        mine = [a for a in data["annotations"] if a["image_id"] == image["id"]]
        size = (image["height"], image["width"])
        found = Instances(size)
        boxes = np.array([a["bbox"] for a in mine], dtype=np.float32)
        boxes[:, 2:] += boxes[:, :2]
        found.pred_boxes = Boxes(torch.from_numpy(boxes))
        found.scores = torch.ones(len(mine))
        found.pred_classes = torch.tensor([contiguous[a["category_id"]] for a in mine])
        rles = [masks.rle_from_polygons(a["segmentation"], *size) for a in mine]
        found.pred_masks = torch.from_numpy(np.stack([masks.rle_decode(r) for r in rles]))
        evaluator.process([{"image_id": image["id"]}], [{"instances": found}])
    results = evaluator.evaluate()["segm"]
    task, aps = category_ap({"segm": results})
    assert task == "segm" and set(aps) == set(classes)
    assert math.isnan(aps["ring_(toy)"])
    assert all(ap > 99.9 for name, ap in aps.items() if name != "ring_(toy)"), aps
    assert results["AP"] > 99.9


# --- the command -----------------------------------------------------------------------------


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "mosaicbank.detectron2.train_net", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_wrong_setting_ends_the_command_at_once():
    done = run("MOSAIC.ENABLED", "True", "MOSAIC.PASTE.STAGE", "between")
    assert done.returncode == 2
    assert "expected one of 'before', 'after', got 'between'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_command_trains_and_resumes(cfg, bank, training_set, tmp_path, monkeypatch):
    """In this process, where the training set is registered."""
    cfg = made.small_model(cfg)
    cfg.SOLVER.MAX_ITER = 2
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    path = tmp_path / "config.yaml"
    path.write_text(cfg.dump())
    assert train_net.run(["--config-file", str(path), "--num-gpus", "1"]) == 0
    assert (tmp_path / "run" / "model_final.pth").exists()
    assert train_net.run(["--config-file", str(path), "--resume", "SOLVER.MAX_ITER", "4"]) == 0
    saved = torch.load(tmp_path / "run" / "model_final.pth", weights_only=False)
    assert saved["iteration"] == 3
    assert saved["trainer"]["hooks"]["MosaicHook"]["ranks"][0]["drawn"] == 8


def test_the_samples_of_two_ranks_differ():
    from mosaicbank.detectron2.sampler import MosaicTrainingSampler

    drawn = []
    for rank in range(2):
        stream = mosaicbank.MosaicSampler(
            50, mix_ratio=0.2, slot_weights=np.ones(4), seed=1, rank=rank, world_size=2, keyed=True
        )
        sampler = MosaicTrainingSampler(stream, 2, False)
        drawn.append(list(itertools.islice(sampler, 100)))
        assert [sampler.position_of(i) for i in drawn[-1]] == list(range(100))
    keys = [[mosaicbank.decode_index(i, 50, 4)[2] for i in d] for d in drawn]
    assert not set(keys[0]) & set(keys[1])
