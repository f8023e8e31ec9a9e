"""The configuration of a run: one tree of frozen dataclasses for Python, YAML and the command line.

A field carries its help text and, where the command line offers it, its flag. Unknown keys are errors.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from amc.errors import ConfigError, did_you_mean

T = TypeVar("T")


def option(default: Any, help_text: str, flag: str | None = None, choices: tuple[str, ...] = ()) -> Any:
    """A dataclass field with the text and the flag that the command line shows for it."""
    return field(default=default, metadata={"help": help_text, "flag": flag, "choices": choices})


@dataclass(frozen=True)
class ModelConfig:
    """Which network."""

    name: str = option(
        "resnet8",
        "the network: resnet8, resnet20, resnet56, mobilenetv1, mobilenetv2, vgg16bn (for small images), "
        "torchvision:NAME, timm:NAME, or path/to/file.py:factory",
        "--model",
    )
    weights: str | None = option(
        None,
        "its trained weights: a .safetensors file, a torch state dict (.pt, .pth), 'pretrained' for the "
        "library's own (needs a network connection) or 'random'; resnet8 on digits has its own",
        "--weights",
    )


@dataclass(frozen=True)
class DataConfig:
    """Which data, and how they are split."""

    name: str = option(
        "digits",
        "digits, fashion-mnist, cifar10, cifar100, imagefolder:PATH (train/, val/ and test/, or one folder "
        "per class) or path/to/file.py:factory",
        "--data",
    )
    root: str | None = option(None, "folder with the files of fashion-mnist, cifar10 or cifar100", "--data-root")
    download: bool = option(False, "let torchvision download the data set into --data-root", "--download")
    image_size: int | None = option(
        None, "side in pixels that images of an imagefolder are scaled to [their own size]", "--image-size"
    )
    mean: tuple[float, ...] | None = option(None, "channel means, of inputs in [0, 1] [the data set's]", "--mean")
    std: tuple[float, ...] | None = option(None, "channel deviations [the data set's]", "--std")
    calibration: int = option(4096, "images set aside from training for calibration", "--calibration-images")
    search: int = option(5000, "most images of the search split", "--search-images")
    seed: int = option(0, "seed of the splits", "--split-seed")


@dataclass(frozen=True)
class BudgetConfig:
    """The limits. A number up to 1 (or 50%) is a share of the original, anything else is absolute."""

    flops: str | None = option(
        None,
        "most multiply-accumulates (MACs) of one inference: a share (0.5, 50%%) or a count (20M)",
        "--flops",
    )
    params: str | None = option(None, "most parameters: a share or a count (100k)", "--params")
    size: str | None = option(None, "largest model.onnx: a share or a size (500KB = 500,000 bytes, 1MiB)", "--size")
    memory: str | None = option(
        None, "peak activation memory of one inference, float32, batch 1: a share or a size", "--memory"
    )
    latency: str | None = option(
        None,
        "time of one inference on ONNX Runtime, measured: a share (0.5) or a time (3ms, 800us)",
        "--latency",
    )
    branches: str | None = option(
        None,
        "residual branches that are left, a share or a number: the others are removed whole (for --int8 above all, "
        "where time goes with operators, not with widths)",
        "--branches",
    )


@dataclass(frozen=True)
class SearchConfig:
    """How policies are proposed and scored before fine-tuning."""

    searcher: str = option(
        "hybrid",
        "who proposes policies: hybrid, spdy, tpe, amc (DDPG), uniform … (amc searchers lists all)",
        "--searcher",
    )
    evaluations: int = option(60, "policies to evaluate", "--evaluations")
    storage: str | None = option(
        None,
        "where the study of an Optuna searcher is kept and shared with other processes: a database's URL "
        "(sqlite:///FILE, postgresql://…; $NAME is taken from the environment) or a file (.db: SQLite, .log: Optuna's "
        "journal) [study.log in the run's folder, not shared]",
        "--storage",
    )
    study_name: str | None = option(
        None, "name of the study in --storage [one for each network, data, budget and search]", "--study-name"
    )
    criterion: str = option("obs", "which channels go first: obs, l1, l2, or path/to/file.py:function", "--criterion")
    reward: str = option(
        "loss",
        "what the search maximises: loss (minus what --judge says), error (AMC's: -error), error-flops (-error log "
        "MACs), error-params (-error log parameters), error-latency (-error log ms, measured), or "
        "path/to/file.py:function",
        "--reward",
    )
    latency_model: str | None = option(
        None,
        "who predicts latency: a profile of amc profile, a table (.csv, .json), path/to/file.py:Class, "
        "'command:./measure.sh {onnx}' or an installed model's name [a profile that the run makes]",
        "--latency-model",
    )
    latency_timeout: float = option(
        120.0, "longest time in seconds of one measurement by the command of --latency-model", "--latency-timeout"
    )
    min_keep: float = option(
        -1.0,
        "least share of a site's channels to keep; 0: residual branches may go whole [-1: 0.2, and where latency is "
        "limited residual branches may go whole]",
        "--min-keep",
    )
    channel_step: int = option(0, "widths are multiples of this [0: 4 or 8, by the site's width]", "--channel-step")
    reconstruct: bool = option(True, "re-solve the following layers by least squares", "--reconstruct")
    drift: str = option(
        "search",
        "re-solve layers on what really reaches them in the pruned network: in every evaluation (search), of the best "
        "policies only (final: faster evaluations, which rank less well), or not (off)",
        "--drift",
        ("search", "final", "off"),
    )
    judge: str = option(
        "distance",
        "what a policy loses on an image: distance (mean squared difference of its logits from the original's; the "
        "loss without one vector of logits a sample) or loss (with the labels)",
        "--judge",
        ("distance", "loss"),
    )
    race: bool = option(
        True, "stop reading images for a policy once it is clear if it is better than the best so far", "--race"
    )
    refine: int = option(
        10, "policies of the search that are scored again with --drift before the candidates are taken", "--refine"
    )
    recalibrate: str = option(
        "auto",
        "recompute BatchNorm statistics in every evaluation (auto: try both on the uniform policy)",
        "--recalibrate",
        ("auto", "on", "off"),
    )

    @property
    def least_share(self) -> float:
        """Of a site's channels, where its branch stays."""
        return 0.2 if self.min_keep == -1 else self.min_keep


@dataclass(frozen=True)
class FinetuneConfig:
    """Training after pruning."""

    epochs: float = option(
        -1.0,
        "epochs of fine-tuning, fractions allowed; 0: none [-1: 20 on digits, 2 elsewhere]",
        "--finetune-epochs",
    )
    lr: float = option(0.03, "peak learning rate (SGD with Nesterov momentum, one cycle)", "--lr")
    batch_size: int = option(128, "images per step", "--batch-size")
    weight_decay: float = option(5e-4, "L2 weight decay", "--weight-decay")
    distillation: float = option(
        0.5, "weight of the original's soft targets in the loss; 0: labels only", "--distillation"
    )
    temperature: float = option(4.0, "temperature of the soft targets", "--temperature")
    candidates: int = option(3, "policies that are fine-tuned briefly before one is chosen", "--candidates")
    trial_share: float = option(0.1, "length of the brief fine-tuning, as a share of the full one", "--trial-share")
    precision: str = option(
        "auto",
        "auto (time both and take the faster), float32 or bfloat16",
        "--precision",
        ("auto", "float32", "bfloat16"),
    )


@dataclass(frozen=True)
class Config:
    """A whole run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    objective: str = option(
        "classification",
        "the loss and the metric: classification, or path/to/file.py:factory of an amc.Objective",
        "--objective",
    )
    seed: int = option(0, "seed of the search and the training; the splits have their own", "--seed")
    device: str = option("auto", "auto, cpu, cuda or cuda:N", "--device")
    threads: int = option(0, "threads of torch [0: all cores]", "--threads")
    int8: bool = option(
        False,
        "add model.int8.onnx, statically quantised to 8 bits: the fastest setting whose metric stays within a point",
        "--int8",
    )
    latency_threads: int = option(1, "threads of ONNX Runtime when latency is measured", "--latency-threads")
    cache: str | None = option(
        None,
        "keep what other runs can use (moments, orders, scores, the original's ONNX file) in this folder, and take "
        "from it what is there; auto: $AMC_CACHE or ~/.cache/amc [off; in a batch: auto]",
        "--cache",
    )
    log: str | None = option(
        None,
        "show the run's numbers while it goes on: tensorboard:FOLDER, or mlflow:URI of a store or a server ($NAME is "
        "taken from the environment) [off]",
        "--log",
    )
    memory_limit: float = option(
        0.0, "GiB that calibrating and scoring may take [0: half of the machine's]", "--memory-limit"
    )
    profile_seconds: float = option(
        60.0, "most seconds for learning what this machine takes, where latency is limited", "--profile-seconds"
    )
    out: str | None = option(None, "folder of the run [amc-runs/MODEL-DATA-N]", "--out")

    def __post_init__(self) -> None:
        _check(0 <= self.seed < 2**32, "seed", self.seed, "at least 0 and less than 2**32")
        _check(self.search.evaluations >= 1, "evaluations", self.search.evaluations, "at least 1")
        least = self.search.min_keep
        _check(0 <= least <= 1 or least == -1, "min_keep", least, "at least 0 and at most 1, or -1")
        _check(self.search.refine >= 1, "refine", self.search.refine, "at least 1")
        _check(self.search.channel_step >= 0, "channel_step", self.search.channel_step, "0 or more")
        _check(self.finetune.candidates >= 1, "candidates", self.finetune.candidates, "at least 1")
        _check(
            self.finetune.epochs >= 0 or self.finetune.epochs == -1, "epochs", self.finetune.epochs, "0 or more, or -1"
        )
        _check(self.finetune.lr > 0, "lr", self.finetune.lr, "above 0")
        _check(self.finetune.batch_size >= 2, "batch_size", self.finetune.batch_size, "at least 2")
        _check(0 <= self.finetune.distillation <= 1, "distillation", self.finetune.distillation, "in [0, 1]")
        _check(0 <= self.finetune.trial_share <= 1, "trial_share", self.finetune.trial_share, "in [0, 1]")
        _check(self.finetune.temperature > 0, "temperature", self.finetune.temperature, "above 0")
        _check(self.data.calibration >= 2, "calibration", self.data.calibration, "at least 2")
        _check(self.data.search >= 1, "search", self.data.search, "at least 1")
        _check(self.threads >= 0, "threads", self.threads, "0 or more")
        _check(self.memory_limit >= 0, "memory_limit", self.memory_limit, "0 or more")
        _check(self.latency_threads >= 1, "latency_threads", self.latency_threads, "at least 1")
        _check(self.profile_seconds > 0, "profile_seconds", self.profile_seconds, "above 0")
        _check(self.search.latency_timeout > 0, "latency_timeout", self.search.latency_timeout, "above 0")
        _check(self.finetune.weight_decay >= 0, "weight_decay", self.finetune.weight_decay, "0 or more")


def _check(ok: bool, key: str, value: object, rule: str) -> None:
    if not ok:
        raise ConfigError(f"{key} is {value}, but must be {rule}.")


def from_dict(values: Mapping[str, Any]) -> Config:
    """A configuration from nested mappings, as YAML gives them. Unknown keys and wrong types raise ConfigError."""
    return _build(Config, values, "")


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as nested plain values (tuples as lists), ready for YAML and JSON."""
    plain: dict[str, Any] = _plain(dataclasses.asdict(config))
    return plain


def binding(config: Config) -> dict[str, Any]:
    """What of a configuration may not change while a run goes on: all but its place and its share of a machine."""
    free = ("out", "cache", "log", "threads", "memory_limit")
    return {key: v for key, v in to_dict(config).items() if key not in free}


def from_yaml(path: str | Path) -> Config:
    """A configuration from a YAML file, read with the safe loader."""
    return from_dict(read_yaml(path))


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The safe loader, but a key that is there twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for key in keys if key != "<<" and keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.YAMLError(f"the key '{twice}' is there twice, {str(node.start_mark).strip()}")
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; ConfigError when there is none."""
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)  # noqa: S506  (it is a safe loader)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}, but must hold keys and values.")
    return values


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the nested ``changes`` put over it."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


@dataclass(frozen=True)
class Option:
    """One leaf of the tree as the command line shows it."""

    path: tuple[str, ...]
    flag: str
    help: str
    default: Any
    type: Any
    choices: tuple[str, ...]


def options(cls: type = Config, path: tuple[str, ...] = ()) -> Iterator[Option]:
    """Every leaf that has a flag, in the order of the tree."""
    hints = get_type_hints(cls)
    for leaf in dataclasses.fields(cls):
        where = (*path, leaf.name)
        if dataclasses.is_dataclass(hints[leaf.name]):
            yield from options(hints[leaf.name], where)
        elif leaf.metadata.get("flag"):
            meta = leaf.metadata
            yield Option(where, meta["flag"], meta["help"], leaf.default, hints[leaf.name], meta["choices"])


def convert(value: Any, wanted: Any, where: str) -> Any:
    """``value`` as the type ``wanted``, or ConfigError. Words are read as numbers where a number is wanted."""
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        return convert(value, next(t for t in inner if t is not type(None)), where)
    if origin is tuple:
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list | tuple):
            raise ConfigError(f"{where} is {value!r}, but must be numbers with commas between them.")
        return tuple(convert(part, inner[0], where) for part in parts)
    if wanted is bool:
        if isinstance(value, bool):
            return value
        raise ConfigError(f"{where} is {value!r}, but must be true or false.")
    if wanted is str and isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    if wanted in (int, float) and isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            if wanted is int and float(value) != int(float(value)):
                raise ValueError
            number = int(float(value)) if wanted is int else float(value)
            if not math.isfinite(number):
                raise ValueError
            return number
        except (ValueError, OverflowError):
            pass
    name = {int: "a whole number", float: "a number", str: "a word"}.get(wanted, str(wanted))
    raise ConfigError(f"{where} is {value!r}, but must be {name}.")


def _build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or 'the configuration'} is {values!r}, but must hold keys and values.")
    hints = get_type_hints(cls)
    leaves = {leaf.name: leaf for leaf in dataclasses.fields(cls)}  # type: ignore[arg-type]
    built: dict[str, Any] = {}
    for key, value in values.items():
        if key not in leaves:
            raise ConfigError(f"unknown key '{where}{key}'.{did_you_mean(str(key), leaves)}")
        if dataclasses.is_dataclass(hints[key]):
            built[key] = _build(hints[key], {} if value is None else value, f"{where}{key}.")
            continue
        built[key] = convert(value, hints[key], f"{where}{key}")
        choices = leaves[key].metadata.get("choices")
        if choices and built[key] not in choices:
            raise ConfigError(f"{where}{key} is {value!r}.{did_you_mean(str(value), choices)}")
    return cls(**built)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
