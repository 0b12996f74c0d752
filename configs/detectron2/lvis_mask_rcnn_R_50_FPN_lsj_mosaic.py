"""LazyConfig: Detectron2's Mask R-CNN R50-FPN with large-scale jitter, on LVIS, with mosaics and
pasted instances.

Composes Detectron2's own ``new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py``. Train it with
``python -m mosaicbank.detectron2.train_net --config-file <this file> --num-gpus 8``.
"""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from mosaicbank.detectron2 import LVISCategoryEvaluator, with_mosaics

_base = model_zoo.get_config("new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py")
dataloader = _base.dataloader
lr_multiplier = _base.lr_multiplier
model = _base.model
optimizer = _base.optimizer
train = _base.train

train.output_dir = "./output/lvis_mask_rcnn_R_50_FPN_lsj_mosaic"
model.roi_heads.num_classes = 1203
model.roi_heads.box_predictor.test_score_thresh = 0.0001
model.roi_heads.box_predictor.test_topk_per_image = 300

dataloader.train.dataset.names = "lvis_v1_train"
dataloader.train.mapper.instance_mask_format = "bitmask"
dataloader.test.dataset.names = "lvis_v1_val"
dataloader.evaluator = L(LVISCategoryEvaluator)(dataset_name="lvis_v1_val")

# The keys of the MOSAIC block, in small letters. Pasting comes after the jitter, as in X-Paste.
mosaic = {
    "bank": "output/bank",
    "mix_ratio": 0.1,
    "paste": {"enabled": True, "stage": "after", "max_instances": 20},
    "engine": {"spawn": False, "device": "cuda:0", "duty": 0.3, "model": "embedded", "python": ""},
}
with_mosaics(dataloader, mosaic, sampler="RepeatFactorTrainingSampler", repeat_threshold=0.001)
