"""LazyConfig: the shipped config, and a training run with a small model."""

from __future__ import annotations

from pathlib import Path

import material as made
import pytest
import torch
from detectron2.config import LazyCall, LazyConfig, get_cfg
from detectron2.data import (
    DatasetMapper,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.solver import WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import CosineParamScheduler
from omegaconf import OmegaConf

from mosaicbank.detectron2 import add_mosaic_config, lazy, resolve_settings, with_mosaics

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "detectron2"


def model(training_set):
    cfg = get_cfg()
    add_mosaic_config(cfg)
    cfg.DATASETS.TRAIN = (training_set,)
    return build_model(made.small_model(cfg))


@pytest.mark.slow
def test_a_run_and_its_resumption(training_set, bank, tmp_path):
    dataloader = OmegaConf.create(
        {
            "train": LazyCall(build_detection_train_loader)(
                dataset=LazyCall(get_detection_dataset_dicts)(names=training_set),
                mapper=LazyCall(DatasetMapper)(
                    is_train=True,
                    augmentations=[LazyCall(T.ResizeShortestEdge)(short_edge_length=96)],
                    image_format="BGR",
                    use_instance_mask=True,
                    instance_mask_format="bitmask",
                ),
                total_batch_size=2,
                num_workers=0,
            )
        },
        flags={"allow_objects": True},
    )
    settings = {
        "bank": str(tmp_path / "bank"),
        "mix_ratio": 0.4,
        "paste": {"enabled": True, "stage": "after", "blend": ["alpha", "hard"]},
        "log_period": 1,
    }
    with_mosaics(dataloader, settings, repeat_threshold=0.5, seed=3)
    assert dataloader.train.mask_format == "bitmask"
    cfg = OmegaConf.create(
        {
            "model": LazyCall(model)(training_set=training_set),
            "dataloader": dataloader,
            "optimizer": LazyCall(torch.optim.SGD)(
                params=LazyCall(get_default_optimizer_params)(), lr=0.002
            ),
            "lr_multiplier": LazyCall(WarmupParamScheduler)(
                scheduler=LazyCall(CosineParamScheduler)(start_value=1.0, end_value=0.5),
                warmup_length=0.1,
                warmup_factor=0.1,
            ),
            "train": {
                "output_dir": str(tmp_path / "lazy"),
                "init_checkpoint": "",
                "max_iter": 3,
                "amp": {"enabled": False},
                "ddp": {},
                "checkpointer": {"period": 100},
                "eval_period": 100,
                "log_period": 1,
                "device": "cpu",
            },
        },
        flags={"allow_objects": True},
    )
    assert lazy.train(cfg) is None
    saved = torch.load(tmp_path / "lazy" / "model_final.pth", weights_only=False)
    assert saved["trainer"]["hooks"]["MosaicHook"]["ranks"][0]["drawn"] == 6
    cfg.train.max_iter = 5
    lazy.train(cfg, resume=True)
    saved = torch.load(tmp_path / "lazy" / "model_final.pth", weights_only=False)
    assert saved["trainer"]["hooks"]["MosaicHook"]["ranks"][0]["drawn"] == 10
    metrics = (tmp_path / "lazy" / "metrics.json").read_text()
    assert '"mosaic/share"' in metrics and '"iteration": 4' in metrics


def test_the_shipped_configs():
    cfg = LazyConfig.load(str(CONFIGS / "lvis_mask_rcnn_R_50_FPN_lsj_mosaic.py"))
    train = cfg.dataloader.train
    settings = resolve_settings(train.settings)
    assert settings.mix_ratio == 0.1 and settings.paste.stage == "after"
    assert train.names == "lvis_v1_train" and train.sampler == "RepeatFactorTrainingSampler"
    assert train.mask_format == "bitmask" and cfg.model.roi_heads.num_classes == 1203
    enabled = {}
    for path in sorted(CONFIGS.glob("*.yaml")):
        yaml = get_cfg()
        add_mosaic_config(yaml)
        yaml.merge_from_file(str(path))
        enabled[path.stem] = resolve_settings(yaml.MOSAIC)
    assert not enabled["lvis_mask_rcnn_R_50_FPN"].enabled
    mosaic = enabled["lvis_mask_rcnn_R_50_FPN_mosaic"]
    assert mosaic.enabled and mosaic.mix_ratio == 0.1 and not mosaic.paste.enabled
    paste = enabled["lvis_mask_rcnn_R_50_FPN_xpaste"]
    assert paste.mix_ratio == 0 and paste.paste.enabled and paste.paste.max_instances == 20
    assert enabled["demo_mask_rcnn_R_18_FPN"].engine.spawn
