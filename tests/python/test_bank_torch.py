"""The plain PyTorch face: the same samples with any number of workers."""

import numpy as np
import pytest
import torch

from bank_helpers import ellipse, make_bank, picture
from mosaicbank import _core
from mosaicbank import torch as mb


class Plain(torch.utils.data.Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, i):
        rng = np.random.default_rng(i)
        masks = np.zeros((2, 90, 100), bool)
        masks[0, 5:45, 5:60] = ellipse(40, 55)
        masks[1, 50:80, 30:90] = ellipse(30, 60)
        boxes = torch.tensor([[5.0, 5, 60, 45], [30, 50, 90, 80]])
        image = torch.from_numpy(picture(rng, 90, 100)).permute(2, 0, 1).float() / 255
        return image, {
            "boxes": boxes,
            "labels": torch.tensor([1, 2]),
            "masks": torch.from_numpy(masks.astype(np.uint8)),
            "image_id": i,
            "iscrowd": torch.zeros(2),
        }


def samples(bank, workers, context):
    sampler = mb.Sampler(
        12, mix_ratio=0.4, image_counts=np.array([0, 1, 1, 5, 9]), bank=bank, seed=3
    )
    assert isinstance(sampler, torch.utils.data.Sampler)
    paste = mb.PasteTransform(bank, p=0.7, label_offset=1, max_instances=4)
    dataset = mb.MosaicDataset(Plain(), bank, transform=paste, seed=3)
    assert len(dataset) == 12
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=5,
        sampler=sampler,
        num_workers=workers,
        collate_fn=mb.collate,
        multiprocessing_context=context,
    )
    out = []
    for images, targets in loader:
        out += zip(images, targets)
        if len(out) >= 40:
            break
    return out[:40]


@pytest.mark.parametrize("workers,context", [(1, "fork"), (3, "fork"), (1, "spawn")])
def test_workers_do_not_change_the_samples(tmp_path, workers, context):
    # One mosaic per category: the least used does not depend on who asked before.
    bank = make_bank(tmp_path / "bank", instances=8, mosaics=0)
    from bank_helpers import mosaic

    rng = np.random.default_rng(0)
    bank.put_mosaics([mosaic(rng, [c], c) for c in range(5)])
    expected = samples(bank, 0, None)
    got = samples(bank, workers, context)
    kinds = set()
    for (a, s), (b, t) in zip(expected, got):
        assert torch.equal(a, b)
        assert torch.equal(s["masks"], t["masks"]) and torch.equal(s["labels"], t["labels"])
        kinds.add(
            (bool(s.get("image_id") is not None), bool((s.get("source", torch.zeros(1))).any()))
        )
        n = len(t["labels"])
        assert t["boxes"].shape == (n, 4) and t["masks"].shape[0] == n
        assert t["masks"].flatten(1).any(1).all()
    assert len(kinds) == 4, "real and mosaic, pasted and not"
    assert bank.demand()["asked"].sum() > 0


def test_a_miss_becomes_a_real_sample(tmp_path):
    bank = make_bank(tmp_path / "bank", instances=0, mosaics=0)
    dataset = mb.MosaicDataset(Plain(), bank)
    _image, target = dataset[12 + 2]
    assert "image_id" in target and bank.demand()["missed"].tolist() == [0, 0, 1, 0, 0]


def test_kinds_of_images_are_kept(tmp_path):
    bank = make_bank(tmp_path / "bank")
    paste = mb.PasteTransform(bank, min_instances=3, max_instances=3)
    image, target = Plain()[0]
    out, new = paste(image, target, seed=1)
    assert out.dtype == torch.float32 and new["masks"].dtype == torch.uint8
    assert "iscrowd" not in new and new["image_id"] == 0 and new["source"].sum() > 0
    byte = (image * 255).to(torch.uint8)
    out, _ = paste((byte, target), seed=1)
    assert out.dtype == torch.uint8
    from PIL import Image

    pil, _ = paste(Image.fromarray(byte.permute(1, 2, 0).numpy()), target, seed=1)
    assert np.array_equal(np.asarray(pil), out.permute(1, 2, 0).numpy())
    from torchvision import tv_tensors as tv

    boxes = tv.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=(90, 100))
    out, new = paste(tv.Image(byte), {**target, "boxes": boxes, "masks": tv.Mask(target["masks"])})
    assert isinstance(out, tv.Image) and isinstance(new["boxes"], tv.BoundingBoxes)
    assert isinstance(new["masks"], tv.Mask)
    _ = _core


def test_the_samplers_state_goes_through_a_checkpoint(tmp_path):
    def make():
        return mb.Sampler(12, mix_ratio=0.4, image_counts=np.array([0, 1, 1, 5, 9]), seed=3)

    sampler = make()
    iterator = iter(sampler)
    for _ in range(100):
        next(iterator)
    torch.save(sampler.state_dict(), tmp_path / "state.pt")
    rest = [next(iterator) for _ in range(300)]
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    # Earlier versions wrote the weights as an array.
    for old in (state, {**state, "weights": np.asarray(state["weights"])}):
        fresh = make()
        fresh.load_state_dict(old)
        again = iter(fresh)
        assert [next(again) for _ in range(300)] == rest
    with pytest.raises(TypeError, match="weights"):
        make().load_state_dict({**state, "weights": "heavy"})
