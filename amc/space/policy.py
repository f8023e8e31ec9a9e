"""A policy: for every site its setting. Plain JSON, versioned, bound to the network by its fingerprint.

Nothing above this module assumes that a setting is a channel count.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from amc.errors import PolicyError, first_line
from amc.graph.build import Graph
from amc.graph.channels import Kept
from amc.runtime.files import write_json
from amc.space.sites import Choice
from amc.task.nested import Nested, Signature

VERSION = 1


@dataclass(frozen=True)
class Setting:
    """What a policy says of one site."""

    width: int
    of: int
    kept: tuple[int, ...]
    """The channels that stay, ascending."""


@dataclass(frozen=True)
class Policy:
    """Site → setting, for the one network whose fingerprint it carries."""

    fingerprint: str
    settings: dict[str, Setting]
    inputs: Signature | None = None
    """What the network takes."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        sites = {
            name: {"kind": "channels", "width": s.width, "of": s.of, "kept": list(s.kept)}
            for name, s in self.settings.items()
        }
        plain = {"format": "amc-policy", "version": VERSION, "fingerprint": self.fingerprint, "sites": sites}
        return plain if self.inputs is None else {**plain, "inputs": self.inputs.to_json()}

    def save(self, path: str | Path) -> None:
        """Write the policy as JSON."""
        write_json(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Policy:
        """Read and check a policy. Raises PolicyError."""
        try:
            return cls.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
        except OSError as error:
            raise PolicyError(f"cannot read the policy {path}: {error.strerror}.") from None
        except (ValueError, RecursionError, PolicyError) as error:
            raise PolicyError(f"{path} is not a policy: {error}") from None

    @classmethod
    def from_json(cls, value: Any) -> Policy:
        """The policy in plain values, every one of them checked. Raises PolicyError."""
        if not isinstance(value, dict) or value.get("format") != "amc-policy":
            raise PolicyError('there is no "format": "amc-policy" in it.')
        if value.get("version") != VERSION:
            raise PolicyError(f"it has version {value.get('version')!r}, and this amc reads version {VERSION}.")
        fingerprint, sites = value.get("fingerprint"), value.get("sites")
        if not isinstance(fingerprint, str) or not isinstance(sites, dict):
            raise PolicyError("it lacks its fingerprint or its sites.")
        settings = {str(name): _setting(str(name), entry) for name, entry in sites.items()}
        try:
            inputs = Signature.from_json(value["inputs"]) if "inputs" in value else None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PolicyError(f"its inputs are not understood ({first_line(error)}).") from None
        return cls(fingerprint, settings, inputs)

    def check(self, model: nn.Module) -> None:
        """Raise PolicyError unless the policy is for this network, with these weights."""
        own = fingerprint(model)
        if self.fingerprint != own:
            raise PolicyError(f"the policy is for the network {self.fingerprint}, but this one is {own}.")

    def kept(self, graph: Graph) -> Kept:
        """The channels that stay at every site; sites that the policy does not know, an older one's, stay whole."""
        sites = {site.name: site.channels for site in graph.sites}
        for name, setting in self.settings.items():
            if sites.get(name) != setting.of:
                raise PolicyError(
                    f"the policy's site '{name}' with {setting.of} channels is not one of this network's."
                )
        return [
            np.array(self.settings[name].kept if name in self.settings else range(channels), np.int64)
            for name, channels in sites.items()
        ]

    def example(self) -> Nested:
        """Noise of the shapes that the network takes ``[1, ...]``. Raises PolicyError where they are not recorded."""
        if self.inputs is None:
            raise PolicyError("the policy does not say what its network takes: pass an example input.")
        return self.inputs.example()

    def choice(self, graph: Graph) -> Choice:
        """The settings in the order of the graph's sites."""
        return tuple(self.settings[site.name].width for site in graph.sites)


def _setting(name: str, entry: Any) -> Setting:
    if not isinstance(entry, dict) or entry.get("kind") != "channels":
        raise PolicyError(f"site {name!r} has no setting of the kind 'channels'.")
    width, of, kept = entry.get("width"), entry.get("of"), entry.get("kept")
    if not isinstance(width, int) or not isinstance(of, int) or not isinstance(kept, list):
        raise PolicyError(f"site {name!r} needs whole numbers for width and of, and a list for kept.")
    if width < 0 or any(type(k) is not int for k in (width, of, *kept)):
        raise PolicyError(f"site {name!r} needs whole numbers, and a width of at least 0.")
    if len(kept) != width or kept != sorted(set(kept)) or any(k < 0 or k >= of for k in kept):
        raise PolicyError(f"site {name!r} keeps {width} of {of} channels, but lists others.")
    return Setting(width, of, tuple(kept))


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over the names, shapes, types and values of all tensors, 32 hex digits of it."""
    sha = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name.endswith("num_batches_tracked"):
            continue
        sha.update(f"{name}:{tensor.dtype}:{list(tensor.shape)}:".encode())
        sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:32]


def make_policy(graph: Graph, model_fingerprint: str, kept: Sequence[Any], example: Nested | None = None) -> Policy:
    """The policy that keeps the channels ``kept[s]`` of every site s. ``example``: what the network takes."""
    return Policy(
        model_fingerprint,
        {
            site.name: Setting(len(k), site.channels, tuple(int(c) for c in sorted(k)))
            for site, k in zip(graph.sites, kept, strict=True)
        },
        None if example is None else Signature.of(example),
    )
