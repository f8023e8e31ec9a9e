"""`amc profile`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amc.commands.command import Answer, Command
from amc.commands.options import add_options, configuration, given_values
from amc.commands.progress import progress
from amc.commands.show import table, terminal

_UNUSED = ("objective", "int8", "cache", "log")


def _add_profile(parser: argparse.ArgumentParser) -> None:
    add_options(parser, ("budget", "search", "finetune", "train"), _UNUSED,
                {"--out": "the file of the profile [profile.json]",
                 "--profile-seconds": "most seconds of measuring, above 0 [60]"})  # fmt: skip


@dataclass(frozen=True)
class ProfileAnswer(Answer):
    """What was learned of a network's times."""

    path: Path
    model: Any
    widths: Sequence[Sequence[int]]
    """By site: those at which the time changes."""

    def show(self) -> None:
        profile, error, console = self.model.profile, self.model.errors, terminal()
        rows = [[name, str(full), ", ".join(map(str, own))] for name, full, own in
                zip(profile.sites, profile.full, self.widths, strict=True)]  # fmt: skip
        console.print(table(["site", "channels", "widths at which the time changes"], rows))
        console.print(
            f"{self.path}: {len(profile.samples)} networks measured, the original takes {profile.original_ms:.4g} ms; "
            f"channels are computed in blocks of {self.model.block}",
            soft_wrap=True,
        )
        console.print(
            f"cross-validated: mean error {100 * error.mean:.2f} %, worst {100 * error.worst:.1f} %, Spearman "
            f"{error.spearman:.3f}"
        )

    def document(self) -> dict[str, Any]:
        profile, error = self.model.profile, self.model.errors
        return {
            "profile": str(self.path),
            "networks": len(profile.samples),
            "original_ms": profile.original_ms,
            "block": self.model.block,
            "errors": {"mean": error.mean, "worst": error.worst, "spearman": error.spearman},
            "sites": [{"name": name, "channels": full, "widths": list(own)} for name, full, own in
                      zip(profile.sites, profile.full, self.widths, strict=True)],
        }  # fmt: skip


def _profile(parsed: argparse.Namespace) -> ProfileAnswer:
    from amc.latency.prediction import effective_widths
    from amc.latency.profiling import profile_network
    from amc.operators.channels import legal_widths
    from amc.pipeline.opening import open_task

    given = given_values(parsed)
    given.setdefault("model", {}).setdefault("weights", "random")  # what they are does not matter to time
    config = configuration(parsed, given)
    path = Path(config.out or "profile.json")
    with progress(parsed) as monitor:
        monitor.begin("profile")
        model = profile_network(open_task(config), config, path, monitor.progress)
    legal = effective_widths(model.predict_all, [legal_widths(c, 0.1) for c in model.profile.full])
    return ProfileAnswer(path, model, legal)


PROFILE = Command(
    "profile",
    "benchmark pruned variants of a network on this machine, to predict latency",
    _add_profile,
    _profile,
    """examples:
  amc profile --model resnet56 --data cifar10 --data-root DIR --out r56.json
  amc search --latency 0.5 --latency-model r56.json --model resnet56 ...""",
    main=(
        "--model",
        "--data",
        "--data-root",
        "--image-size",
        "--latency-threads",
        "--profile-seconds",
        "--config",
        "--out",
    ),
)
