"""`amc profile`."""

from __future__ import annotations

import argparse
from pathlib import Path

from amc.commands.command import Command
from amc.commands.options import add_options, configuration, given_values
from amc.commands.show import table, terminal


def _add_profile(parser: argparse.ArgumentParser) -> None:
    add_options(parser, ("budget", "search", "finetune"))


def _profile(parsed: argparse.Namespace) -> int:
    from amc.latency.prediction import effective_widths
    from amc.latency.profiling import profile_network
    from amc.operators.channels import legal_widths
    from amc.pipeline.pipeline import open_task
    from amc.runtime.monitor import shown

    given = given_values(parsed)
    given.setdefault("model", {}).setdefault("weights", "random")  # what they are does not matter to time
    config = configuration(parsed, given)
    path = Path(config.out or "profile.json")
    with shown() as monitor:
        monitor.begin("profile")
        model = profile_network(open_task(config), config, path, monitor.progress)
    profile, error, console = model.profile, model.errors, terminal()
    legal = effective_widths(model.predict_all, [legal_widths(c, 0.1) for c in profile.full])
    rows = [[name, str(full), ", ".join(map(str, own))] for name, full, own in
            zip(profile.sites, profile.full, legal, strict=True)]  # fmt: skip
    console.print(table(["site", "channels", "widths at which the time changes"], rows))
    console.print(
        f"{path}: {len(profile.samples)} networks measured, the original takes {profile.original_ms:.4g} ms; "
        f"channels are computed in blocks of {model.block}",
        markup=False,
    )
    console.print(
        f"cross-validated: mean error {100 * error.mean:.2f} %, worst {100 * error.worst:.1f} %, Spearman "
        f"{error.spearman:.3f}"
    )
    return 0


PROFILE = Command(
    "profile",
    "learn what a network's policies take on this machine, for --latency",
    _add_profile,
    _profile,
    """examples:
  amc profile --model resnet56 --data cifar10 --data-root DIR --out resnet56.profile.json
  amc search --latency 0.5 --latency-model resnet56.profile.json --model resnet56 --weights w.safetensors ...""",
)
