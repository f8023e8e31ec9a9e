"""
Not a classifier: a detector with a loss and a metric of its own
================================================================

For any task but classification, say how outputs are scored: ``amc.Objective`` takes a loss and a metric, each with one
number per sample.
"""

# %%
# The network finds a digit in a larger, noisy image: it answers with the centre and the size of its box.

import matplotlib.pyplot as plt
import torch
from matplotlib.patches import Rectangle
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import amc

digits = torch.tensor(load_digits().images, dtype=torch.float32) / 16


def scenes(count, seed):
    """Images ``[count, 1, 24, 24]`` with one digit of 8 to 16 pixels, and its box: centre and side, in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    canvas, boxes = 0.15 * torch.rand(count, 1, 24, 24, generator=generator), torch.zeros(count, 3)
    for image, box in zip(canvas, boxes, strict=True):
        pick = torch.randint(0, len(digits), (1,), generator=generator).item()
        side = torch.randint(8, 17, (1,), generator=generator).item()
        y, x = torch.randint(0, 25 - side, (2,), generator=generator).tolist()
        image[0, y : y + side, x : x + side] += F.interpolate(digits[pick][None, None], (side, side))[0, 0]
        box[:] = torch.tensor([x + side / 2, y + side / 2, side]) / 24
    return TensorDataset(canvas, boxes)


def corners(boxes):
    """Left, top, right and bottom ``[N, 4]`` of boxes ``[N, 3]``."""
    half = boxes[:, 2:] / 2
    return torch.cat([boxes[:, :2] - half, boxes[:, :2] + half], 1)


def loss(found, wanted):
    return F.smooth_l1_loss(found, wanted, reduction="none", beta=0.05).sum(1)  # [N]


def overlap(found, wanted):
    """Intersection over union, for each image ``[N]``."""
    a, b = corners(found), corners(wanted)
    sides = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp_min(0)
    common = sides.prod(1)
    return common / (found[:, 2] ** 2 + wanted[:, 2] ** 2 - common).clamp_min(1e-6)


def layer(inputs, outputs, stride):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


torch.manual_seed(0)
train, test = scenes(1024, 0), scenes(256, 1)
model = nn.Sequential(
    layer(1, 16, 2), layer(16, 24, 2), layer(24, 32, 2), nn.Flatten(), nn.Linear(288, 64), nn.ReLU(), nn.Linear(64, 3)
)
optimizer = torch.optim.Adam(model.parameters(), 3e-3)
for _ in range(300):
    images, boxes = train[torch.randint(0, 1024, (64,))]
    optimizer.zero_grad()
    loss(model(images), boxes).mean().backward()
    optimizer.step()

# %%
# ``amc.compress`` does the rest, with this objective for the search, the training and the report.

result = amc.compress(
    model.eval(),
    train,
    test,
    budget={"flops": 0.4},
    objective=amc.Objective("IoU", loss, overlap),
    name="detector",
    config={
        "data": {"search": 200, "calibration": 256},
        "search": {"evaluations": 8},
        "finetune": {"epochs": 10, "lr": 0.01, "candidates": 1},
        "threads": 1,
    },
)
result

# %%
# White: the truth; blue: the original; orange: the compressed network.

images, truth = test[:6]
with torch.inference_mode():
    answers = {"white": truth, "tab:blue": model(images), "tab:orange": result.model(images)}
figure, panels = plt.subplots(1, 6, figsize=(9, 1.8), layout="constrained")
for number, axes in enumerate(panels):
    axes.imshow(images[number, 0], cmap="gray")
    axes.axis("off")
    for colour, boxes in answers.items():
        left, top, right, bottom = (24 * corners(boxes)[number] - 0.5).tolist()
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, color=colour, linewidth=1.5))
plt.show()
