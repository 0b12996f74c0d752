"""Two ranks, without GPUs: one bank, streams of their own, states of both in a checkpoint."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import material as made
import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm

from mosaicbank.detectron2 import build_mosaic_train_loader, mosaic_hooks

RANKS = 2
STOP, END = 3, 6


class Nothing(torch.nn.Module):
    """The least that can be trained."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, batch):
        return {"loss": self.weight.sum() * len(batch)}


def trained(cfg, steps, state=None):
    """The indices of every batch, and the trainer's state after them."""
    loader = build_mosaic_train_loader(cfg)
    model = Nothing()
    trainer = SimpleTrainer(model, loader, torch.optim.SGD(model.parameters(), 0.1))
    trainer.register_hooks(mosaic_hooks(loader, checkpoint_period=STOP))
    if state is not None:
        trainer.load_state_dict(state)
    drawn = []
    first = 0 if state is None else STOP
    original = loader._seen

    def seen(batch):
        original(batch)
        drawn.append([s["mosaicbank"]["index"] for s in batch])

    loader._seen = seen
    trainer.train(first, steps)
    trainer.iter -= 1  # as when a checkpoint is written
    return drawn, trainer.state_dict(), loader


def rank_main(rank, folder, data):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS
    )
    if hasattr(comm, "create_local_process_group"):
        comm.create_local_process_group(RANKS)
    else:
        comm._LOCAL_PROCESS_GROUP = torch.distributed.new_group(range(RANKS))
    name = made.register("mosaicbank_ranks", Path(data))
    cfg = made.make_cfg(name, Path(folder))
    cfg.MOSAIC.PASTE.ENABLED = False
    whole, _, _ = trained(cfg, END)
    before, state, _ = trained(cfg, STOP)
    # Only rank 0 writes checkpoints; all ranks read that one.
    state = comm.all_gather(state)[0]
    after, _, loader = trained(cfg, END, state)
    result = {
        "whole": whole,
        "resumed": before + after,
        "batch": loader.sampler.batch_size,
        "keys": [loader.sampler.stream.decode(i)[2] for b in whole for i in b],
        "bank": str(loader.bank.path),
    }
    Path(folder, f"rank-{rank}.json").write_text(json.dumps(result))
    comm.synchronize()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks(tmp_path):
    data = made.make_training_set(tmp_path / "drawings")
    torch.multiprocessing.spawn(rank_main, (str(tmp_path), str(data)), nprocs=RANKS)
    results = [json.loads((tmp_path / f"rank-{r}.json").read_text()) for r in range(RANKS)]
    for result in results:
        assert result["batch"] == 2 and len(result["whole"]) == END
        assert result["resumed"] == result["whole"]
    assert len({r["bank"] for r in results}) == 1
    assert not set(results[0]["keys"]) & set(results[1]["keys"])
    ranks = [{key % RANKS for key in r["keys"]} for r in results]
    assert ranks == [{0}, {1}]
    flat = list(itertools.chain(*results[0]["whole"]))
    assert len(set(flat)) == len(flat) == END * 2
