"""The settings of a run: every one with its default, its help text, its option and its bounds.

`--help` and the errors about YAML files are made of these fields.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from amc.config.base import AUTO, Auto, Limit, Settings, Share, Threads, setting
from amc.config.finetune import FinetuneConfig
from amc.config.training import TrainConfig


class ModelConfig(Settings):
    """Which network."""

    section = "model"

    name: str = setting(
        "resnet8",
        "the network: resnet8, resnet20, resnet56, mobilenetv1, mobilenetv2, vgg16bn (for small images), "
        "torchvision:NAME, timm:NAME, path/to/file.onnx or path/to/file.py:factory",
        "--model",
    )
    weights: str | None = setting(
        None,
        "its trained weights: a .safetensors file, a torch state dict (.pt, .pth), 'pretrained' for the "
        "library's own (needs a network connection) or 'random'; resnet8 on digits has its own",
        "--weights",
    )


class DataConfig(Settings):
    """Which data, and how they are split."""

    section = "data"

    name: str = setting(
        "digits",
        "digits, fashion-mnist, cifar10, cifar100, imagefolder:PATH (train/, val/ and test/, or one folder "
        "per class) or path/to/file.py:factory",
        "--data",
    )
    inputs: str | None = setting(
        None,
        "inputs without labels, in place of --data: a folder of images, arrays (.npy, .npz with one array for each "
        "input) or path/to/file.py:name of a loader, a data set or a function that gives them",
        "--calibration",
    )
    root: str | None = setting(None, "folder with the files of fashion-mnist, cifar10 or cifar100", "--data-root")
    download: bool = setting(False, "let torchvision download the data set into --data-root", "--download")
    image_size: int | None = setting(
        None,
        "side in pixels that images of an imagefolder are scaled to [their own size]",
        "--image-size",
        ge=1,
        le=1 << 16,
    )
    mean: tuple[float, ...] | None = setting(None, "channel means, of inputs in [0, 1] [the data set's]", "--mean")
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = setting(
        None, "channel deviations [the data set's]", "--std"
    )
    calibration: int = setting(
        4096, "images set aside from training for calibration", "--calibration-images", ge=2, le=1 << 40
    )
    search: int = setting(5000, "most images of the search split", "--search-images", ge=1, le=1 << 40)
    train: int | None = setting(
        None, "most images to train on, drawn by the split seed [all that are left]", "--train-images", ge=2, le=1 << 40
    )
    seed: int = setting(0, "seed of the splits", "--split-seed", ge=0, le=2**63 - 1)

    @property
    def source(self) -> str:
        """The name of the data: of the inputs without labels, if they are given.

        >>> DataConfig(inputs="photos").source
        'photos'
        """
        return self.name if self.inputs is None else self.inputs


class BudgetConfig(Settings):
    """The limits. A number up to 1 (or 50%) is a share of the original, anything else is absolute."""

    section = "budget"

    flops: Limit | None = setting(
        None,
        "most multiply-accumulates (MACs) of one inference: a share (0.5, 50%%) or a count (20M)",
        "--flops",
    )
    params: Limit | None = setting(None, "most parameters: a share or a count (100k)", "--params")
    size: Limit | None = setting(None, "largest model.onnx: a share or a size (500KB = 500,000 bytes, 1MiB)", "--size")
    memory: Limit | None = setting(
        None, "peak activation memory of one inference, float32, batch 1: a share or a size", "--memory"
    )
    latency: Limit | None = setting(
        None,
        "longest time of one inference on ONNX Runtime, measured: a share (0.5) or a time (3ms, 800us)",
        "--latency",
    )
    branches: Limit | None = setting(
        None,
        "maximum number of residual branches to keep, a share or a count; the others are removed whole (useful "
        "with --int8, where time depends on operators more than on widths)",
        "--branches",
    )


class SearchConfig(Settings):
    """How policies are proposed and scored before fine-tuning."""

    section = "search"

    searcher: str = setting(
        "hybrid",
        "the algorithm that proposes policies: hybrid, spdy, tpe, amc (DDPG), uniform … (see amc list searchers), or "
        "path/to/file.py:function",
        "--searcher",
    )
    searcher_options: dict[str, Any] = setting(
        {},
        "a setting of the searcher, as in population=32; may be given several times (amc list searchers shows them)",
        "--searcher-option",
    )
    evaluations: int = setting(60, "policies to evaluate", "--evaluations", ge=1, le=10**9)
    operators: tuple[str, ...] | Auto = setting(
        AUTO,
        "what may be done to the network, with commas between: channels, branches, bits (see amc list operators), or "
        "path/to/file.py:name [auto: channels, and branches where --branches or --min-keep 0 is given or latency is "
        "limited]",
        "--operators",
    )
    bits: tuple[int, ...] | Auto = setting(
        AUTO,
        "with --operators channels,bits: the bits that a layer's weights may have besides 32, with commas between "
        "[auto: 4,8]",
        "--bits",
    )
    storage: str | None = setting(
        None,
        "where the study of an Optuna searcher is kept and shared with other processes: a database's URL "
        "(sqlite:///FILE, postgresql://…; $NAME is taken from the environment) or a file (.db: SQLite, .log: Optuna's "
        "journal) [study.log in the run's folder, not shared]",
        "--storage",
    )
    study_name: str | None = setting(
        None, "name of the study in --storage [one for each network, data, budget and search]", "--study-name"
    )
    criterion: str = setting(
        "obs",
        "how channels are ranked by importance: obs, l1, taylor, fpgm … (see amc list criteria), search (at every site "
        "the best of several), ranking:FILE of amc train --sparsify, or path/to/file.py:function",
        "--criterion",
    )
    criterion_scope: Literal["site", "local", "global", "flops"] = setting(
        "site",
        "who says how many channels go: the searcher (site) or, without a search, the criterion: the same share of "
        "every site (local), one threshold for all scores (global), or one for scores minus a price of MACs (flops)",
        "--criterion-scope",
    )
    reward: str = setting(
        "loss",
        "what the search maximises: loss (minus the --search-objective), error (AMC's: -error), error-flops (-error "
        "log MACs), error-params (-error log parameters), error-latency (-error log ms, measured), or "
        "path/to/file.py:function",
        "--reward",
    )
    latency_model: str | None = setting(
        None,
        "what predicts latency: a profile of amc profile, a table (.csv, .json), path/to/file.py:Class, "
        "'command:./measure.sh {onnx}' or an installed model's name [a profile that the run makes]",
        "--latency-model",
    )
    latency_aware: bool = setting(
        False,
        "prefer policies that are faster on this machine's ONNX Runtime, where the budget does not limit latency; it "
        "profiles for about 20 s, or uses the profile that --latency-model names",
        "--latency-aware",
    )
    latency_weight: float = setting(
        1.0,
        "with --latency-aware: so many per cent of the search objective are given up for one per cent of time",
        "--latency-weight",
        gt=0,
        le=100,
    )
    latency_timeout: float = setting(
        120.0,
        "longest time in seconds of one measurement by the command of --latency-model",
        "--latency-timeout",
        gt=0,
        le=86400,
    )
    min_keep: Share | Auto = setting(
        AUTO,
        "least share of a site's channels to keep; 0: residual branches may go whole [auto: 0.2, and where latency is "
        "limited residual branches may go whole]",
        "--min-keep",
    )
    channel_step: Annotated[int, Field(ge=1, le=1 << 20)] | Auto = setting(
        AUTO, "widths are multiples of this [auto: 4 or 8, by the site's width]", "--channel-step"
    )
    reconstruct: bool = setting(True, "re-solve the following layers by least squares", "--reconstruct")
    sequential_reconstruction: Literal["search", "final", "off"] = setting(
        "search",
        "re-solve layers on what really reaches them in the pruned network: in every evaluation (search), of the best "
        "policies only (final: faster evaluations, which rank less well), or not (off)",
        "--sequential-reconstruction",
    )
    objective: Literal["logit_mse", "loss"] = setting(
        "logit_mse",
        "how pruned networks are scored, per sample: logit_mse (mean squared difference from the original's logits; "
        "the loss where there is not one vector of logits a sample) or loss (the task's own, with the labels)",
        "--search-objective",
    )
    race: bool = setting(
        True, "stop reading images for a policy once it is clear if it is better than the best so far", "--race"
    )
    refine: int = setting(
        10,
        "policies of the search that are re-solved with full effort and scored again before the candidates are taken",
        "--refine",
        ge=1,
        le=10**6,
    )
    recalibrate: Literal["auto", "on", "off"] = setting(
        "auto",
        "recompute BatchNorm statistics in every evaluation (auto: try both on the uniform policy)",
        "--recalibrate",
    )

    @property
    def operator_names(self) -> tuple[str, ...] | None:
        """The names in ``--operators``; None where it is not given."""
        return None if self.operators == AUTO else tuple(self.operators)

    @property
    def least_share(self) -> float:
        """Of a site's channels, where its branch stays."""
        return 0.2 if self.min_keep == AUTO else self.min_keep


class Config(Settings):
    """A whole run."""

    model: ModelConfig = Field(default_factory=ModelConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    budget: BudgetConfig = Field(default_factory=BudgetConfig)
    search: SearchConfig = Field(default_factory=SearchConfig)
    finetune: FinetuneConfig = Field(default_factory=FinetuneConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    objective: str = setting(
        "classification",
        "the loss and the metric: classification, or path/to/file.py:factory of an amc.Objective",
        "--objective",
    )
    seed: int = setting(
        0, "seed of the search and the training; the splits have their own", "--seed", ge=0, le=2**32 - 1
    )
    device: str = setting("auto", "auto, cpu, cuda or cuda:N", "--device")
    threads: Threads | Auto = setting(AUTO, "threads of torch [auto: all cores]", "--threads")
    int8: bool = setting(
        False,
        "add model.int8.onnx, statically quantised to 8 bits: the fastest setting whose metric stays within a point",
        "--int8",
    )
    latency_threads: Threads = setting(1, "threads of ONNX Runtime when latency is measured", "--latency-threads")
    cache: str | None = setting(
        None,
        "keep what other runs can use (moments, orders, scores, the original's ONNX file) in this folder, and take "
        "from it what is there; auto: $AMC_CACHE or ~/.cache/amc [off; in a batch: auto]",
        "--cache",
    )
    log: str | None = setting(
        None,
        "show the run's numbers while it goes on: tensorboard:FOLDER, or mlflow:URI of a store or a server ($NAME is "
        "taken from the environment) [off]",
        "--log",
    )
    memory_limit: Annotated[float, Field(gt=0, le=1 << 20)] | Auto = setting(
        AUTO, "GiB that calibrating and scoring may take [auto: half of the machine's]", "--memory-limit"
    )
    profile_seconds: float = setting(
        60.0,
        "most seconds for learning what this machine takes, where latency is limited",
        "--profile-seconds",
        gt=0,
        le=7 * 86400,
    )
    out: str | None = setting(None, "folder of the run [amc-runs/MODEL-DATA-N]", "--out")
