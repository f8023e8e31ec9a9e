"""
Pruned and quantised
====================

``int8`` adds an 8-bit model beside the float one. Several settings are quantised, scored and timed; the fastest whose
accuracy stays within a point on the search split is kept.
"""

# %%
# Quantisation does not replace pruning, it comes on top of it: 8 bits make each channel cheaper, pruning leaves fewer.

import matplotlib.pyplot as plt

import amc

result = amc.run(
    amc.Config(
        budget={"flops": 0.5},
        data={"search": 200, "calibration": 256},
        search={"searcher": "allocate", "evaluations": 1, "refine": 1},
        finetune={"epochs": 3, "candidates": 1},
        int8=True,
        threads=1,
    )
)
summary = result.summary
networks = {"original": summary["original"], "pruned": summary["final"], "pruned, 8 bits": summary["int8"]}
for name, network in networks.items():
    print(f"{name:15} accuracy {network['test']:.4f}  {network['size']:7.0f} bytes  {network['latency_ms']:.4f} ms")

# %%
# The file shrinks again. A network this small can even take longer in 8 bits: values are converted between its small
# layers, above all on a CPU without 8-bit instructions (``amc doctor`` says whether yours has them). On ResNet-56, with
# such instructions, the 8-bit model takes a fifth of the original's time (:doc:`/results`).

figure, panels = plt.subplots(1, 3, figsize=(9, 3), layout="constrained")
for axes, (key, label) in zip(
    panels, {"test": "test accuracy", "size": "bytes of the file", "latency_ms": "ms"}.items(), strict=True
):
    axes.bar(list(networks), [network[key] for network in networks.values()], color=["#8a94a6", "#2f5fc4", "#c4562f"])
    axes.set_title(label, fontsize=10)
    axes.tick_params(axis="x", labelrotation=20, labelsize=8)
plt.show()
