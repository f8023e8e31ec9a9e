"""
A latency model of your own
===========================

A device that is not on your desk can still limit the search, if you can say how long it takes. A latency model is a
class with a name, a unit and ``predict``.
"""

# %%
# This accelerator computes blocks of 16 × 16 channels: 17 channels take as long as 32. ``prepare`` is given the layers
# of the network, with their sizes. amc reads the class from a file, so that it can resume a run.

import importlib.util
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import amc

Path("accelerator.py").write_text('''
class Accelerator:
    """Computes blocks of 16 × 16 channels, and takes two microseconds to start a layer."""

    name, unit = "my accelerator", "ms"

    def prepare(self, problem):
        self.layers = problem.layers

    def predict(self, widths):
        blocks = sum(
            -(-layer.inputs(widths) // 16) * -(-layer.outputs(widths) // 16) * layer.taps * layer.positions
            for layer in self.layers
        )
        return 0.002 * len(self.layers) + 1e-5 * blocks
''')

# %%
# The contract suite says whether the search can use it: finite, repeatable, plausible as milliseconds, fast.

from amc.testing import check_latency_model, example_problem

spec = importlib.util.spec_from_file_location("accelerator", "accelerator.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
check_latency_model(module.Accelerator, milliseconds=1)

# %%
# What the model says of one layer, for every width:

with example_problem() as problem:
    model = module.Accelerator()
    model.prepare(problem)
    site, channels = "layer3.0.conv1", problem.full["layer3.0.conv1"]
    times = [model.predict({**problem.full, site: width}) for width in range(1, channels + 1)]

figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
axes.plot(np.arange(1, channels + 1), times, drawstyle="steps-mid")
axes.set_xticks(range(0, channels + 1, 16))
axes.set_xlabel(f"channels of {site}")
axes.set_ylabel("ms")
plt.show()

# %%
# Now limit the time on that device. Where latency is the only limit, the legal widths are those at which the time
# changes, so the search does not waste channels: every width that it chooses is a multiple of 16.

result = amc.run(
    amc.Config(
        budget={"latency": 0.85},
        data={"search": 200, "calibration": 256},
        search={"latency_model": "accelerator.py:Accelerator", "evaluations": 6},
        finetune={"epochs": 0, "candidates": 1},
        threads=1,
    )
)
for name, setting in result.policy.settings.items():
    print(f"{name:16} {setting.width:3} of {setting.of}")
