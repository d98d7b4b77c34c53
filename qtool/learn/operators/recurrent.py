"""LSTM and GRU, as torch's own kernels compute them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from qtool.learn.operators.calls import Call, Inputs, Operator, given, optional

# Where torch's gates stand in ONNX's order: i, f, g, o among i, o, f, c, and r, z, n among z, r, h.
_LSTM_GATES = (0, 2, 3, 1)
_GRU_GATES = (1, 0, 2)


def _lstm(call: Call, inputs: Inputs) -> tuple[torch.Tensor | None, ...]:
    _check(call, inputs, ["Sigmoid", "Tanh", "Tanh"])
    if optional(inputs, 7) is not None or call.integer("input_forget", 0):
        raise LookupError("peepholes are not computed")
    sequence, two = _sequence(call, inputs), call.text("direction", "forward") == "bidirectional"
    states = [_state(inputs, index) for index in (5, 6)]
    weights, biases = _weights(inputs, _LSTM_GATES), optional(inputs, 3) is not None
    output, hidden, cell = torch.lstm(sequence, states, weights, biases, 1, 0.0, False, two, False)
    return _by_direction(call, output, hidden), hidden, cell


def _gru(call: Call, inputs: Inputs) -> tuple[torch.Tensor | None, ...]:
    _check(call, inputs, ["Sigmoid", "Tanh"])
    if not call.integer("linear_before_reset", 0):
        raise LookupError("a reset before the product is not computed")
    sequence, two = _sequence(call, inputs), call.text("direction", "forward") == "bidirectional"
    weights, biases = _weights(inputs, _GRU_GATES), optional(inputs, 3) is not None
    output, hidden = torch.gru(sequence, _state(inputs, 5), weights, biases, 1, 0.0, False, two, False)
    return _by_direction(call, output, hidden), hidden


def _check(call: Call, inputs: Inputs, activations: Sequence[str]) -> None:
    directions = 2 if call.text("direction", "forward") == "bidirectional" else 1
    named = [name.decode() if isinstance(name, bytes) else name for name in call.attributes.get("activations", [])]
    if named and named != list(activations) * directions:
        raise LookupError("only the usual activations are computed")
    lengths = optional(inputs, 4)
    if lengths is not None and bool((lengths != given(inputs, 0).shape[0]).any()):
        raise LookupError("sequences of several lengths are not computed")
    if "clip" in call.attributes or call.integer("layout", 0):
        raise LookupError("clipped cells and sequences in batches first are not computed")


def _sequence(call: Call, inputs: Inputs) -> torch.Tensor:
    sequence = given(inputs, 0)
    return sequence.flip(0) if call.text("direction", "forward") == "reverse" else sequence


def _state(inputs: Inputs, index: int) -> torch.Tensor:
    """Returns the first state, (directions, batch, hidden)."""
    state = optional(inputs, index)
    if state is not None:
        return state
    sequence, recurrence = given(inputs, 0), given(inputs, 2)
    return sequence.new_zeros((recurrence.shape[0], sequence.shape[1], recurrence.shape[2]))


def _weights(inputs: Inputs, gates: Sequence[int]) -> list[torch.Tensor]:
    """Returns what torch wants of each direction: weights of the input and of the state, and both biases."""
    input_weights, recurrence, bias = given(inputs, 1), given(inputs, 2), optional(inputs, 3)

    def ordered(part: torch.Tensor) -> torch.Tensor:
        return torch.cat([part.chunk(len(gates))[gate] for gate in gates])

    weights = []
    for direction in range(recurrence.shape[0]):
        weights += [ordered(input_weights[direction]), ordered(recurrence[direction])]
        if bias is not None:
            weights += [ordered(half) for half in bias[direction].chunk(2)]
    return weights


def _by_direction(call: Call, output: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Returns (steps, directions, batch, hidden) of torch's (steps, batch, directions times hidden)."""
    output = output.reshape(*output.shape[:2], hidden.shape[0], hidden.shape[2]).permute(0, 2, 1, 3)
    return output.flip(0) if call.text("direction", "forward") == "reverse" else output


RECURRENT: Mapping[str, Operator] = {"GRU": _gru, "LSTM": _lstm}
