"""Makes a bundle of the present version, to be kept as an old one: python tests/data/make_bundle.py FOLDER."""

import sys
from pathlib import Path

import torch
from torch.utils.data import TensorDataset

sys.path.insert(0, str(Path(__file__).parent.parent))

from networks import bundled

import amc
from amc.config import from_dict
from amc.deploy.bundle import seal

images = torch.randn(200, 1, 8, 8, generator=torch.Generator().manual_seed(2))
data = TensorDataset(images, bundled()(images).argmax(1))
config = from_dict({"search": {"evaluations": 4, "min_keep": 0.3, "channel_step": 1}, "finetune": {"epochs": 1}})
result = amc.compress(bundled(), data, data, amc.Budget(flops=0.6), config=config, name="old")
folder = result.save(sys.argv[1])
for name in ("original.onnx", "journal.jsonl", "report.md", "report.html"):
    (folder / name).unlink()
seal(folder)
