"""The result of a run in Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from amc.deploy import bundle
from amc.evaluation.reward import Evaluation
from amc.operators.policy import Policy
from amc.runtime.arguments import PATH, expect


@dataclass(frozen=True, eq=False)
class Result:
    """The result of a run. A notebook shows it as a table."""

    model: nn.Module
    """The pruned, fine-tuned network: an ordinary module, in evaluation mode."""
    policy: Policy
    """The setting of every site: which channels it keeps."""
    evaluations: tuple[Evaluation, ...]
    """Every policy that the search evaluated, with its score and its costs."""
    summary: Mapping[str, Any]
    """The content of result.json."""
    folder: Path
    """The folder of the run, which is also its bundle."""

    def _repr_html_(self) -> str:
        """The outcome, the final table and the widths, for notebooks."""
        from amc.reports.notebook import notebook_html

        return notebook_html(self.summary)

    def save(self, folder: str | Path) -> Path:
        """Copy the bundle to another folder."""
        import shutil

        expect("folder", folder, PATH, "a path")
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        for name in {*bundle.FILES, *bundle.OPTIONAL}:
            if name not in bundle.OPTIONAL or (self.folder / name).exists():
                shutil.copyfile(self.folder / name, target / name)
        return target
