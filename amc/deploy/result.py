"""result.json: what it holds, in pydantic models that are also its documentation (docs/result.md), and reading it.

python -m amc.deploy.result > docs/result.md
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from amc.errors import BundleError
from amc.runtime.files import read_bytes

FORMAT: Literal["amc-result"] = "amc-result"
VERSION: Literal[1] = 1

Number = Annotated[float, Field(ge=-1e300, le=1e300)]
Count = Annotated[int, Field(ge=0, le=1 << 62)]


def holds(description: str, default: Any = ..., **more: Any) -> Any:
    """A field with what it holds; with a ``default`` it may be missing."""
    return Field(default, description=description, **more)


class ResultPart(BaseModel):
    """A part of result.json. Nothing is taken for a number that is not one; what is not known is passed over."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)


class NetworkName(ResultPart):
    name: str = holds("the network, as it was named, without folders")
    fingerprint: str = holds("SHA-256 over the original's tensors, 32 hex digits of it")


class DataUsed(ResultPart):
    source: str = holds("the data")
    splits: dict[str, Any] = holds("the splits: sizes, seed, and digests of their indices")


class BudgetAsked(ResultPart):
    asked: dict[str, Any] = holds("as the user wrote it")
    limits: dict[str, Number] = holds("absolute limits, by resource")


class Measured(ResultPart):
    search: Number = holds("metric on the search split")
    test: Number | None = holds("metric on the test split", None)
    macs: Number = holds("multiply-accumulates of one inference")
    params: Number = holds("parameters")
    size: Number = holds("bytes of the ONNX file")
    memory: Number = holds("bytes of activations alive at once, at most")
    branches: Number | None = holds("residual branches, where they may be removed", None)
    latency_ms: Number | None = holds("time of one inference, 10th percentile, in milliseconds", None)


class BeforeTraining(ResultPart):
    search: Number | None = holds("metric of the pruned network on the search split, before fine-tuning", None)


class Milliseconds(ResultPart):
    original: Number = holds("of the original")
    final: Number = holds("of the delivered network")


class Interval(ResultPart):
    value: Number = holds("the ratio")
    low: Number = holds("lower end of its 95 % interval")
    high: Number = holds("upper end of it")


class LatencyFound(ResultPart):
    threads: Count = holds("threads of ONNX Runtime")
    rounds: Count = holds("rounds of measuring, all networks in each")
    min_ms: Milliseconds = holds("minimum, in milliseconds")
    p10_ms: Milliseconds = holds("10th percentile, in milliseconds")
    median_ms: Milliseconds = holds("median, in milliseconds")
    ratio: Interval = holds("the delivered network's time, as a share of the original's")
    prediction: dict[str, Any] | None = holds(
        "where latency was limited: the model and its cross-validated error, the chosen policy's `predicted_ms` and "
        "`corrected_ms`, how far predictions were off for the `measured_policies` (undisturbed ones only), and every "
        "correction with its reason",
        None,
    )


class SettingTried(ResultPart):
    setting: str = holds("the setting of quantisation")
    search: Number = holds("metric on the search split")
    ratio: Number = holds("time, as a share of model.onnx")
    in_float: Count = holds("layers left in float")


class EightBits(ResultPart):
    setting: str = holds("the setting that was chosen")
    search: Number = holds("metric on the search split")
    test: Number = holds("metric on the test split")
    size: Number = holds("bytes of model.int8.onnx")
    latency_ms: Number = holds("time of one inference, 10th percentile, in milliseconds")
    original_ms: Number | None = holds("the original's time, measured beside it", None)
    final_ms: Number | None = holds("model.onnx's time, measured beside it", None)
    ratio: Interval = holds("its time, as a share of the original's")
    ratio_to_final: Interval = holds("its time, as a share of model.onnx's")
    in_float: list[str] = holds("layers that ONNX Runtime computes in float")
    layers: Count = holds("convolutions and matrix products, all of them")
    tried: list[SettingTried] = holds("all settings that were tried")


class ProofLine(ResultPart):
    resource: str = holds("macs, params, size, memory, latency or branches")
    unit: str = holds("its unit")
    limit: Number = holds("the limit")
    exported: Number = holds("what was found of the exported model")
    met: bool = holds("whether the limit is kept")
    how: str = holds("how that is known")


class MacCounts(ResultPart):
    amc: Number = holds("counted by amc")
    fvcore: Number | None = holds("counted by fvcore; null where it cannot trace the network", None)
    uncounted: list[str] = holds("operators that amc has no rule for; then no limit on MACs is proved")
    fvcore_uncounted: list[str] = holds("operators that fvcore has no rule for")
    disagreement: str | None = holds("why the two disagree", None)


class ParityFound(ResultPart):
    samples: Count = holds("samples that were compared")
    largest_difference: Number = holds("of ONNX Runtime from torch, relative to the largest output")


class SiteLine(ResultPart):
    name: str = holds("the site")
    width: Number = holds("what is kept of it")
    of: Number = holds("what the original has")
    setting: Any = holds("the setting, where the site is no channel group", None)


class SearchDone(ResultPart):
    searcher: str = holds("the searcher")
    evaluations: Count = holds("policies that were evaluated")
    criterion: str = holds("the criterion")
    recalibrate: bool = holds("whether BatchNorm statistics were recomputed in every evaluation", False)
    reward: str = holds("what was maximised")


class CandidateLine(ResultPart):
    choice: list[Any] = holds("the setting of every site")
    before: Number | None = holds("metric on the search split before training", None)
    after: Number | None = holds("metric after the brief training", None)
    chosen: bool = holds("whether it is the one that was delivered")


class TrainingDone(ResultPart):
    precision: str = holds("precision that training ran in")


class StageLine(ResultPart):
    name: str = holds("the stage")
    seconds: Number = holds("seconds spent on it, interruptions added up")


class Environment(ResultPart):
    cpu: str = holds("the processor, with its vector instructions", "")
    cores: Count = holds("its cores", 0)
    threads: Count = holds("threads of torch", 0)
    python: str = holds("version of Python", "")
    versions: dict[str, Any] = holds("versions of packages")
    date: str = holds("the day", "")


class ResultFile(ResultPart):
    """The whole file. Accuracies are shares in [0, 1]."""

    format: Literal["amc-result"] = holds("what the file is")
    version: Literal[1] = holds("version of the format")
    task: str = holds("network and data, for people")
    model: NetworkName = holds("the network")
    data: DataUsed = holds("the data")
    metric: str = holds("name of the metric")
    budget: BudgetAsked = holds("the budget")
    original: Measured = holds("the original network")
    pruned: BeforeTraining = holds("the pruned network before training")
    final: Measured = holds("the delivered network")
    latency: LatencyFound | None = holds("what was measured of both networks side by side", None)
    int8: EightBits | None = holds("model.int8.onnx, where it was asked for and could be made", None)
    proof: list[ProofLine] = holds("a line for every limit")
    macs: MacCounts | None = holds("MACs of the delivered network, counted twice", None)
    parity: ParityFound = holds("model.onnx against the network in torch")
    sites: list[SiteLine] = holds("a line for every site")
    search: SearchDone = holds("how the search was set up")
    candidates: list[CandidateLine] = holds("the policies that were fine-tuned briefly")
    finetune: TrainingDone | None = holds("training", None)
    stages: list[StageLine] = holds("a line for every stage")
    environment: Environment = holds("where and with what it was made")
    config: dict[str, Any] = holds("the whole configuration, without folders and passwords")
    notes: list[str] = holds("what the user should know")


def read_result(path: Path) -> dict[str, Any]:
    """The content of a result.json, checked, with every text on one line and printable. Raises BundleError."""
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
        raise BundleError(f"{path} is damaged: {_told(error)}.") from None
    return result


_KINDS = {"string": "a text", "dict": "an object", "model": "an object", "list": "a list", "bool": "true or false"}


def _told(error: ValidationError) -> str:
    """The first error: its place, and what should be there."""
    first = error.errors(include_url=False)[0]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    if first["type"] == "missing":
        return f"{where} is missing"
    return f"{where} is not {_KINDS.get(first['type'].partition('_')[0], 'a number')}"


def _clean(value: Any) -> Any:
    """``value`` with what is unprintable in its texts (line ends, controls, lone surrogates) made spaces."""
    if isinstance(value, dict):
        return {_clean(key): _clean(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_clean(inner) for inner in value]
    if isinstance(value, str):
        return "".join(character if character.isprintable() else " " for character in value)
    return value


def rows(model: type[BaseModel] = ResultFile, path: str = "") -> Iterator[tuple[str, str, str]]:
    """Path, type and meaning of every field.

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
    """The model within a field, and the field's type in words."""
    kind: Any = field.annotation
    missing = ""
    if get_origin(kind) in (Union, UnionType):
        kind, missing = get_args(kind)[0], ", or null"
    many = get_origin(kind) is list
    kind = get_args(kind)[0] if many else kind
    kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    word = {str: "text", float: "number", int: "number", bool: "true or false", Any: "any"}.get(kind, "object")
    if get_origin(kind) is Literal:
        word = json.dumps(get_args(kind)[0])
    inner = kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
    return inner, f"{'list of ' if many else ''}{word}{'s' if many and word != 'any' else ''}{missing}"


_HEAD = """# result.json

Accuracies are shares in [0, 1]; MACs and parameters are counts, sizes bytes, times milliseconds or seconds as the name
says. This page is made from the models by which the file is read: `python -m amc.deploy.result > docs/result.md`.

| key | type | content |
|---|---|---|
"""


def as_markdown() -> str:
    """docs/result.md."""
    return _HEAD + "".join(f"| `{where}` | {word} | {text} |\n" for where, word, text in rows())


if __name__ == "__main__":
    print(as_markdown(), end="")
