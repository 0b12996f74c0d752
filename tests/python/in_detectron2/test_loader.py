"""Batches: valid, right, in the same order for any number of workers, whatever the bank does."""

from __future__ import annotations

import collections
import itertools
import logging
import os
import shutil
from pathlib import Path

import material as made
import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper, MetadataCatalog, detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, PolygonMasks

import mosaicbank
from mosaicbank.detectron2 import build_mosaic_train_loader
from mosaicbank.detectron2.categories import CategoryMap, DatasetClasses
from mosaicbank.detectron2.dataset import FILL, mosaic_record
from mosaicbank.detectron2.paste import size_statistics, update_federated
from shared_data import shared

NAMES = list(made.CATEGORIES.values())


def batches(loader, n):
    return list(itertools.islice(iter(loader), n))


def infos(batches):
    return [sample["mosaicbank"] for batch in batches for sample in batch]


def assert_valid(sample):
    """Invariant 5 on what the model gets."""
    image, instances = sample["image"], sample["instances"]
    assert image.dtype == torch.uint8 and image.shape[0] == 3
    h, w = image.shape[1:]
    assert instances.image_size == (h, w)
    n = len(instances)
    boxes, classes = instances.gt_boxes, instances.gt_classes
    assert isinstance(boxes, Boxes) and boxes.tensor.shape == (n, 4)
    assert torch.isfinite(boxes.tensor).all() and boxes.nonempty().all()
    assert (boxes.tensor >= -1e-6).all()
    assert (boxes.tensor[:, 2] <= w + 1e-4).all() and (boxes.tensor[:, 3] <= h + 1e-4).all()
    assert classes.dtype == torch.int64 and ((classes >= 0) & (classes < len(NAMES))).all()
    if n == 0:
        return
    masks = instances.gt_masks
    assert len(masks) == n and masks.nonempty().all()
    if isinstance(masks, BitMasks):
        assert masks.tensor.shape == (n, h, w) and masks.tensor.dtype == torch.bool
    # Tight, but for real labels that nothing touched, and resampling.
    tight = masks.get_bounding_boxes().tensor
    away = (tight - boxes.tensor).abs().max(dim=1).values
    assert (away <= 2.5).all(), (away, boxes.tensor, tight)


@pytest.mark.parametrize("stage", ["before", "after"])
@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
@pytest.mark.parametrize("crop", [False, True])
def test_batches_are_valid(cfg, bank, stage, mask_format, crop):
    cfg.INPUT.MASK_FORMAT = mask_format
    cfg.MOSAIC.PASTE.STAGE = stage
    cfg.MOSAIC.PASTE.ON_MOSAICS = True
    cfg.MOSAIC.PASTE.BLEND = ["hard", "alpha", "gaussian", "poisson"]
    cfg.INPUT.CROP.ENABLED = crop
    cfg.INPUT.CROP.SIZE = [0.7, 0.7]
    loader = build_mosaic_train_loader(cfg)
    got = batches(loader, 12)
    kind = PolygonMasks if mask_format == "polygon" else BitMasks
    for batch in got:
        assert len(batch) == cfg.SOLVER.IMS_PER_BATCH
        # Aspect-ratio grouping: all wide, or none.
        assert len({sample["width"] > sample["height"] for sample in batch}) == 1
        for sample in batch:
            assert_valid(sample)
            if len(sample["instances"]):
                assert isinstance(sample["instances"].gt_masks, kind)
            assert not sample["file_name"].startswith("mosaicbank-memory")
    counts = loader.counts
    assert counts.samples == 48 and counts.errors == 0 and counts.misses == 0
    assert 4 <= counts.mosaics <= 28 and counts.pasted > 40


def test_large_scale_jitter_after_which_is_pasted(cfg, bank):
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.MOSAIC.PASTE.STAGE = "after"
    size = 128
    mapper = DatasetMapper(
        is_train=True,
        augmentations=[
            T.ResizeScale(0.3, 2.0, size, size),
            T.FixedSizeCrop((size, size)),
            T.RandomFlip(),
        ],
        image_format="RGB",
        use_instance_mask=True,
        instance_mask_format="bitmask",
        recompute_boxes=True,
    )
    cfg.INPUT.FORMAT = "RGB"
    loader = build_mosaic_train_loader(cfg, mapper)
    for batch in batches(loader, 6):
        for sample in batch:
            assert sample["image"].shape == (3, size, size)
            assert_valid(sample)
    assert loader.counts.pasted > 20 and loader.counts.errors == 0


@pytest.mark.parametrize("stage", ["before", "after"])
@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_pixels_labels_and_channels_belong_together(cfg, bank, stage, image_format):
    """Objects of the test banks are blue, 10 x k red: the colour under each mask tells."""
    cfg.INPUT.FORMAT = image_format
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.INPUT.MIN_SIZE_TRAIN = (96,)
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.MOSAIC.PASTE.STAGE = stage
    red, blue = (0, 2) if image_format == "RGB" else (2, 0)
    seen = collections.Counter()
    for batch in batches(build_mosaic_train_loader(cfg), 10):
        for sample in batch:
            info, instances = sample["mosaicbank"], sample["instances"]
            first = 0 if info["kind"] == "mosaic" else len(instances) - len(info["pasted"])
            for c, mask in list(zip(instances.gt_classes, instances.gt_masks))[first:]:
                pixels = sample["image"][:, mask].float()
                if pixels.shape[1] < 150:
                    continue  # edges count for too much
                middle = pixels.median(dim=1).values
                assert middle[blue] > 235, (info, middle)
                assert middle[red] < 35
                seen[info["kind"], NAMES[int(c)]] += 1
    assert seen["mosaic", "kite"] and seen["mosaic", "ring_(toy)"] and seen["mosaic", "wedge"]
    assert sum(n for (kind, _), n in seen.items() if kind == "real") > 10
    # Mosaics are asked for rare and unseen categories.
    assert seen["real", "kite"] + seen["real", "wedge"] + seen["real", "ring_(toy)"] > 5


def signature(batches):
    """Everything of the batches that a draw decides, pixels included."""
    return [
        (
            s["mosaicbank"]["index"],
            s["mosaicbank"]["kind"],
            len(s["mosaicbank"]["pasted"]),
            tuple(s["image"].shape),
            s["instances"].gt_classes.tolist(),
        )
        for batch in batches
        for s in batch
    ]


@pytest.mark.parametrize("grouping", [True, False])
def test_no_sample_depends_on_the_number_of_workers(cfg, bank, grouping):
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = grouping
    cfg.INPUT.MIN_SIZE_TRAIN = (96, 104, 112)
    # What the bank gives depends on what it gave before; without it, all is decided by the seed.
    cfg.MOSAIC.PASTE.ENABLED = False
    results = []
    for workers in (0, 1, 2, 3):
        cfg.MOSAIC.BANK += "-none"
        cfg.DATALOADER.NUM_WORKERS = workers
        loader = build_mosaic_train_loader(cfg)
        got = batches(loader, 10)
        results.append((signature(got), [s["image"] for batch in got for s in batch]))
    for sizes, images in results[1:]:
        assert sizes == results[0][0]
        assert all(torch.equal(a, b) for a, b in zip(images, results[0][1]))
    assert len({size for *_, size, _ in results[0][0]}) > 3


def test_with_a_bank_kinds_and_categories_do_not_depend_on_workers_either(cfg, bank):
    results = []
    for workers in (0, 2):
        cfg.DATALOADER.NUM_WORKERS = workers
        got = infos(batches(build_mosaic_train_loader(cfg), 10))
        results.append([(i["index"], i["kind"], i["category"]) for i in got])
    assert results[0] == results[1]
    assert {kind for _, kind, _ in results[0]} == {"real", "mosaic"}


def test_spawned_workers(cfg, bank):
    cfg.DATALOADER.NUM_WORKERS = 2
    loader = build_mosaic_train_loader(cfg, multiprocessing_context="spawn")
    spawned = batches(loader, 6)
    for batch in spawned:
        for sample in batch:
            assert_valid(sample)
    assert loader.counts.errors == 0 and loader.counts.mosaics > 0 and loader.counts.pasted > 5
    cfg.DATALOADER.NUM_WORKERS = 0
    here = batches(build_mosaic_train_loader(cfg), 6)
    assert [i["index"] for i in infos(spawned)] == [i["index"] for i in infos(here)]


@pytest.mark.parametrize("weights", ["live", "fixed"])
@pytest.mark.parametrize("grouping", [True, False])
def test_a_resumed_loader_goes_on_with_the_same_batches(cfg, bank, weights, grouping):
    cfg.MOSAIC.SLOT_WEIGHTS = weights
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = grouping

    def drawn(batches):
        return [
            [(s["mosaicbank"][k]) for k in ("index", "kind", "category")]
            for batch in batches
            for s in batch
        ]

    whole = drawn(batches(build_mosaic_train_loader(cfg), 24))
    for stop, workers in ((1, 0), (7, 2), (14, 2)):
        cfg.DATALOADER.NUM_WORKERS = workers
        first = build_mosaic_train_loader(cfg)
        before = drawn(batches(first, stop))
        resumed = build_mosaic_train_loader(cfg)
        resumed.load_state_dict(first.state_dict())
        after = drawn(batches(resumed, 24 - stop))
        assert before + after == whole, (stop, workers)


def test_a_second_iterator_goes_on(cfg, bank):
    whole = signature(batches(build_mosaic_train_loader(cfg), 9))
    loader = build_mosaic_train_loader(cfg)
    parts = signature(batches(loader, 4)) + signature(batches(loader, 5))
    assert [p[0] for p in parts] == [w[0] for w in whole]


def test_states_of_another_run(cfg, bank, caplog):
    loader = build_mosaic_train_loader(cfg)
    batches(loader, 5)
    state = loader.state_dict()
    cfg.SEED = 12
    other = build_mosaic_train_loader(cfg)
    with pytest.raises(ValueError, match="seed"):
        other.load_state_dict(state)
    with caplog.at_level(logging.WARNING):
        other.load_states([state])
    assert "cannot resume" in caplog.text and "place 20" in caplog.text
    places = [other.sampler.position_of(i["index"]) for i in infos(batches(other, 3))]
    assert min(places) == 20
    with caplog.at_level(logging.WARNING):
        other.load_states([state, state])
    assert "expected 1 ranks, got 2" in caplog.text


# --- training goes on ------------------------------------------------------------------------


def reals_only(loader, n=6, missed=True):
    got = batches(loader, n)
    kinds = collections.Counter(i["kind"] for i in infos(got))
    for batch in got:
        for sample in batch:
            assert_valid(sample)
    assert kinds["mosaic"] == 0 and (kinds["miss"] > 0) == missed
    assert not any(i["pasted"] for i in infos(got))
    return kinds


def test_no_bank_at_all(cfg, caplog):
    """Made, and empty: there is no slot that it could answer."""
    with caplog.at_level(logging.WARNING):
        loader = build_mosaic_train_loader(cfg)
        reals_only(loader, missed=False)
    assert "made an empty bank" in caplog.text
    bank = mosaicbank.Bank.open(cfg.MOSAIC.BANK)
    assert [(c["id"], c["name"]) for c in bank.categories] == list(made.CATEGORIES.items())
    assert bank.demand()["asked"].sum() == 0


def test_a_bank_that_cannot_be_made(cfg, tmp_path, caplog):
    (tmp_path / "file").write_text("not a directory")
    cfg.MOSAIC.BANK = str(tmp_path / "file" / "bank")
    with caplog.at_level(logging.WARNING):
        reals_only(build_mosaic_train_loader(cfg))
    assert "cannot open the bank" in caplog.text


def test_a_damaged_bank(cfg, bank, caplog):
    path = Path(cfg.MOSAIC.BANK)
    del bank
    (path / "bank.toml").write_text("{ damaged")
    with caplog.at_level(logging.WARNING):
        reals_only(build_mosaic_train_loader(cfg))
    assert "cannot open the bank" in caplog.text


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bank_whose_records_are_damaged_under_the_training(cfg, bank, workers):
    cfg.DATALOADER.NUM_WORKERS = workers
    loader = build_mosaic_train_loader(cfg)
    iterator = iter(loader)
    next(iterator)
    (data,) = Path(cfg.MOSAIC.BANK).rglob("data.mdb")
    size = data.stat().st_size
    with open(data, "r+b") as file:  # every page but the first few
        file.seek(4 * 4096)
        file.write(os.urandom(size - 4 * 4096))
    for batch in itertools.islice(iterator, 8):
        for sample in batch:
            assert_valid(sample)


def test_a_bank_of_another_dataset_is_refused(cfg, tmp_path):
    mosaicbank.Bank.create(tmp_path / "bank", [{"id": 3, "name": "box"}, {"id": 5, "name": "ball"}])
    with pytest.raises(ValueError, match="expected the ids and names of the training set"):
        build_mosaic_train_loader(cfg)
    cfg.MOSAIC.MATCH = "name"
    reals_only(build_mosaic_train_loader(cfg), missed=False)


def test_a_bank_with_more_and_fewer_categories(cfg, tmp_path):
    """Only what both have is drawn, under the right class."""
    bank = mosaicbank.Bank.create(
        tmp_path / "bank",
        [{"id": 2, "name": "yak"}, {"id": 8, "name": "kite"}, {"id": 3, "name": "ball"}],
    )
    bank.put_mosaics([made.mosaic(k, ["kite", "yak"]) for k in range(4)])
    cfg.MOSAIC.PASTE.ON_MOSAICS = False
    loader = build_mosaic_train_loader(cfg)
    mosaics, pasted = 0, set()
    for batch in batches(loader, 8):
        for sample in batch:
            pasted.update(p["category"] for p in sample["mosaicbank"]["pasted"])
            if sample["mosaicbank"]["kind"] == "mosaic":
                mosaics += 1
                assert sample["instances"].gt_classes.tolist() == [NAMES.index("kite")]
    assert mosaics > 2 and pasted == {NAMES.index("kite")}


# --- mappers ---------------------------------------------------------------------------------


def plain_mapper(record):
    """A mapper that knows Detectron2's reader alone, and drops every key that it does not know."""
    image = detection_utils.read_image(record["file_name"], format="RGB")
    assert image.shape[:2] == (record["height"], record["width"])
    instances = detection_utils.annotations_to_instances(
        [a for a in record["annotations"] if not a["iscrowd"]], image.shape[:2], "polygon"
    )
    return {
        "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
        "instances": instances,
        "width": record["width"],
        "height": record["height"],
    }


def test_any_mapper(cfg, bank):
    cfg.INPUT.FORMAT = "RGB"
    loader = build_mosaic_train_loader(cfg, plain_mapper)
    for batch in batches(loader, 6):
        for sample in batch:
            assert_valid(sample)
    assert loader.counts.mosaics > 0 and loader.counts.pasted > 0


def test_a_mapper_that_skips_images(cfg, bank):
    skipped = []

    def mapper(record):
        if "mosaic" not in record["file_name"] and record["image_id"] % 2:
            skipped.append(record["image_id"])
            return None
        return plain_mapper(record)

    cfg.INPUT.FORMAT = "RGB"
    cfg.MOSAIC.PASTE.STAGE = "after"
    loader = build_mosaic_train_loader(cfg, mapper)
    got = batches(loader, 8)
    assert skipped
    places = [loader.sampler.position_of(i["index"]) for i in infos(got)]
    assert len(set(places)) == len(places) == 32
    # Nothing is left behind but what waits for its aspect ratio.
    assert len(loader.state_dict()["pending"]) < 2 * cfg.SOLVER.IMS_PER_BATCH


def test_fields_that_cannot_be_pasted_after_are_refused(cfg, bank):
    def mapper(record):
        sample = plain_mapper(record)
        sample["instances"].gt_age = torch.zeros(len(sample["instances"]))
        return sample

    cfg.INPUT.FORMAT = "RGB"
    cfg.MOSAIC.PASTE.STAGE = "after"
    with pytest.raises(ValueError, match="got also gt_age"):
        batches(build_mosaic_train_loader(cfg, mapper), 1)
    cfg.MOSAIC.PASTE.STAGE = "before"
    assert batches(build_mosaic_train_loader(cfg, mapper), 1)


def test_mapper_randomness_leaves_the_trainers_alone(cfg, bank):
    loader = iter(build_mosaic_train_loader(cfg))
    next(loader)  # torch draws a seed when an iterator begins
    np.random.seed(1)
    torch.manual_seed(1)
    expected = np.random.rand(), torch.rand(1)
    np.random.seed(1)
    torch.manual_seed(1)
    next(loader)
    assert np.random.rand() == expected[0] and torch.equal(torch.rand(1), expected[1])


def test_off_is_detectron2s_own_loader(cfg):
    cfg.MOSAIC.ENABLED = False
    loader = build_mosaic_train_loader(cfg)
    assert type(loader).__module__.startswith(("detectron2", "torch"))
    assert "mosaicbank" not in next(iter(loader))[0]
    assert not Path(cfg.MOSAIC.BANK).exists()


# --- annotations -----------------------------------------------------------------------------


@pytest.fixture
def classes(training_set):
    return DatasetClasses.from_metadata(MetadataCatalog.get(training_set))


def test_federated_lists(classes):
    """Ids of the dataset: ball 3, box 5, kite 8, ring 13, wedge 21."""
    record = {"neg_category_ids": [5, 13], "not_exhaustive_category_ids": [3]}
    ball, box, kite, wedge = 0, 1, 2, 4
    update_federated(record, [box, kite, wedge, ball], had={kite, ball}, table=classes)
    # Box was verified absent: now present and exhaustive. Wedge was not looked for.
    assert record == {"neg_category_ids": [13], "not_exhaustive_category_ids": [3, 21]}
    plain = {}
    update_federated(plain, [box], set(), classes)
    assert plain == {}


@pytest.mark.parametrize("stage", ["before", "after"])
def test_federated_lists_of_samples(cfg, bank, stage):
    cfg.MOSAIC.PASTE.STAGE = stage
    cfg.MOSAIC.PASTE.MIN_INSTANCES = 3
    checked = 0
    for batch in batches(build_mosaic_train_loader(cfg), 8):
        for sample in batch:
            info = sample["mosaicbank"]
            if info["kind"] == "mosaic":
                assert sample["neg_category_ids"] == []
                continue
            ids = {list(made.CATEGORIES)[p["category"]] for p in info["pasted"]}
            partial = set(sample["not_exhaustive_category_ids"])
            assert not ids & set(sample["neg_category_ids"])
            assert 3 in partial
            present = {list(made.CATEGORIES)[int(c)] for c in sample["instances"].gt_classes}
            # Ring is in no image, so nobody can have looked for it.
            assert (13 in partial) == (13 in ids) and partial <= present | {3} | ids
            checked += bool(ids)
    assert checked > 8


def test_regions_without_a_label(bank, classes):
    categories = CategoryMap(bank.categories, classes)
    (place, ident) = next(
        (i, id) for i, id in enumerate(bank.mosaic_ids()) if len(bank.mosaic(id)) == 1
    )
    assert place >= 0
    mosaic = bank.mosaic(ident)  # ring at the left, a rejected box at the right
    assert mosaic.regions[1]["verdict"] != "kept"
    record, image = mosaic_record(mosaic, bank, categories, classes)
    assert (image[:, 64:] == FILL).all()
    assert np.array_equal(image[:, :64], mosaic.image[:, :64])
    assert record["not_exhaustive_category_ids"] == []
    record, image = mosaic_record(mosaic, bank, categories, classes, rejected_regions="keep")
    assert np.array_equal(image, mosaic.image)
    assert record["not_exhaustive_category_ids"] == [5]
    assert [a["category_id"] for a in record["annotations"]] == [NAMES.index("ring_(toy)")]


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_masks_of_mosaics_are_exact_holes_included(bank, classes, mask_format):
    categories = CategoryMap(bank.categories, classes)
    holes = 0
    for ident in bank.mosaic_ids():
        mosaic = bank.mosaic(ident)
        record, _ = mosaic_record(mosaic, bank, categories, classes, mask_format=mask_format)
        instances = detection_utils.annotations_to_instances(
            record["annotations"], (96, 128), "bitmask"
        )
        assert np.array_equal(instances.gt_masks.tensor.numpy(), mosaic.masks)
        assert instances.gt_boxes.tensor.numpy().tolist() == mosaic.boxes.tolist()
        areas = (mosaic.boxes[:, 2:] - mosaic.boxes[:, :2]).prod(axis=1)
        holes += int((mosaic.areas < areas).sum())
    assert holes > 0


def test_size_statistics(training_set):
    from detectron2.data import DatasetCatalog

    records = DatasetCatalog.get(training_set)
    got = size_statistics(records, len(NAMES))
    of = collections.defaultdict(list)
    for r in records:
        for a in r["annotations"]:
            mask = mosaicbank.masks.rle_decode(
                mosaicbank.masks.rle_from_polygons(a["segmentation"], r["height"], r["width"])
            )
            of[a["category_id"]].append(np.sqrt(mask.mean()))
    for c, sides in of.items():
        assert got[c] == pytest.approx([np.mean(sides), np.std(sides)], abs=0.01)
    every = [s for sides in of.values() for s in sides]
    ring = NAMES.index("ring_(toy)")
    assert got[ring] == pytest.approx([np.mean(every), np.std(every)], abs=0.01)


def test_pasting_leaves_untouched_labels_as_they_are(cfg, bank):
    """The very same polygons and boxes, and crowds, come back where nothing was covered."""
    from detectron2.data import DatasetCatalog

    from mosaicbank.detectron2.config import PasteSettings
    from mosaicbank.detectron2.paste import Paster

    classes = DatasetClasses.from_metadata(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]))
    categories = CategoryMap(bank.categories, classes)
    settings = PasteSettings(
        enabled=True,
        min_instances=2,
        max_instances=4,
        size="range",
        size_range=(0.3, 0.5),
        keep_area=20,
    )
    sizes = np.zeros((5, 2), dtype=np.float32)
    paster = Paster(bank, settings, categories, classes, sizes, "BGR", "polygon")
    touched = untouched = 0
    for seed, record in enumerate(DatasetCatalog.get(cfg.DATASETS.TRAIN[0])):
        record["annotations"][-1]["iscrowd"] = 1
        new, image, pasted = paster.before(record, None, seed)
        assert pasted and image.shape == (record["height"], record["width"], 3)
        given = record["annotations"]
        assert new["annotations"][-1] is given[-1]
        kept = new["annotations"][: -1 - len(pasted)]
        changed = (image != detection_utils.read_image(record["file_name"], "RGB")).any(axis=2)
        for annotation in kept:
            if annotation in given:
                untouched += 1
                continue
            touched += 1
            mask = mosaicbank.masks.rle_decode(
                mosaicbank.masks.rle_from_polygons(annotation["segmentation"], *changed.shape)
            )
            assert mask.any() and not (mask & changed).any()
    assert touched > 3 and untouched > 3


# --- real images -----------------------------------------------------------------------------


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_real_annotated_images(cfg, tmp_path, mask_format):
    path = shared("coco100/train.json")
    shutil.rmtree(cfg.MOSAIC.BANK, ignore_errors=True)
    name = made.register("mosaicbank_coco100", path)
    names = MetadataCatalog.get(name).thing_classes
    ids = {c: i for i, c in MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id.items()}
    bank = mosaicbank.Bank.create(
        cfg.MOSAIC.BANK, [{"id": ids[i], "name": n} for i, n in enumerate(names)]
    )
    bank.put_mosaics([made.mosaic(k, [n, names[k - 1]]) for k, n in enumerate(names)])
    cfg.DATASETS.TRAIN = (name,)
    cfg.INPUT.MASK_FORMAT = mask_format
    cfg.INPUT.MIN_SIZE_TRAIN = (200,)
    cfg.INPUT.MAX_SIZE_TRAIN = 320
    cfg.DATALOADER.NUM_WORKERS = 2
    cfg.MOSAIC.PASTE.MAX_INSTANCES = 20
    loader = build_mosaic_train_loader(cfg)
    for batch in batches(loader, 10):
        for sample in batch:
            info = sample["mosaicbank"]
            tight = sample["instances"]
            assert len(tight.gt_masks) == len(tight) and tight.gt_masks.nonempty().all()
            assert ((tight.gt_classes >= 0) & (tight.gt_classes < 80)).all()
            assert tight.gt_boxes.nonempty().all()
            if info["pasted"]:
                last = tight.gt_classes[-1]
                assert int(last) in {p["category"] for p in info["pasted"]}
    assert loader.counts.errors == 0
    assert loader.counts.pasted > 40 and loader.counts.mosaics > 4


def test_the_state_is_plain(cfg, bank):
    """Since 2.6, ``torch.load`` takes nothing else out of a checkpoint by default."""

    def types(value):
        if isinstance(value, dict):
            return {type(value)}.union(*map(types, value.values()))
        if isinstance(value, (list, tuple)):
            return {type(value)}.union(*map(types, value))
        return {type(value)}

    loader = build_mosaic_train_loader(cfg)
    state = loader.state_dict()
    assert types(state) <= {dict, list, tuple, int, float, str, bool, type(None)}
    loader.load_state_dict(state)
    assert loader.state_dict() == state
