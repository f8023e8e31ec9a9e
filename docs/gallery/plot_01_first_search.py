"""
A first search
==============

Halve the multiply-accumulates (MACs) of a network that comes with amc, and see which layers it keeps wide.
"""

# %%
# ``amc.run`` does what ``amc search`` does. Without a model and data of your own it takes a ResNet-8 for handwritten
# digits. Everything that is not said here has a default; few evaluations and one epoch keep this example short.

import matplotlib.pyplot as plt

import amc

config = amc.Config(
    budget={"flops": 0.5},
    data={"search": 200, "calibration": 256},
    search={"evaluations": 8},
    finetune={"epochs": 1, "candidates": 1},
    threads=1,
)
result = amc.run(config)
result

# %%
# The result is an ordinary ``torch.nn.Module``, beside everything that is known of it. The policy says how many
# channels every site keeps: a site is a group of layers whose channels can only be removed together.

for name, setting in result.policy.settings.items():
    print(f"{name:16} {setting.width:3} of {setting.of}")

# %%
# Widths before and after:

names = list(result.policy.settings)
before = [setting.of for setting in result.policy.settings.values()]
after = [setting.width for setting in result.policy.settings.values()]

figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
axes.barh(names, before, color="#dfe3ec", label="original")
axes.barh(names, after, color="#2f5fc4", label="after the search")
axes.invert_yaxis()
axes.set_xlabel("channels")
axes.legend(frameon=False)
plt.show()

# %%
# The folder holds the ONNX model, the weights, the policy, and a report to open in a browser.

print(*sorted(path.name for path in result.folder.iterdir()), sep="\n")
