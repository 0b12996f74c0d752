"""What the tests are made of: a small LVIS-style training set, banks, a small model."""

from __future__ import annotations

import json

import numpy as np

# Ids with gaps, so that an id is never its class or its class + 1.
CATEGORIES = {3: "ball", 5: "box", 8: "kite", 13: "ring_(toy)", 21: "wedge"}
# Images that each category is in; ring is novel: no image at all.
IMAGES = {"ball": 20, "box": 12, "kite": 3, "wedge": 1, "ring_(toy)": 0}
NUM_IMAGES = 24
COLOURS = {
    "ball": (200, 40, 40),
    "box": (40, 160, 60),
    "kite": (50, 70, 210),
    "wedge": (220, 180, 30),
}


def outline(name: str, x: float, y: float, side: float) -> list[float]:
    """A polygon of the shape in the box (x, y, x + side, y + side)."""
    if name == "box":
        points = [(0, 0), (1, 0), (1, 1), (0, 1)]
    elif name == "kite":
        points = [(0.5, 0), (1, 0.4), (0.5, 1), (0, 0.4)]
    elif name == "wedge":
        points = [(0, 0), (1, 1), (0, 1)]
    else:
        turn = np.arange(16) * (2 * np.pi / 16)
        points = list(zip(0.5 + 0.5 * np.cos(turn), 0.5 + 0.5 * np.sin(turn)))
    return [float(v) for px, py in points for v in (x + side * px, y + side * py)]


def make_training_set(folder):
    """Write ``train.json`` and ``images/``; returns the path of the former."""
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(5)
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for i in range(NUM_IMAGES):
        w, h = (128, 96) if i % 3 else (80, 120)
        noise = rng.integers(100, 150, (h, w, 3), dtype=np.uint8)
        picture = Image.fromarray(noise)
        draw = ImageDraw.Draw(picture)
        here = [name for name, n in IMAGES.items() if i < n] or ["ball"]
        for k, name in enumerate(here):
            side = float(rng.integers(18, 34))
            x, y = 4 + 36 * (k % 3 if w > h else k % 2), 4 + 40 * (k // (3 if w > h else 2))
            polygon = outline(name, x, y, min(side, w - x - 1, h - y - 1))
            draw.polygon(polygon, fill=COLOURS[name])
            xs, ys = polygon[::2], polygon[1::2]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i + 100,
                    "category_id": next(c for c, n in CATEGORIES.items() if n == name),
                    "segmentation": [polygon],
                    "bbox": [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)],
                    "area": (max(xs) - min(xs)) * (max(ys) - min(ys)) / 2,
                    "iscrowd": 0,
                }
            )
        name = f"{i:04}.jpg"
        picture.save(folder / "images" / name, quality=95)
        images.append(
            {
                "id": i + 100,
                "file_name": name,
                "coco_url": f"http://localhost/images/{name}",
                "width": w,
                "height": h,
                # Box verified absent where it is not; ball was not looked for exhaustively.
                "neg_category_ids": [] if "box" in here else [5],
                "not_exhaustive_category_ids": [3],
            }
        )
    categories = [
        {"id": c, "name": n, "synset": f"{n}.n.01", "synonyms": [n], "def": f"a {n}",
         "frequency": "r" if IMAGES[n] <= 10 else "c", "image_count": IMAGES[n],
         "instance_count": IMAGES[n]}
        for c, n in CATEGORIES.items()
    ]  # fmt: skip
    path = folder / "train.json"
    path.write_text(
        json.dumps(
            {
                "info": {}, "licenses": [], "images": images, "annotations": annotations,
                "categories": categories,
            }
        )
    )  # fmt: skip
    return path


def register(name, path):
    import drawings

    drawings.register(name, path)
    return name


def mosaic(seed: int, names: list[str], rejected: str | None = None) -> dict:
    """A mosaic of 96 x 128 pixels with one square object per name, as ``put_mosaics`` takes it."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (96, 128, 3), dtype=np.uint8)
    masks, regions = [], []
    width = 128 // (len(names) + (rejected is not None))
    for k, name in enumerate(names):
        mask = np.zeros((96, 128), dtype=bool)
        x0, y0 = k * width + 3, 10 + seed % 7
        mask[y0 : y0 + 50, x0 : x0 + width - 8] = True
        if seed % 2:
            mask[y0 + 10 : y0 + 20, x0 + 8 : x0 + 12] = False  # a hole
        # The object's own colour: red is 10 x (its number + 1), green its seed, blue 255.
        image[mask] = (10 * (k + 1), seed % 256, 255)
        masks.append(mask)
        regions.append(
            {"box": (k * width, 0, (k + 1) * width, 96), "category": name, "prompt": name}
        )
    if rejected is not None:
        box = (len(names) * width, 0, 128, 96)
        regions.append(
            {"box": box, "category": rejected, "prompt": rejected, "verdict": "two components"}
        )
    return {
        "image": image,
        "masks": np.stack(masks),
        "classes": list(names),
        "regions": regions,
        "region_of": list(range(len(names))),
        "seed": seed,
        "model": "test",
    }


def table():
    return [{"id": c, "name": n, "image_count": IMAGES[n]} for c, n in CATEGORIES.items()]


def stocked_bank(folder, per_category: int = 4, **limits):
    """A bank with mosaics of kite, wedge and ring."""
    from mosaicbank import Bank

    bank = Bank.create(folder, table(), **limits)
    made = []
    for k in range(per_category):
        made += [
            mosaic(10 * k, ["kite", "ball"]),
            mosaic(10 * k + 1, ["wedge", "ring_(toy)"]),
            mosaic(10 * k + 2, ["ring_(toy)"], rejected="box"),
        ]
    bank.put_mosaics(made)
    return bank


def make_cfg(training_set, folder):
    from detectron2.config import get_cfg

    from mosaicbank.detectron2 import add_mosaic_config

    cfg = get_cfg()
    add_mosaic_config(cfg)
    cfg.OUTPUT_DIR = str(folder / "output")
    cfg.DATASETS.TRAIN = (training_set,)
    cfg.DATASETS.TEST = ()
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.5
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.MIN_SIZE_TRAIN = (96,)
    cfg.INPUT.MAX_SIZE_TRAIN = 160
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.SEED = 11
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(CATEGORIES)
    cfg.MOSAIC.ENABLED = True
    cfg.MOSAIC.BANK = str(folder / "bank")
    cfg.MOSAIC.MIX_RATIO = 0.3
    cfg.MOSAIC.PASTE.ENABLED = True
    cfg.MOSAIC.PASTE.MIN_INSTANCES = 1
    cfg.MOSAIC.PASTE.MAX_INSTANCES = 5
    return cfg


def small_model(cfg):
    """Mask R-CNN with ResNet-18 and FPN, and few proposals: a second per iteration on one core."""
    from detectron2 import model_zoo

    mosaic = cfg.MOSAIC.clone()
    dataset, output = cfg.DATASETS.TRAIN, cfg.OUTPUT_DIR
    threshold, seed = cfg.DATALOADER.REPEAT_THRESHOLD, cfg.SEED
    cfg.merge_from_file(
        model_zoo.get_config_file("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
    )
    cfg.MOSAIC = mosaic
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, cfg.OUTPUT_DIR = dataset, (), output
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    cfg.DATALOADER.REPEAT_THRESHOLD, cfg.SEED = threshold, seed
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.FPN.OUT_CHANNELS = 64
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64], [128]]
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN = 100
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 50
    cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = 50
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 20
    cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE = 32
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(CATEGORIES)
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 64
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 32
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 1
    cfg.INPUT.MIN_SIZE_TRAIN = (96,)
    cfg.INPUT.MAX_SIZE_TRAIN = 160
    cfg.INPUT.MIN_SIZE_TEST = 96
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SOLVER.BASE_LR = 0.002
    cfg.SOLVER.STEPS = ()
    cfg.SOLVER.MAX_ITER = 30
    cfg.SOLVER.CHECKPOINT_PERIOD = 1000
    cfg.MOSAIC.LOG_PERIOD = 5
    cfg.MOSAIC.PICTURE_PERIOD = 10
    return cfg
