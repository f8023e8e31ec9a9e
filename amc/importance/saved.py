"""Channel scores in a file: ``--criterion ranking:FILE`` ranks by what ``amc train --sparsify`` found.

The file is safetensors: for every site, by its name, the scores ``[C]`` of its channels in float64.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from amc.errors import ConfigError, first_line
from amc.importance.criterion import Criterion, Lacking
from amc.importance.group import SiteView
from amc.runtime.archives import check_archive
from amc.runtime.files import replacing

PREFIX = "ranking:"


def write_ranking(path: Path, scores: Mapping[str, Tensor]) -> None:
    """Write scores ``[C]`` by site name."""
    plain = {name: own.detach().double().cpu().contiguous() for name, own in scores.items()}
    content = save(plain, {"format": "amc-ranking"})
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def read_ranking(path: Path) -> dict[str, Tensor]:
    """What `write_ranking` has written. Raises ConfigError."""
    if not path.is_file():
        raise ConfigError(f"--criterion {PREFIX}{path}: there is no such file. amc train --sparsify writes one.")
    try:
        check_archive(path)
        found = load_file(path)
    except Exception as error:
        raise ConfigError(f"cannot read the ranking in {path}: {first_line(error)[:200]}") from error
    for name, scores in found.items():
        if scores.ndim != 1 or not scores.is_floating_point() or not bool(torch.isfinite(scores).all()):
            raise ConfigError(f"{path} holds no ranking: '{name}' is not one finite score for each channel.")
    return found


def saved_criterion(name: str) -> Criterion:
    """The criterion ``ranking:FILE``. A site that is not in the file is ranked by its weights. Raises ConfigError."""
    path = Path(name.removeprefix(PREFIX))
    function = partial(_of_site, path, read_ranking(path))
    return Criterion(name, "channel scores in a file", "", function, frozenset(), dead_is_least=False)


def _of_site(path: Path, found: Mapping[str, Tensor], site: SiteView) -> Tensor:
    scores = found.get(site.name)
    if scores is None:
        raise Lacking(f"scores in {path}")
    if len(scores) != site.channels:
        raise ConfigError(f"{path} is of another network: it has {len(scores)} channels of '{site.name}', this network "
                          f"{site.channels}.")  # fmt: skip
    return scores.double()


def ranking_digest(name: str) -> dict[str, str]:
    """SHA-256 of the file of ``ranking:FILE``, by its name; empty for other criteria."""
    if not name.startswith(PREFIX):
        return {}
    path = Path(name.removeprefix(PREFIX))
    return {name: hashlib.sha256(path.read_bytes()).hexdigest()}
