"""Check before the search that a network can be compressed; errors are one line and name a remedy."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.optim.swa_utils import AveragedModel
from torch.utils._pytree import tree_leaves

from amc.errors import ModelError, first_line
from amc.runtime.onednn import SafeGradients
from amc.task import nested
from amc.task.metrics import Objective
from amc.task.nested import Nested

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside wrappers of training: DataParallel, weight averaging, torch.compile.

    >>> type(unwrapped(nn.DataParallel(nn.Linear(2, 1)))).__name__
    'Linear'
    """
    inner: Any = model
    while isinstance(inner, _WRAPPERS) or hasattr(inner, "_orig_mod"):
        inner = inner._orig_mod if hasattr(inner, "_orig_mod") else inner.module
    return inner  # type: ignore[no-any-return]


def prepared(model: nn.Module) -> nn.Module:
    """Unwrap a network and normalise it in place. Raises ModelError.

    Parameters in half precision or in another memory layout are converted. Masks of torch.nn.utils.prune and weights of
    spectral_norm and of the old weight_norm become plain weights, with their values in evaluation mode. Backward hooks
    are removed.
    """
    model = unwrapped(model)
    if not isinstance(model, nn.Module):
        raise ModelError(f"the network is a {type(model).__name__}, but must be a torch.nn.Module.")
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError("the network is a TorchScript module: pass the nn.Module that it was made from.")
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(f"'{name}' is a TorchScript module: replace it by the nn.Module that it was made from.")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if nn.parameter.is_lazy(tensor):
            raise ModelError(f"'{name}' has no shape yet: run the network once on its data to initialise it.")
        if tensor.is_meta:
            raise ModelError(f"'{name}' is on the meta device, which has no values: load the weights first.")
        if tensor.is_quantized:
            raise ModelError(f"'{name}' is quantised: pass the network before quantisation.")
    if any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters()):
        model.float()
    _make_weights_plain(model)
    _settle_tensors(model)
    copied(
        model, {id(t): t for t in [*model.parameters(), *model.buffers()]}
    )  # raises ModelError if it cannot be copied
    _settle_modules(model)
    return model


def _settle_modules(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(
            module, nn.TransformerEncoder
        ):  # nested tensors, made from padding masks, can be neither traced nor exported
            module.use_nested_tensor = False
        module._backward_hooks.clear()  # only for training, and channels cannot be traced through them
        module._backward_pre_hooks.clear()


def _make_weights_plain(model: nn.Module) -> None:
    """Replace weights that hooks recompute in every call, which can be neither copied nor cut, by plain ones."""
    modes = {module: module.training for module in model.modules()}
    model.eval()  # in this mode spectral_norm does not update its estimate
    for module in list(model.modules()):
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)  # type: ignore[no-untyped-call]
            elif isinstance(hook, SpectralNorm):
                nn.utils.remove_spectral_norm(module, hook.name)
            elif isinstance(hook, WeightNorm):
                nn.utils.remove_weight_norm(module, hook.name)
        if is_parametrized(module):
            for name, made_by in list(module.parametrizations.items()):  # type: ignore[union-attr,operator]
                if any(type(p).__name__ == "_SpectralNorm" for p in made_by):
                    remove_parametrizations(module, name, leave_parametrized=True)
    for module, mode in modes.items():
        module.training = mode


def copied(model: nn.Module, shared: Mapping[int, Any] | None = None) -> nn.Module:
    """A deep copy. Raises ModelError if a module has an attribute that cannot be copied, such as a lock or a file.

    Tensors with a gradient graph, such as weights computed by hooks or stored activations, are detached in the copy,
    because torch cannot copy them. ``shared`` is the memo of `copy.deepcopy`: object id → object to use in the copy.
    """
    memo = {id(t): t.detach() for _, _, value in _held(model) for t in tree_leaves(value) if _has_graph(t)}
    memo |= dict(shared or {})
    try:
        return copy.deepcopy(model, dict(memo))
    except Exception as error:  # noqa: BLE001  (a user's module may raise anything)
        reason = first_line(error)
    for name, key, value in _held(model):
        try:
            copy.deepcopy(value, dict(memo))
        except Exception:  # noqa: BLE001
            raise ModelError(
                f"the network cannot be copied: '{f'{name}.{key}'.lstrip('.')}' is a {type(value).__name__}, which "
                "cannot be copied. Create it when it is needed, or give the module a __getstate__ that leaves it out."
            ) from None
    raise ModelError(f"the network cannot be copied: {reason}")


def _held(model: nn.Module) -> Iterator[tuple[str, str, Any]]:
    """Attributes of modules other than parameters, buffers and submodules: module, attribute, value."""
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key not in ("_modules", "_parameters", "_buffers"):
                yield name, key, value


def _has_graph(value: Any) -> bool:
    return isinstance(value, Tensor) and value.grad_fn is not None


def _settle_tensors(model: nn.Module) -> None:
    """Make tensors contiguous, since other layouts use other operators, and replace those made in inference mode."""
    fresh: dict[Tensor, Tensor] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for key, tensor in held.items():
                if tensor is not None and (tensor.is_inference() or _has_other_strides(tensor)):
                    if tensor not in fresh:
                        own = tensor.detach().clone(memory_format=torch.contiguous_format)
                        whole = isinstance(tensor, nn.Parameter)
                        fresh[tensor] = nn.Parameter(own, requires_grad=tensor.requires_grad) if whole else own
                    held[key] = fresh[tensor]  # type: ignore[assignment]


def _has_other_strides(tensor: Tensor) -> bool:
    """Whether strides differ from a contiguous tensor's; torch also calls some of these contiguous."""
    return tensor.stride() != torch.empty(tensor.shape, device="meta").stride()


def check_forward(name: str, model: nn.Module, inputs: Nested) -> Any:
    """The network's outputs. Raises ModelError if it has side effects or is not deterministic."""
    _remove_observing_hooks(model, inputs)
    own = nested.mapped(torch.clone, inputs)
    before = _versions(model)
    with torch.no_grad():
        outputs = nested.call(model, own)
        if any(t.is_inference() for t in _tensors(outputs)):
            raise ModelError(f"{name} uses torch.inference_mode() in its forward: use torch.no_grad() instead.")
        if not all(map(torch.equal, nested.leaves(own), nested.leaves(inputs))):
            raise ModelError(f"{name} changes its input in place: make it work on a copy, x = x.clone().")
        again = nested.call(model, own)
    after = _versions(model)
    changed = [key for key, (old, *at) in before.items() if key not in after or _other(old, at, *after[key])]
    if changed:
        hint = "" if changed[0] not in _renormalised(model) else ": set max_norm of its nn.Embedding to None"
        raise ModelError(f"{name} changes its tensor '{changed[0]}' in evaluation mode{hint}.")
    first, second = _tensors(outputs), _tensors(again)
    if [t.shape for t in first] != [t.shape for t in second]:
        shapes = [", ".join(str(list(t.shape)) for t in ts) or "nothing" for ts in (first, second)]
        raise ModelError(f"{name} returns {shapes[0]}, then {shapes[1]} for the same inputs: it must be repeatable.")
    count = nested.length(own)
    with torch.inference_mode():
        alone = _tensors(nested.call(model, nested.mapped(lambda leaf: leaf[:1], own)))
    for one, many in zip(alone, first, strict=False):
        if many.shape[:1] == (count,) and list(one.shape) != [1, *many.shape[1:]]:
            raise ModelError(
                f"{name} returns {list(one.shape)} for one sample, but {list(many.shape)} for {count}: a common cause "
                "is x.squeeze() without an axis."
            )
    if not all(map(_alike, first, second)):
        raise ModelError(f"{name} returns different values for the same inputs: turn off its randomness.")
    return outputs


def _renormalised(model: nn.Module) -> set[str]:
    """Tables of embeddings whose rows are shortened when they are looked up."""
    kinds = (nn.Embedding, nn.EmbeddingBag)
    return {f"{n}.weight".lstrip(".") for n, m in model.named_modules() if isinstance(m, kinds) and m.max_norm}


def check_training_step(model: nn.Module, objective: Objective, inputs: Nested, targets: Nested) -> None:
    """Try one training step on a copy: a forward pass in training mode, the loss, and its gradients.

    ``inputs`` and ``targets`` are some samples on the model's device. The state of random generators is preserved.
    Raises ModelError with a remedy.
    """
    own = copied(model).train()
    if not any(p.requires_grad for p in own.parameters()):
        raise ModelError(
            "all parameters of the network are frozen, so it cannot be trained after pruning: call "
            f"model.requires_grad_(True), or skip training{_NO_TRAINING}."
        )
    devices = [p.device for p in own.parameters() if p.device.type == "cuda"][:1]
    with torch.random.fork_rng(devices=devices), torch.enable_grad(), SafeGradients(own).active():
        try:
            outputs = nested.call(own, nested.mapped(torch.clone, inputs))
        except Exception as error:
            raise ModelError(f"the network fails in training mode: {first_line(error)}{_OR_NO_TRAINING}") from error
        loss = _training_loss(objective, outputs, targets, nested.length(targets))
        if not loss.requires_grad:
            raise ModelError(
                "the network's output has no gradient in training mode, perhaps because forward() runs under "
                f"torch.no_grad() or detaches its output: remove that, or skip training{_NO_TRAINING}."
            )
        try:
            loss.backward()  # type: ignore[no-untyped-call]
        except Exception as error:
            raise ModelError(f"the network cannot be trained: {first_line(error)}{_OR_NO_TRAINING}") from error


_NO_TRAINING = " (--no-finetune; from Python finetune.epochs 0)"
_OR_NO_TRAINING = f". Fix that, or skip training{_NO_TRAINING}."


def _training_loss(objective: Objective, outputs: Any, targets: Nested, count: int) -> Tensor:
    """The mean loss of outputs in training mode. Raises ModelError if it cannot be computed."""
    reason = ""
    try:
        losses = objective.loss(outputs, targets)
        if objective.logits is not None:
            objective.logits(outputs).shape  # noqa: B018  (distillation needs it)
        if list(losses.shape) != [count]:
            reason = f"the losses have the shape {list(losses.shape)}, not [{count}]"
    except Exception as error:  # noqa: BLE001  (a user's function may raise anything)
        reason = first_line(error)
    if reason:
        shapes = ", ".join(str(list(t.shape)) for t in _tensors(outputs)) or "no tensor"
        given = shapes if isinstance(outputs, Tensor) else f"a {type(outputs).__name__} of {shapes}"
        raise ModelError(
            f"in training mode the network returns {given}, which the loss does not accept ({reason}): make it return "
            "the same as in evaluation mode, pass an objective whose loss and logits accept both, or skip "
            f"training{_NO_TRAINING}."
        )
    return losses.mean()


def _other(old: Tensor, at: list[Any], new: Tensor, *now: Any) -> bool:
    return new is not old or list(now) != at


def _tensors(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def _alike(first: Tensor, second: Tensor) -> bool:
    first, second = first.detach(), second.detach()
    scale = float(first.abs().nan_to_num(0.0, 0.0).max()) if first.numel() else 0.0
    return torch.allclose(first.double(), second.double(), rtol=1e-3, atol=1e-3 * scale, equal_nan=True)


def _versions(model: nn.Module) -> dict[str, tuple[Tensor, int, torch.dtype, int]]:
    """Versions and checksums that show whether a tensor was replaced or modified, even through ``.data``.

    It keeps references to the tensors, because the id of a freed tensor could be used again.
    """
    named = [*model.named_parameters(), *model.named_buffers()]
    return {key: (t, t._version, t.dtype, _checksum(t)) for key, t in named}


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def _remove_observing_hooks(model: nn.Module, inputs: Nested) -> None:
    """Remove a user's hooks that only observe, because the data they collect would grow with every evaluation.

    Hooks that change the outputs are part of the network and stay, and so do torch's own (weight norm).
    """
    held = [h for m in model.modules() for h in (m._forward_hooks, m._forward_pre_hooks)]
    own = [(hooks, key, hook) for hooks in held for key, hook in hooks.items() if not _of_torch(hook)]
    if not own:
        return
    with torch.inference_mode():
        watched = _tensors(nested.call(model, nested.mapped(torch.clone, inputs)))
        for hooks, key, _ in own:
            del hooks[key]
        alone = _tensors(nested.call(model, nested.mapped(torch.clone, inputs)))
    if len(alone) != len(watched) or not all(
        a.shape == b.shape and _alike(a, b) for a, b in zip(alone, watched, strict=True)
    ):
        for hooks, key, hook in own:
            hooks[key] = hook


def _of_torch(hook: Any) -> bool:
    module = getattr(hook, "__module__", None) or type(hook).__module__
    return str(module).partition(".")[0] == "torch"
