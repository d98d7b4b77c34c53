"""Finds a node or tensor of a graph by its name, or the end of it."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

import onnx_ir as ir

from qtool.errors import InputError
from qtool.qdq.quantized_tensors import QuantizedTensor

_SUGGESTIONS = 3
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True, slots=True)
class Found:
    """The target of a name.

    Attributes:
        node: the node of that name, or the one that makes the tensor; None for inputs of the model and constants.
        tensor: the tensor of that name; None where the name is a node's.
    """

    node: ir.Node | None
    tensor: str | None


def find(model: ir.Model, tensors: dict[str, QuantizedTensor], name: str) -> Found:
    """Returns the node or tensor called ``name``, or the only one whose name ends so.

    Names of Q, DQ and of stored integers lead to the tensor that they belong to.

    Raises:
        InputError: there is none, or several end so.
    """
    nodes = {node.name: node for node in model.graph if node.name}
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    known = [*(name for name, node in nodes.items() if node.op_type not in _CONVERSIONS), *tensors]
    known += [value for value in values if value not in tensors and not _belongs_to_pair(values[value])]
    chosen = name if name in nodes or name in values or name in tensors else _by_ending(name, known)
    if chosen in nodes and nodes[chosen].op_type not in _CONVERSIONS:
        return Found(nodes[chosen], None)
    value = _value_of(nodes[chosen]) if chosen in nodes else values.get(chosen)
    owner = next((tensor for tensor in tensors.values() if _is_about(tensor, chosen, value)), None)
    if owner is not None:
        return Found(owner.value.producer(), owner.tensor)
    return Found(None if value is None else value.producer(), chosen)


def _by_ending(name: str, known: list[str]) -> str:
    ending = [candidate for candidate in dict.fromkeys(known) if candidate.endswith(name)]
    if len(ending) == 1:
        return ending[0]
    if ending:
        shown = ", ".join(f"'{candidate}'" for candidate in ending[:_SUGGESTIONS])
        raise InputError(f"{len(ending)} names in the model end in '{name}'", fix=f"name one of them: {shown}")
    near = get_close_matches(name, known, n=_SUGGESTIONS, cutoff=0.3)
    lower = {candidate.lower(): candidate for candidate in known}
    near = near or [lower[match] for match in get_close_matches(name.lower(), lower, n=_SUGGESTIONS, cutoff=0.3)]
    fix = "`qtool verify --json` and `qtool quantize --dry-run` list names"
    if near:
        fix = f"did you mean {' or '.join(repr(candidate) for candidate in near)}?"
    raise InputError(f"the model has no node and no tensor '{name}'", fix=fix)


def _belongs_to_pair(value: ir.Value) -> bool:
    """Returns whether a value is a scale, a zero point, or the integers themselves."""
    producer = value.producer()
    if producer is not None:
        return producer.op_type in _CONVERSIONS
    uses = list(value.uses())
    return bool(uses) and all(use.node.op_type in _CONVERSIONS and use.idx > 0 for use in uses)


def _value_of(node: ir.Node) -> ir.Value | None:
    return node.inputs[0] if node.op_type == "QuantizeLinear" else node.outputs[0]


def _is_about(tensor: QuantizedTensor, name: str, value: ir.Value | None) -> bool:
    if name == tensor.tensor:
        return True
    if value is None:
        return False
    producer = tensor.dequantized.producer()
    integers = None if producer is None else producer.inputs[0]
    return any(value is part for part in (tensor.value, tensor.dequantized, integers))
