"""The parts of result.json that only reports read: sensitivity, layers, and changed answers."""

from __future__ import annotations

from amc.deploy.result_part import Count, Number, ResultPart, described


class SiteSensitivity(ResultPart):
    site: str = described("name of the site")
    sizes: list[Number] = described("sizes of its settings, the original's last", min_length=1)
    errors: list[Number] = described("estimated increase of the search objective at each of them")


class LayerCosts(ResultPart):
    inputs: Count = described("input channels")
    outputs: Count = described("output channels")
    params: Count = described("parameters")
    macs: Number | None = described("multiply-accumulates of one inference; null if a shape is unknown", None)
    ms: Number | None = described("time under ONNX Runtime's profiler, in milliseconds", None)


class LayerLine(ResultPart):
    name: str = described("name of the layer")
    operator: str = described("its ONNX operator")
    original: LayerCosts = described("in original.onnx")
    final: LayerCosts | None = described("in model.onnx; null if the layer was removed", None)


class ChangedAnswer(ResultPart):
    label: Count = described("the label")
    original: Count = described("the original's answer")
    final: Count = described("the delivered network's answer")
    count: Count = described("number of samples")


class Confusion(ResultPart):
    original: list[list[Count]] = described("of the original")
    final: list[list[Count]] = described("of the delivered network")


class Answers(ResultPart):
    split: str = described("the split")
    samples: Count = described("number of compared samples")
    both_right: Count = described("samples on which both networks are right")
    lost: Count = described("samples on which only the original is right")
    gained: Count = described("samples on which only the delivered network is right")
    both_wrong: Count = described("samples on which both are wrong")
    changed: Count = described("samples on which the answers differ")
    pairs: list[ChangedAnswer] = described("the commonest changes")
    confusion: Confusion | None = described("counts by label and answer; null if there are many classes", None)
