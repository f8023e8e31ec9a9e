"""Policy → score on the search split, before any training. The hot path: nearly all of it is forward passes."""

from __future__ import annotations

import copy
import math
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from amc.evaluation.sampling import Sampling
from amc.graph.build import Graph, consumers
from amc.graph.channels import BATCH_NORMS, Kept, Layer
from amc.graph.surgery import Dresser, silence, twin, weight_of
from amc.reconstruction.fold import Folder
from amc.reconstruction.least_squares import IMAGES, Moments, Reconstructor, elements, lost_variances
from amc.reconstruction.sensitivity import Sensitivity, sensitivities
from amc.reconstruction.sequential import Drift, undone
from amc.runtime.memory import Memory
from amc.space.policy import Choice
from amc.task import Task, batches, nested
from amc.task.data import hold, sample

BLOCK = 125  # images: one forward pass, and how often a race may be called; more fall out of the processor's cache
CLEAR = 2.0  # standard errors of the paired difference at which a race is decided
LEAST = 2  # blocks; one says too little of how sure it is
MOST = 0.5  # of the images: half of them tell the mean of all as well as all tell that of the world's
_SMALL = 4e6  # MACs
_KEPT = 4  # policies that are remembered


@dataclass(frozen=True)
class Score:
    """Mean loss (see `Evaluator.judge`) and metric over the search split; estimates where a ``share`` was read."""

    loss: float
    metric: float
    share: float = 1.0
    lost: bool = False
    """Whether another policy seems to be better by what was read."""


@dataclass(frozen=True)
class Race:
    """Mean loss and metric of a policy and of its rival over the ``share`` of the images that was read of both."""

    loss: float
    metric: float
    rival_loss: float
    rival_metric: float
    share: float
    lost: bool

    def score(self, rival: Score) -> Score:
        """The policy's score, where ``rival`` is the other one's: in proportion to it where losses are above 0.

        If it is lost, no better than the rival's.
        """
        loss, most = rival.loss + self.loss - self.rival_loss, 1.0
        if self.loss >= 0 and min(self.rival_loss, rival.loss) > 0:
            loss = rival.loss * self.loss / self.rival_loss
        if self.lost:
            loss, most = max(loss, rival.loss), rival.metric
        metric = min(max(rival.metric + self.metric - self.rival_metric, 0.0), most)
        return Score(loss, metric, self.share, self.lost)


@dataclass(eq=False)
class _Reading:
    """What a policy loses on the first so many images of the evaluator's order."""

    samples: Tensor
    """Loss and metric of every image ``[2, N]``, where it was read."""
    count: int
    network: nn.Module | None = None
    """It reads on, its norms folded; None where all were read."""


class Evaluator:
    """Scores policies. One scratch copy of the network wears every policy in turn."""

    def __init__(
        self,
        task: Task,
        graph: Graph,
        orders: Sequence[Tensor],
        moments: Mapping[str, Moments],
        reconstruct: bool = True,
        recalibrate: bool = False,
        drift: Drift | None = None,
        quick: Drift | None = None,
        memory: Memory | None = None,
    ) -> None:
        """``orders``: per site its channels, the most important first. ``moments``: of the layers' inputs.

        ``drift`` is for `refined`, ``quick`` for every policy that is scored; ``memory`` bounds a backward pass.
        """
        self.recalibrate = recalibrate
        self.precision = "float32"
        """Of the forward passes of the search; refined networks are scored in float32."""
        self.judge = "loss"
        """What is lost on an image: the objective's 'loss', or the 'distance', the mean squared difference of logits
        from the original's, where there is one vector of them a sample. Most of a sure network's loss comes from images
        that the original gets wrong, too; the distance tells better what accuracy is left."""
        self._task, self._graph, self._drift, self._quick = task, graph, drift, quick
        self._orders = [o.numpy() for o in orders]
        self._scratch = copy.deepcopy(task.model).requires_grad_(False)
        self._folder = Folder(task.model, graph.layers, task.example)
        self._dresser = Dresser(self._scratch, graph.layers)
        self._solve = Reconstructor(graph, task.model, moments) if reconstruct else None
        self._moments, self._memory = moments, memory
        self._errors: dict[int, Tensor] = {}
        self._search = hold(task.splits.search, task.device)
        self._readings: OrderedDict[tuple[Choice, tuple[bool, str, str]], _Reading] = OrderedDict()
        self._samplings: dict[tuple[bool, str, str], Sampling] = {}
        self._block = min(BLOCK, task.batch)
        self._norms = [m for m in self._scratch.modules() if isinstance(m, BATCH_NORMS) and m.track_running_stats]

    def kept(self, choice: Choice) -> Kept:
        """The channels that stay at every site, ascending."""
        return [np.sort(order[:width]) for order, width in zip(self._orders, choice, strict=True)]

    def network(self, choice: Choice) -> nn.Module:
        """The pruned network in evaluation mode. It is the scratch copy: the next call changes it."""
        self._dress(choice)
        if self._quick:
            self._quick(self._scratch, self.kept(choice), self.precision == "bfloat16")
        if self.recalibrate:
            self._recalibrate()
        return self._scratch

    def refined(self, choice: Choice) -> nn.Module:
        """The same, re-solved with care on what really reaches every layer
        (`amc.reconstruction.sequential`): better, and slower to get."""
        if self._drift is None:
            return self.network(choice)
        self._drift(self._dress(choice), self.kept(choice))
        return self._scratch

    def _dress(self, choice: Choice) -> nn.Module:
        kept = self.kept(choice)
        self._dresser.dress(kept, self._solve(kept) if self._solve else None)
        return self._scratch

    def error(self, site: int, width: int) -> float:
        """What a site loses at a width, all others whole: the estimated rise of `judge`, summed over its readers.

        A reader's error is the variance that re-solving leaves unexplained; how much it matters is its
        sensitivity (`amc.reconstruction.sensitivity`). Of a reader whose inputs were not measured (a grouped
        convolution, heads in a fused attention) the share of its inputs that goes counts: no site may seem free.
        """
        if site not in self._errors:
            readers = [self._reader_errors(layer, site) for layer in consumers(self._graph, site)]
            self._errors[site] = sum(readers, torch.zeros(self._graph.sites[site].channels + 1, dtype=torch.float64))
        return float(self._errors[site][width])

    @cached_property
    def _sensitivities(self) -> Mapping[str, Sensitivity]:
        return sensitivities(self._task, self._graph.layers, self._memory, self.judge == "distance")

    def _reader_errors(self, layer: Layer, site: int) -> Tensor:
        """The errors of one reader at all widths of a site, ``[channels + 1]``."""
        known, own = self._sensitivities, self._sensitivities.get(layer.name)
        usual = sum(s.whole for s in known.values()) / len(known) if known else 1.0
        axis, moments = layer.input, self._moments.get(layer.name)
        assert axis is not None
        mine, widths = axis.site == site, torch.arange(self._graph.sites[site].channels + 1)
        if moments is None:
            return (1 - widths.double() / widths[-1]) * float(mine.mean()) * (own.whole if own else usual)
        ranks = np.full(len(axis), -1)  # what the site does not own stays
        ranks[mine] = np.argsort(self._orders[site])[axis.channel[mine]]
        weight = weight_of(self._task.model, layer)
        taps = weight[0, 0].numel()
        order = elements(torch.from_numpy(ranks.argsort(kind="stable")).to(weight.device), taps)
        lost = lost_variances(weight.flatten(1), moments, order)
        left = taps * (int((~mine).sum()) + widths * int(mine.sum()) // widths[-1])
        if own is None:
            return (lost.sum(0) / lost[:, 0].sum()).nan_to_num()[left].double().cpu() * usual
        errors = (own.channels.to(lost) @ lost)[left].double().cpu()
        if mine.all():  # without any of its inputs a layer is a branch that is gone, its mean too
            errors[0] += float(own.channels.double().cpu() @ self._offset(layer, moments) ** 2)
        return errors

    def _offset(self, layer: Layer, moments: Moments) -> Tensor:
        """What a layer adds to its stream on average, before the BatchNorm behind it ``[C]``."""
        module: Any = self._task.model.get_submodule(layer.name)
        mean: Tensor = weight_of(self._task.model, layer).flatten(1).double() @ moments.mean.double()
        mean = mean if module.bias is None else mean + module.bias.detach().double()
        if layer.norm is None:
            return mean.cpu()
        norm: Any = self._task.model.get_submodule(layer.norm)
        shift = 0.0 if norm.bias is None else (norm.bias * undone(norm)).detach()
        offset: Tensor = mean - norm.running_mean.double() + shift
        return offset.cpu()

    def pruned(self, choice: Choice) -> nn.Module:
        """The refined network as a module of its own, trainable."""
        own = copy.deepcopy(self.refined(choice))
        wanted = {name: p.requires_grad for name, p in self._task.model.named_parameters()}
        for name, parameter in own.named_parameters():
            parameter.requires_grad_(wanted[name])
        silence(own, self._graph.layers, self.kept(choice))
        return own

    def __call__(self, choice: Choice) -> Score:
        """Mean loss and metric of the pruned network over the search split."""
        samples = self._read(self.network(choice), self.precision)
        self._remember(choice, _Reading(samples, len(self._search)))
        return _mean(samples)

    def refined_score(self, choice: Choice) -> Score:
        """The same for the refined network."""
        return _mean(self._read(self.refined(choice), "float32"))

    def faster_precision(self) -> str:
        """bfloat16 where the original runs clearly faster with it here (its ranking is the same), else float32.

        Networks so small that it hardly matters stay with float32.
        """
        if self._graph.trace.macs < _SMALL:
            return "float32"
        seconds: dict[str, list[float]] = {"float32": [], "bfloat16": []}
        network = self._dress(tuple(site.channels for site in self._graph.sites))
        with self._folder.folded(network):
            for _ in range(3):
                for name, times in seconds.items():
                    start = time.perf_counter()
                    next(self._blocks(network, name))
                    times.append(time.perf_counter() - start)
        return "bfloat16" if min(seconds["bfloat16"]) < 0.9 * min(seconds["float32"]) else "float32"

    def race(self, choice: Choice, rival: Choice) -> Race:
        """Compare a policy with its ``rival``, read only as far as it takes to see which of the two is better.

        Both are compared on the same images, and of the rival no more are read either. The race is over when the mean
        difference of their losses is `CLEAR` standard errors from 0, or when the share `MOST` of the images was read.
        """
        sampling, other, total = self._sampling, self._reading(rival), len(self._search)
        least = min(LEAST * BLOCK, total)
        most = max(least, math.ceil(MOST * total))
        network = self.network(choice)
        with self._folder.folded(network):
            own = _Reading(torch.empty(2, total, dtype=torch.float64), 0, network)
            for count in [*range(least, most, BLOCK), most]:
                self._read_on(own, count)
                self._read_on(other, count)
                read = sampling.order[:count]
                mine, theirs = own.samples[:, read], other.samples[:, read]
                means, errors = sampling.mean(torch.cat([mine - theirs, mine, theirs]))
                if abs(float(means[0])) > CLEAR * float(errors[0]):
                    break
            lost = bool(means[0] > 0) and count < total
            if not lost:
                self._remember(choice, own)
        loss, metric, rival_loss, rival_metric = means[2:].tolist()
        return Race(loss, metric, rival_loss, rival_metric, count / total, lost)

    @property
    def _how(self) -> tuple[bool, str, str]:
        """What a reading depends on besides the policy."""
        return self.recalibrate, self.precision, self.judge

    @property
    def _sampling(self) -> Sampling:
        """The order in which races read: by what the original loses; if by distance, which it has none of, any."""
        if self._how not in self._samplings:
            self._samplings[self._how] = self._find_sampling()
        return self._samplings[self._how]

    def _find_sampling(self) -> Sampling:
        image = torch.arange(1)
        with torch.inference_mode():
            outputs = nested.call(self._task.model, nested.to(self._search.fetch(image)[0], self._task.device))
            if self._distance(outputs, image) is not None:
                return Sampling(torch.ones(len(self._search), dtype=torch.float64))
        original = self._dress(tuple(site.channels for site in self._graph.sites))
        return Sampling.by_losses(self._read(original, self.precision)[0])

    def _reading(self, choice: Choice) -> _Reading:
        """What is known of a policy that others race against."""
        key = (choice, self._how)
        if key not in self._readings:
            network = self.network(choice)
            with self._folder.folded(network):
                self._remember(choice, _Reading(torch.empty(2, len(self._search), dtype=torch.float64), 0, network))
        self._readings.move_to_end(key)
        return self._readings[key]

    def _remember(self, choice: Choice, reading: _Reading) -> None:
        """For races to come. The network keeps its tensors when the scratch copy gets others."""
        if reading.network is not None:
            reading.network = twin(reading.network)
        self._readings[choice, self._how] = reading
        if len(self._readings) > _KEPT:
            self._readings.popitem(last=False)

    def _read_on(self, reading: _Reading, count: int) -> None:
        """Read its first ``count`` images."""
        if reading.count < count:
            assert reading.network is not None
            images = self._sampling.order[reading.count : count]
            reading.samples[:, images] = torch.cat(list(self._blocks(reading.network, self.precision, images)), 1)
            reading.count = count
        if count == len(self._search):
            reading.network = None

    def _read(self, network: nn.Module, precision: str) -> Tensor:
        """Loss and metric of every image, ``[2, N]`` float64."""
        with self._folder.folded(network):
            return torch.cat(list(self._blocks(network, precision)), 1)

    def _blocks(self, network: nn.Module, precision: str, images: Tensor | None = None) -> Iterator[Tensor]:
        """Loss and metric per image, ``[2, B]`` float64, block by block, in the split's order or of ``images [n]``."""
        images = torch.arange(len(self._search)) if images is None else images
        objective, device = self._task.objective, self._task.device
        halved = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
        for block in torch.split(images, self._block):
            inputs, targets = self._search.fetch(block)
            with torch.inference_mode():
                with halved:
                    outputs = nested.call(network, nested.to(inputs, device))
                outputs, truth = tree_map_only(Tensor, _whole, outputs), nested.to(targets, device)
                lost = self._distance(outputs, block)
                lost = objective.loss(outputs, truth) if lost is None else lost
                yield torch.stack([lost, objective.metric(outputs, truth)]).double().cpu()

    def _distance(self, outputs: Any, images: Tensor) -> Tensor | None:
        """Mean squared difference of the logits from the original's, per image ``[B]``; None: they do not count.

        Logits of every pixel would not fit into memory for all images.
        """
        logits = self._task.objective.vectors(outputs) if self.judge == "distance" else None
        return None if logits is None else (logits - self._wanted[images]).square().mean(1)

    @cached_property
    def _wanted(self) -> Tensor:
        """The original's logits on the search split ``[N, C]``."""
        logits, device, original = self._task.objective.logits, self._task.device, twin(self._task.model)
        assert logits is not None
        with torch.inference_mode(), self._folder.folded(original):
            passes = batches(self._search, self._block)
            return torch.cat([logits(nested.call(original, nested.to(x, device))).float() for x, _ in passes])

    def _recalibrate(self) -> None:
        """Statistics of every BatchNorm anew over `IMAGES` of the calibration split (EagleEye, arXiv:2007.02491)."""
        calibration = sample(self._task.splits.calibration, IMAGES)
        size = -(
            -len(calibration) // -(-len(calibration) // self._task.batch)
        )  # batches of one size: each counts alike
        saved = [m.momentum for m in self._norms]
        try:
            for module in self._norms:
                _forget(module)
            with torch.no_grad():
                for inputs, _ in batches(calibration, size):
                    nested.call(self._scratch, nested.to(inputs, self._task.device))
        finally:
            for module, momentum in zip(self._norms, saved, strict=True):
                module.momentum = momentum
                module.eval()


def _whole(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def _mean(samples: Tensor) -> Score:
    loss, metric = samples.mean(1).tolist()
    return Score(loss, metric)


def _forget(module: nn.modules.batchnorm._BatchNorm) -> None:
    """Start a cumulative average of the statistics."""
    if module.running_mean is not None and module.running_var is not None:
        module.running_mean = torch.zeros_like(module.running_mean)
        module.running_var = torch.ones_like(module.running_var)
        module.num_batches_tracked = torch.zeros((), dtype=torch.long, device=module.running_mean.device)
    module.momentum = None
    module.train()
