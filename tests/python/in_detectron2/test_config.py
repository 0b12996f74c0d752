"""The MOSAIC block: defaults, merging, refusals."""

from __future__ import annotations

import pytest
from detectron2.config import get_cfg

from mosaicbank.detectron2 import add_mosaic_config, resolve_settings, validate
from mosaicbank.detectron2.config import MosaicSettings, describe


def fresh():
    cfg = get_cfg()
    add_mosaic_config(cfg)
    return cfg


def test_the_defaults_are_those_of_the_table():
    cfg = fresh()
    assert resolve_settings(cfg.MOSAIC) == MosaicSettings() == resolve_settings({})
    for key, default, _, doc in describe():
        node = cfg
        for word in key.split("."):
            node = node[word]
        assert repr(node) == default, key
        assert doc.endswith((".", "...")), key


def test_a_yaml_file_and_options(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        "MOSAIC:\n  ENABLED: True\n  BANK: some/bank\n  MIX_RATIO: 0.25\n"
        "  PASTE: {ENABLED: True, MAX_INSTANCES: 7, BLEND: [alpha, poisson]}\n"
        "  ENGINE: {SPAWN: True, DEVICE: 'cuda:1', DUTY: 0.5, MODEL: embedded, PYTHON: ''}\n"
    )
    cfg = fresh()
    cfg.merge_from_file(str(path))
    cfg.merge_from_list(["MOSAIC.PASTE.STAGE", "after", "MOSAIC.CATEGORIES", "('a', 'b')"])
    cfg.freeze()
    settings = resolve_settings(cfg.MOSAIC)
    assert settings.enabled and settings.bank == "some/bank" and settings.mix_ratio == 0.25
    assert settings.paste.max_instances == 7 and settings.paste.blend == ("alpha", "poisson")
    assert settings.paste.stage == "after" and settings.categories == ("a", "b")
    assert settings.engine.device == "cuda:1" and settings.engine.duty == 0.5
    # It survives being dumped and read again, as default_setup does.
    path.write_text(cfg.dump())
    again = fresh()
    again.merge_from_file(str(path))
    assert resolve_settings(again.MOSAIC) == settings


def test_small_letters_and_plain_dictionaries():
    settings = resolve_settings({"mix_ratio": 1, "paste": {"enabled": True, "flip": 0}})
    assert settings.mix_ratio == 1.0 and isinstance(settings.mix_ratio, float)
    assert settings.paste.enabled and settings.paste.flip == 0.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"MIXRATIO": 0.1}, "MOSAIC.MIXRATIO: expected one of .*MIX_RATIO.*did you mean MIX_RATIO"),
        ({"PASTE": {"SATGE": "after"}}, "MOSAIC.PASTE.SATGE.*did you mean STAGE"),
        ({"MIX_RATIO": 1.5}, r"MOSAIC.MIX_RATIO: expected a number in 0..1, got 1.5"),
        ({"MIX_RATIO": float("nan")}, "MOSAIC.MIX_RATIO"),
        ({"ENABLED": 1}, "MOSAIC.ENABLED: expected True or False, got 1"),
        ({"BANK": ""}, "MOSAIC.BANK"),
        ({"PASTE": {"STAGE": "between"}}, "expected one of 'before', 'after', got 'between'"),
        ({"PASTE": {"BLEND": ["soft"]}}, "'hard', 'alpha', 'gaussian', 'poisson'"),
        ({"PASTE": {"BLEND": []}}, "at least one of"),
        ({"PASTE": {"MIN_INSTANCES": 30}}, r"at most MAX_INSTANCES \(20\), got 30"),
        ({"PASTE": {"SIZE_RANGE": [0.5, 0.1]}}, "0 <= low <= high <= 1"),
        ({"PASTE": 3}, "MOSAIC.PASTE: expected a block"),
        ({"PASTE": {"MODE": "uniform", "CATEGORIES": ["a"]}}, "MOSAIC.PASTE.MODE"),
        ({"ENGINE": {"DUTY": 0}}, "MOSAIC.ENGINE.DUTY: expected a number above 0"),
        ({"ENGINE": {"LOCAL_RANKS": [-1]}}, "MOSAIC.ENGINE.LOCAL_RANKS"),
        ({"SLOT_WEIGHTS": "dead"}, "'live', 'fixed'"),
    ],
)
def test_what_is_refused(values, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        resolve_settings(values)


def test_unknown_keys_of_a_yaml_file_are_refused_with_the_known_ones(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("MOSAIC: {ENABLED: True, PASTE: {MAX_INSTANCE: 3}}\n")
    cfg = fresh()
    cfg.merge_from_file(str(path))
    with pytest.raises(ValueError, match="did you mean MAX_INSTANCES"):
        validate(cfg)


def test_what_does_not_go_together():
    with pytest.raises(ValueError, match="add_mosaic_config"):
        validate(get_cfg())
    cfg = fresh()
    cfg.DATALOADER.SAMPLER_TRAIN = "RandomSubsetTrainingSampler"
    assert not validate(cfg).enabled
    cfg.MOSAIC.ENABLED = True
    with pytest.raises(ValueError, match="RepeatFactorTrainingSampler, TrainingSampler"):
        validate(cfg)
    cfg.DATALOADER.SAMPLER_TRAIN = "TrainingSampler"
    cfg.MODEL.LOAD_PROPOSALS = True
    with pytest.raises(ValueError, match="LOAD_PROPOSALS"):
        validate(cfg)
    cfg.MODEL.LOAD_PROPOSALS = False
    cfg.MOSAIC.PASTE.ENABLED = True
    cfg.MOSAIC.PASTE.STAGE = "after"
    cfg.INPUT.FORMAT = "YUV-BT.601"
    with pytest.raises(ValueError, match="'RGB' or 'BGR'"):
        validate(cfg)
    cfg.MOSAIC.PASTE.STAGE = "before"
    assert validate(cfg).paste.enabled
