"""What each of several training processes does; in a file of its own, since every process imports it anew."""

from __future__ import annotations

import os

import torch
from networks import bundled
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import amc


def worker(rank: int, port: int, code: str) -> None:
    """The documentation's ``code`` with the environment that torchrun gives, then the same with the class.

    Every process must end with the same weights.
    """
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    data = TensorDataset(torch.randn(256, 1, 8, 8), torch.arange(256) % 10)
    names = {"torch": torch, "F": F, "DataLoader": DataLoader, "amc": amc, "data": data}
    exec(compile(code, "docs", "exec"), names)
    _same_everywhere(names["model"], amc.load("bundle"))  # type: ignore[arg-type]
    start = amc.load("bundle", bundled())
    model = nn.parallel.DistributedDataParallel(amc.load("bundle", bundled()).train())
    F.cross_entropy(model(torch.randn(8, 1, 8, 8)), torch.arange(8)).backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    _same_everywhere(model, start)
    torch.distributed.destroy_process_group()


def _same_everywhere(model: nn.Module, before: nn.Module) -> None:
    mine = torch.cat([p.detach().flatten() for p in model.parameters()])
    both = [torch.empty_like(mine) for _ in range(2)]
    torch.distributed.all_gather(both, mine)
    assert torch.equal(*both)
    assert not torch.equal(mine, torch.cat([p.detach().flatten() for p in before.parameters()]))
