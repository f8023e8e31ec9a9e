"""Policies: the setting of every site, as versioned JSON that is bound to the network by a fingerprint.

In version 2, the ``kind`` of a setting names the operator that reads it. Version 1 had channels only; a removed branch
was a channel group of width 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from amc.errors import PolicyError, first_line
from amc.graph.channels import Kept
from amc.graph.sites import Graph
from amc.operators.branches import RemovedBranch
from amc.operators.channels import ChannelSetting, listed_channels
from amc.operators.operator import PolicySetting
from amc.operators.registry import OPERATORS, Operators, operator_of
from amc.runtime.arguments import PATH, expect
from amc.runtime.files import read_json, write_json
from amc.runtime.hashing import tensors_digest
from amc.task.nested import Nested, Signature

VERSION = 2


@dataclass(frozen=True)
class Policy:
    """Site → setting, for the network with this fingerprint.

    >>> policy = Policy("…", {"conv1": ChannelSetting(2, 4, (0, 3))})
    >>> policy.to_json()["sites"]
    {'conv1': {'kind': 'channels', 'width': 2, 'of': 4, 'kept': [0, 3]}}
    """

    fingerprint: str
    settings: Mapping[str, PolicySetting]
    inputs: Signature | None = None
    """The inputs of the network."""

    @classmethod
    def of(cls, model: nn.Module, settings: Mapping[str, PolicySetting], example: Nested | None = None) -> Policy:
        """The policy with these settings for ``model``; ``example`` is an input of it."""
        return cls(fingerprint(model), settings, None if example is None else Signature.of(example))

    def to_json(self) -> dict[str, Any]:
        """The policy as JSON values."""
        sites = {name: setting.to_json() for name, setting in self.settings.items()}
        plain = {"format": "amc-policy", "version": VERSION, "fingerprint": self.fingerprint, "sites": sites}
        return plain if self.inputs is None else {**plain, "inputs": self.inputs.to_json()}

    def save(self, path: str | Path) -> None:
        """Write the policy as JSON."""
        write_json(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path, operators: Operators = OPERATORS) -> Policy:
        """Read and check a policy. Raises PolicyError."""
        value = _read_file(path)
        try:
            return cls.from_json(value, operators)
        except PolicyError as error:
            raise PolicyError(f"{path} is not a policy: {error}") from None

    @classmethod
    def from_json(cls, value: Any, operators: Operators = OPERATORS) -> Policy:
        """Parse and check a policy. Raises PolicyError."""
        if not isinstance(value, dict) or value.get("format") != "amc-policy":
            raise PolicyError('it has no "format": "amc-policy".')
        version = value.get("version")
        if type(version) is not int or not 1 <= version <= VERSION:
            raise PolicyError(f"it has version {version!r}, but this amc reads versions 1 to {VERSION}.")
        fingerprint, sites = value.get("fingerprint"), value.get("sites")
        if not isinstance(fingerprint, str) or not isinstance(sites, dict):
            raise PolicyError("it has no fingerprint or no sites.")
        if not sites:
            raise PolicyError("its list of sites is empty.")
        settings = {str(name): _read(str(name), entry, version, operators) for name, entry in sites.items()}
        return cls(fingerprint, settings, _inputs(value))

    def check(self, model: nn.Module, example: Nested | None = None) -> None:
        """Raise PolicyError unless the policy is for this network, with these weights, and for inputs like these."""
        own = fingerprint(model)
        if self.fingerprint != own:
            raise PolicyError(f"the policy is for the network {self.fingerprint}, but this one is {own}.")
        if example is not None and self.inputs is not None and Signature.of(example) != self.inputs:
            given, wanted = (_format_inputs(signature) for signature in (Signature.of(example), self.inputs))
            raise PolicyError(f"the policy is for a network that takes {wanted}, but the example input is {given}.")

    def kept(self, graph: Graph) -> Kept:
        """The kept channels of every group; groups that an older policy does not name keep all.

        Raises PolicyError for a group that the graph does not have.
        """
        return listed_channels(graph, self.settings)

    @property
    def removes_branches(self) -> bool:
        """Whether whole residual branches are removed."""
        return any(isinstance(setting, RemovedBranch) for setting in self.settings.values())

    def example(self) -> Nested:
        """A random input ``[1, ...]`` of the network. Raises PolicyError if the policy does not record its shapes."""
        if self.inputs is None:
            raise PolicyError("the policy does not record the inputs of its network: pass an example input.")
        return self.inputs.example()


def read_inputs(path: str | Path) -> Signature | None:
    """The inputs of the network that a policy file is for, without loading operators. Raises PolicyError."""
    value = _read_file(path)
    return _inputs(value) if isinstance(value, dict) else None


def _read_file(path: str | Path) -> Any:
    expect("path", path, PATH, "a path")
    try:
        return read_json(Path(path))
    except OSError as error:
        raise PolicyError(f"cannot read the policy {path}: {error.strerror}.") from None
    except ValueError as error:
        raise PolicyError(f"{path} is not a policy: {error}") from None


def _inputs(value: Mapping[str, Any]) -> Signature | None:
    try:
        return Signature.from_json(value["inputs"]) if "inputs" in value else None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PolicyError(f"its inputs are invalid ({first_line(error)}).") from None


def _read(name: str, entry: Any, version: int, operators: Operators) -> PolicySetting:
    """One site's setting, by the operator of its kind. Raises PolicyError."""
    if not isinstance(entry, dict) or not isinstance(entry.get("kind"), str):
        raise PolicyError(f"site {name!r} has no setting with a kind.")
    if version == 1:
        if entry["kind"] != "channels":
            raise PolicyError(f"site {name!r} is not of the kind 'channels', the only one in version 1.")
        if type(entry.get("width")) is int and entry["width"] == 0 and entry.get("kept") == []:
            entry = {"kind": "branches", "of": entry.get("of")}
    try:
        operator = operator_of(entry["kind"], operators)
    except PolicyError as error:
        raise PolicyError(f"site {name!r}: {error}") from None
    return operator.read(name, entry)


def _format_inputs(signature: Signature) -> str:
    """Inputs in short: 'float32 [3, 32, 32]'."""
    return ", ".join(f"{dtype} {list(shape)}" for shape, dtype in signature.tensors.values())


def fingerprint(model: nn.Module) -> str:
    """The first 32 hex digits of the SHA-256 over names, shapes, types and values of all tensors."""
    tensors = sorted(model.state_dict().items())
    return tensors_digest((name, t) for name, t in tensors if not name.endswith("num_batches_tracked"))[:32]


def make_policy(graph: Graph, model_fingerprint: str, kept: Sequence[Any], example: Nested | None = None) -> Policy:
    """The policy that keeps the channels ``kept[s]`` of every group s; an empty list removes the group's branch.

    ``example`` is an input of the network.
    """
    settings: dict[str, PolicySetting] = {}
    for group, channels in zip(graph.sites, kept, strict=True):
        whole = group.channels
        listed = ChannelSetting(len(channels), whole, tuple(int(channel) for channel in sorted(channels)))
        settings[group.name] = listed if listed.width else RemovedBranch(0, whole, ())
    return Policy(model_fingerprint, settings, None if example is None else Signature.of(example))
