"""result.json: pydantic models of its content, which also generate docs/result.md, and a function that reads it.

python -m amc.deploy.result > docs/result.md
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from amc.deploy.result_details import Answers, LayerLine, SiteSensitivity
from amc.deploy.result_part import Count, Number, ResultPart, described
from amc.errors import BundleError
from amc.runtime.files import read_bytes

FORMAT: Literal["amc-result"] = "amc-result"
VERSION: Literal[1] = 1


class NetworkName(ResultPart):
    name: str = described("name of the network as configured, without folders")
    fingerprint: str = described("first 32 hex digits of the SHA-256 over the original's tensors")


class DataUsed(ResultPart):
    source: str = described("name of the data")
    splits: dict[str, Any] = described("the splits: sizes, seed, and digests of their indices")


class BudgetAsked(ResultPart):
    asked: dict[str, Any] = described("the budget as the user wrote it")
    limits: dict[str, Number] = described("absolute limits, by resource")


class Measured(ResultPart):
    search: Number = described("metric on the search split")
    test: Number | None = described("metric on the test split", None)
    macs: Number = described("multiply-accumulates of one inference")
    params: Number = described("parameters")
    size: Number = described("bytes of the ONNX file")
    memory: Number = described("peak bytes of activations")
    branches: Number | None = described("removable residual branches that are kept, if the network has any", None)
    latency_ms: Number | None = described("time of one inference, 10th percentile, in milliseconds", None)


class TrainedOriginal(ResultPart):
    search: Number = described("metric on the search split")
    test: Number = described("metric on the test split")


class Difference(ResultPart):
    search: Number = described("on the search split")
    test: Number = described("on the test split")


class Differences(ResultPart):
    given: Difference = described("from the original as given")
    trained_on: Difference | None = described(
        "from the original after further training; null if it was not trained", None
    )


class BeforeTraining(ResultPart):
    search: Number | None = described("metric of the pruned network on the search split, before fine-tuning", None)


class Milliseconds(ResultPart):
    original: Number = described("time of the original")
    final: Number = described("time of the delivered network")


class Interval(ResultPart):
    value: Number = described("the ratio")
    low: Number = described("lower end of its 95 % interval")
    high: Number = described("upper end of its 95 % interval")


class LatencyFound(ResultPart):
    threads: Count = described("threads of ONNX Runtime")
    rounds: Count = described("rounds of measurement; each round times all networks")
    min_ms: Milliseconds = described("minimum, in milliseconds")
    p10_ms: Milliseconds = described("10th percentile, in milliseconds")
    median_ms: Milliseconds = described("median, in milliseconds")
    ratio: Interval = described("the delivered network's time, as a share of the original's")
    prediction: dict[str, Any] | None = described(
        "only with a latency limit: the model and its cross-validated error, the chosen policy's `predicted_ms` and "
        "`corrected_ms`, the mean error of predictions for the `measured_policies` (undisturbed ones only), and every "
        "correction with its reason",
        None,
    )


class SettingTried(ResultPart):
    setting: str = described("the setting of quantisation")
    search: Number = described("metric on the search split")
    ratio: Number = described("time, as a share of model.onnx")
    in_float: Count = described("number of layers that ONNX Runtime computes in float")


class EightBits(ResultPart):
    setting: str = described("the chosen setting")
    search: Number = described("metric on the search split")
    test: Number = described("metric on the test split")
    size: Number = described("bytes of model.int8.onnx")
    latency_ms: Number = described("time of one inference, 10th percentile, in milliseconds")
    original_ms: Number | None = described("the original's time, measured beside it", None)
    final_ms: Number | None = described("model.onnx's time, measured beside it", None)
    ratio: Interval = described("its time, as a share of the original's")
    ratio_to_final: Interval = described("its time, as a share of model.onnx's")
    in_float: list[str] = described("layers that ONNX Runtime computes in float")
    layers: Count = described("number of all convolutions and matrix products")
    tried: list[SettingTried] = described("all tried settings")


class ProofLine(ResultPart):
    resource: str = described("macs, params, size, memory, latency or branches")
    unit: str = described("its unit")
    limit: Number = described("the limit")
    exported: Number = described("value of the exported model")
    met: bool = described("whether the limit is kept")
    how: str = described("how the value was determined")


class MacCounts(ResultPart):
    amc: Number = described("counted by amc")
    fvcore: Number | None = described("counted by fvcore; null if it cannot trace the network", None)
    uncounted: list[str] = described(
        "operators without a rule in amc; if there are any, a limit on MACs cannot be proved"
    )
    fvcore_uncounted: list[str] = described("operators without a rule in fvcore")
    disagreement: str | None = described("why the two counts differ", None)


class ParityFound(ResultPart):
    samples: Count = described("number of compared samples")
    largest_difference: Number = described(
        "largest difference between ONNX Runtime and torch, as a share of the largest output"
    )


class SiteLine(ResultPart):
    name: str = described("name of the site")
    width: Number = described("size of the chosen setting: for a channel group, the kept channels")
    of: Number = described("size of the original's setting")
    setting: Any = described("the setting, if the site is not a channel group", None)


class SearchDone(ResultPart):
    searcher: str = described("name of the searcher")
    evaluations: Count = described("number of evaluated policies")
    criterion: str = described("name of the importance criterion")
    recalibrate: bool = described("whether BatchNorm statistics were recomputed in every evaluation", False)
    reward: str = described("name of the reward")


class CandidateLine(ResultPart):
    choice: list[Any] = described("the setting of every site")
    before: Number | None = described("metric on the search split before training", None)
    after: Number | None = described("metric on the search split after brief fine-tuning", None)
    chosen: bool = described("whether this policy was delivered")


class TrainingDone(ResultPart):
    precision: str = described("precision of training")
    recipe: str = described("the recipe, before single settings", "quick")
    epochs: Number | None = described("epochs over what was trained on; 0: no training", None)


class StageLine(ResultPart):
    name: str = described("name of the stage")
    seconds: Number = described("seconds spent on it, over all resumptions")


class Environment(ResultPart):
    cpu: str = described("the processor, with its vector instructions", "")
    cores: Count = described("number of its cores", 0)
    threads: Count = described("threads of torch", 0)
    python: str = described("version of Python", "")
    versions: dict[str, Any] = described("versions of packages")
    date: str = described("date of the run", "")


class ResultFile(ResultPart):
    """The whole file. Accuracies are shares in [0, 1]."""

    format: Literal["amc-result"] = described("kind of file")
    version: Literal[1] = described("version of the format")
    task: str = described("network and data, as text")
    model: NetworkName = described("the network")
    data: DataUsed = described("the data")
    metric: str = described("name of the metric")
    budget: BudgetAsked = described("the budget")
    original: Measured = described("the original network")
    pruned: BeforeTraining = described("the pruned network before training")
    final: Measured = described("the delivered network")
    trained_original: TrainedOriginal | None = described(
        "the original, trained for as long and in the same way; null if it was not", None
    )
    differences: Differences | None = described("metric of the delivered network minus that of the original", None)
    latency: LatencyFound | None = described("latency of both networks, measured side by side", None)
    int8: EightBits | None = described("model.int8.onnx, if it was requested and could be made", None)
    proof: list[ProofLine] = described("one entry per limit")
    macs: MacCounts | None = described("MACs of the delivered network, counted twice", None)
    parity: ParityFound = described("comparison of model.onnx with the network in torch")
    sites: list[SiteLine] = described("one entry per site")
    search: SearchDone = described("the search")
    candidates: list[CandidateLine] = described("the policies that were briefly fine-tuned")
    finetune: TrainingDone | None = described("fine-tuning", None)
    stages: list[StageLine] = described("one entry per stage")
    environment: Environment = described("machine and versions")
    config: dict[str, Any] = described("the whole configuration, without folders and passwords")
    notes: list[str] = described("notes for the user")
    command: str | None = described("the command that repeats the run; without folders and passwords", None)
    sensitivity: list[SiteSensitivity] | None = described(
        "what every site would lose at every size, if the searcher estimates that", None
    )
    layers: list[LayerLine] = described("convolutions and matrix products of the ONNX files", [])
    answers: Answers | None = described("comparison of the networks' answers, if the labels are classes", None)


def read_result(path: Path) -> dict[str, Any]:
    """Read and check a result.json; every string is made printable and one line. Raises BundleError."""
    try:
        result = _clean(json.loads(read_bytes(path, own=True)))
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}.") from None
    except (ValueError, RecursionError):
        raise BundleError(f"{path} is not JSON.") from None
    if not isinstance(result, dict) or (result.get("format"), result.get("version")) != (FORMAT, VERSION):
        raise BundleError(f"{path} is not a result of amc, version {VERSION}.")
    try:
        ResultFile.model_validate(result)
    except ValidationError as error:
        raise BundleError(f"{path} is damaged: {_first_error(error)}.") from None
    return result


_KINDS = {"string": "a text", "dict": "an object", "model": "an object", "list": "a list", "bool": "true or false"}


def _first_error(error: ValidationError) -> str:
    """The path of the first error, and the expected type."""
    first = error.errors(include_url=False)[0]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    if first["type"] == "missing":
        return f"{where} is missing"
    return f"{where} is not {_KINDS.get(first['type'].partition('_')[0], 'a number')}"


def _clean(value: Any) -> Any:
    """Replace unprintable characters in all strings (line ends, controls, lone surrogates) by spaces."""
    if isinstance(value, dict):
        return {_clean(key): _clean(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_clean(inner) for inner in value]
    if isinstance(value, str):
        return "".join(character if character.isprintable() else " " for character in value)
    return value


def rows(model: type[BaseModel] = ResultFile, path: str = "") -> Iterator[tuple[str, str, str]]:
    """Path, type and description of every field.

    >>> next(row for row in rows() if row[0] == "final.size")
    ('final.size', 'number', 'bytes of the ONNX file')
    """
    for name, field in model.model_fields.items():
        inner, word = _described(field)
        where = f"{path}{name}{'[]' if word.startswith('list') else ''}"
        yield where, word, str(field.description)
        if inner is not None:
            yield from rows(inner, f"{where}.")


def _described(field: FieldInfo) -> tuple[type[BaseModel] | None, str]:
    """The model inside a field, and the name of the field's type."""
    kind: Any = field.annotation
    missing = ""
    if get_origin(kind) in (Union, UnionType):
        kind, missing = get_args(kind)[0], ", or null"
    many = get_origin(kind) is list
    kind = get_args(kind)[0] if many else kind
    kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    word = {str: "text", float: "number", int: "number", bool: "true or false", Any: "any"}.get(kind, "object")
    word = "list" if get_origin(kind) is list else word
    if get_origin(kind) is Literal:
        word = json.dumps(get_args(kind)[0])
    inner = kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
    return inner, f"{'list of ' if many else ''}{word}{'s' if many and word != 'any' else ''}{missing}"


_HEAD = """# result.json

Accuracies are shares in [0, 1], sizes are bytes, and times are milliseconds or seconds, as in the name of the key.
This page is generated from the models that read the file: `python -m amc.deploy.result > docs/result.md`.

| key | type | content |
|---|---|---|
"""


def as_markdown() -> str:
    """The content of docs/result.md."""
    return _HEAD + "".join(f"| `{where}` | {word} | {text} |\n" for where, word, text in rows())


if __name__ == "__main__":
    print(as_markdown(), end="")
