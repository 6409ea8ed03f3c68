"""One of two processes that train every method on half of each batch; run by test_conformance."""

import copy
import importlib.util
import json
from pathlib import Path

import torch
import torch.distributed

torch.set_num_threads(1)
spec = importlib.util.spec_from_file_location("conformance", Path(__file__).with_name("test_conformance.py"))
conformance = importlib.util.module_from_spec(spec)
spec.loader.exec_module(conformance)


from omma.core.protocols import Batch, Key  # noqa: E402
from omma.train.loop import Position, train  # noqa: E402
from omma.train.optimizer import make_optimizer  # noqa: E402

KEYS = ("params", "label", "lr_scale", "decay", "frozen_until")


def part(batch, rank, world):
    """This process's share of a batch."""
    n = len(batch.labels) // world
    rows = slice(rank * n, (rank + 1) * n)
    key = Key(batch.key.seed, batch.key.epoch[rows], batch.key.index[rows])
    text = None if batch.text is None else batch.text[rows]
    fields = {name: values[rows] for name, values in batch.fields.items()}
    return Batch(tuple(v[rows] for v in batch.views), key, batch.labels[rows], text, None, fields)


def weights(name, model, share):
    """All state after two steps; `share` of each batch.

    VQ-VAE's after one: in the second a code that is nearest but for rounding may be another.
    """
    file, recipe, method = conformance.build(name, model)
    steps = 1 if name == "vqvae" else 2
    batches = (share(conformance.batch_of(file, recipe, s)) for s in range(steps))
    # plain SGD: AdamW's first steps blow rounding errors of tiny gradients up to the size of a step
    groups = [{k: v for k, v in g.items() if k in KEYS} for g in make_optimizer(method, recipe).param_groups]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    list(train(method, optimizer, batches, recipe, Position(0, steps, 8, 100)))
    return method.state_dict()


def rejected(name, rank):
    """Is a step rejected, and nothing moved, for which only the last process's images are broken?"""
    file, recipe, method = conformance.build(name, conformance.MODELS[0])
    before = copy.deepcopy(method.state_dict())
    batch = part(conformance.batch_of(file, recipe, 0), rank, 2)
    if rank == 1:
        batch.views[0][0] = float("nan")
    (step,) = train(method, make_optimizer(method, recipe), iter([batch]), recipe, Position(0, 1, 8, 100))
    same = all(torch.equal(value, before[key]) for key, value in method.state_dict().items())
    return step.rejected is not None and same


def main(rank, folder):
    alone = {}
    if rank == 0:
        alone = {pair: weights(*pair, lambda batch: batch) for pair in conformance.pairs()}
    store = torch.distributed.FileStore(str(folder / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    differences = {}
    for pair in conformance.pairs():
        together = weights(*pair, lambda batch: part(batch, rank, 2))
        if rank == 0:
            differences["-".join(pair)] = max(
                float((value.double() - alone[pair][key].double()).abs().max())
                for key, value in together.items()
            )
    broken = {name: rejected(name, rank) for name in ("dino mean", "simclr")}
    if rank == 0:
        (folder / "rejected.json").write_text(json.dumps(broken))
        (folder / "differences.json").write_text(json.dumps(differences))
    torch.distributed.destroy_process_group()
