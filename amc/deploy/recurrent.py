"""Recurrent layers in programs from files: their kernels do not check the shapes of states and weights; this does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx


def traced(function: Callable[..., Any], values: tuple[Any, ...]) -> fx.Proxy:
    """The same step as a node of another graph, when fx traces a program (as unpickling does)."""
    tracer = next(value.tracer for value in values if isinstance(value, fx.Proxy))
    return tracer.create_proxy("call_function", function, values, {})


def lstm(given: Any, states: list[Any], weights: list[Tensor], *rest: Any) -> Any:
    """``aten.lstm.input`` with a check of the shapes of states and weights, which its kernel does not do."""
    if isinstance(given, fx.Proxy):
        return traced(lstm, (given, states, weights, *rest))
    if len(states) != 2:
        raise ValueError("an LSTM has two states")
    _check_recurrent(4, given, states, weights, *rest)
    return torch.ops.aten.lstm.input(given, states, weights, *rest)


def gru(given: Any, state: Any, weights: list[Tensor], *rest: Any) -> Any:
    """``aten.gru.input`` with a check of shapes, as in `lstm`."""
    return _with_one_state(gru, torch.ops.aten.gru.input, 3, given, state, weights, *rest)


def rnn_tanh(given: Any, state: Any, weights: list[Tensor], *rest: Any) -> Any:
    """``aten.rnn_tanh.input`` with a check of shapes, as in `lstm`."""
    return _with_one_state(rnn_tanh, torch.ops.aten.rnn_tanh.input, 1, given, state, weights, *rest)


def rnn_relu(given: Any, state: Any, weights: list[Tensor], *rest: Any) -> Any:
    """``aten.rnn_relu.input`` with a check of shapes, as in `lstm`."""
    return _with_one_state(rnn_relu, torch.ops.aten.rnn_relu.input, 1, given, state, weights, *rest)


def _with_one_state(
    name: Any, function: Any, gates: int, given: Any, state: Any, weights: list[Tensor], *rest: Any
) -> Any:
    if isinstance(given, fx.Proxy):
        return traced(name, (given, state, weights, *rest))
    _check_recurrent(gates, given, [state], weights, *rest)
    return function(given, state, weights, *rest)


def _check_recurrent(
    gates: int, given: Any, states: list[Any], weights: list[Tensor], has_biases: bool, layers: int, dropout: float,
    train: bool, bidirectional: bool, batch_first: bool,
) -> None:  # fmt: skip
    """Raise ValueError unless states and weights have the shapes of recurrent layers; ``states``: hidden, then cell."""
    directions = 2 if bidirectional else 1
    if given.ndim != 3 or any(state.ndim != 3 for state in states):
        raise ValueError("a recurrent layer takes a sequence and states of three axes")
    output, hidden, batch = states[0].shape[2], states[-1].shape[2], given.shape[0 if batch_first else 1]
    wanted: list[tuple[int, ...]] = []
    for layer in range(layers if 0 < layers <= len(weights) else 0):
        own: list[tuple[int, ...]] = [
            (gates * hidden, given.shape[2] if layer == 0 else directions * output),
            (gates * hidden, output),
        ]
        own += [(gates * hidden,)] * 2 if has_biases else []
        wanted += (own if output == hidden else [*own, (output, hidden)]) * directions
    sizes = [(layers * directions, batch, n) for n in (output, hidden)]
    if [tuple(state.shape) for state in states] != sizes[: len(states)]:
        raise ValueError("the states of a recurrent layer do not have the shape of its layers")
    if not wanted or [tuple(weight.shape) for weight in weights] != wanted:
        raise ValueError("the weights of a recurrent layer do not have the shape of its layers")


GUARDED: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.lstm.input: lstm,
    torch.ops.aten.gru.input: gru,
    torch.ops.aten.rnn_tanh.input: rnn_tanh,
    torch.ops.aten.rnn_relu.input: rnn_relu,
}
"""Operators that programs call through a function with additional checks."""
