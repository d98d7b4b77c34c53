"""Gives each output of an exported graph a separate node and name."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir


def separate_outputs(model: ir.Model) -> None:
    """Adds a node to outputs that share a value or are an input, since outputs are identified by name."""
    seen: set[ir.Value] = set(model.graph.inputs)
    for place, value in enumerate(list(model.graph.outputs)):
        if value not in seen:
            seen.add(value)
            continue
        copy = ir.node("Identity", [value])
        copied = copy.outputs[0]
        copied.name = copy.name = f"{value.name}_output_{place}"
        copied.type, copied.shape = value.type, value.shape
        model.graph.append(copy)
        model.graph.outputs[place] = copied


def name_outputs(model: ir.Model, names: Sequence[str]) -> None:
    """Gives the outputs their names, except where those are taken or would name one tensor twice."""
    outputs = model.graph.outputs
    taken = {value.name for value in (*model.graph.inputs, *model.graph.initializers.values())}
    taken |= {value.name for node in model.graph.all_nodes() for value in node.outputs}
    if len(names) != len(outputs) or len(set(outputs)) != len(outputs) or taken & set(names):
        return
    for value, name in zip(outputs, names, strict=True):
        if value.producer() is not None:
            value.name = name
