"""
A small transformer
===================

Attention heads, MLP widths and the embedding are sites like any other. Nothing has to be annotated: amc finds them by
following the channels through the network.
"""

# %%
# A vision transformer for digits of 8 × 8 pixels, cut into 16 patches. It is an ordinary PyTorch module.

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import amc


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):  # [N, T, W]
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    def __init__(self, width=32, heads=4, depth=2):
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, 2)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, images):  # [N, 1, 8, 8]
        x = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(x)).mean(1))


torch.manual_seed(0)
digits, order = load_digits(), torch.randperm(1797)
images, classes = torch.tensor(digits.images, dtype=torch.float32)[order, None] / 16, torch.tensor(digits.target)[order]
train, test = TensorDataset(images[:1400], classes[:1400]), TensorDataset(images[1400:], classes[1400:])

model = Transformer()
optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
for _ in range(300):
    batch = torch.randint(0, 1400, (128,))
    optimizer.zero_grad()
    F.cross_entropy(model(images[batch]), classes[batch]).backward()
    optimizer.step()

# %%
# Compress it to half of its MACs. The sites are named after the layers that produce their channels.

result = amc.compress(
    model,
    train,
    test,
    budget=0.5,
    name="transformer",
    config={
        "data": {"search": 200, "calibration": 256},
        "search": {"evaluations": 8},
        "finetune": {"epochs": 5, "candidates": 1},
        "threads": 1,
    },
)
result

# %%
# The unit of a site is what can be removed: a whole head of the attention, or one unit of an MLP.

settings = result.policy.settings
figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
axes.barh(list(settings), [1] * len(settings), color="#dfe3ec")
bars = axes.barh(list(settings), [s.width / s.of for s in settings.values()], color="#2f5fc4")
axes.bar_label(bars, [f"{s.width} of {s.of}" for s in settings.values()], label_type="center", color="white")
axes.invert_yaxis()
axes.set_xlabel("share that is kept")
plt.show()
