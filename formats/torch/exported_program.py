"""Reads the programs that torch.export stores, once an audit has found them harmless."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from qtool.formats.base import Weights
from qtool.formats.errors import FormatError
from qtool.formats.library_noise import quiet_libraries
from qtool.formats.torch.example_inputs import InputSpec, Length
from qtool.formats.torch.stored_containers import register_containers
from qtool.formats.torch.torch_calls import Parameter, StoredProgram

_SMALLEST_FREE = 2


def read_exported_program(path: Path) -> Weights:
    """Reads the program, its weights and the shapes that it was exported for.

    Raises:
        FormatError: the file is damaged.
    """
    try:
        with quiet_libraries():
            register_containers(path)
            program = torch.export.load(path)
            module = program.module()
    except MemoryError:
        raise
    except Exception as error:  # a damaged file makes torch raise nearly anything
        raise FormatError(
            f"{path} is a damaged exported program, or one of a newer torch",
            fix="export it again, or update torch",
        ) from error
    inputs = _inputs(program, path)
    tensors = {name: tensor.detach() for name, tensor in program.state_dict.items()}
    _compute_in_float(module)
    form = program.call_spec.in_spec

    def call(graph: torch.nn.Module, tensors: Mapping[str, Any]) -> Any:
        arguments, keywords = pytree.tree_unflatten([tensors[spec.name] for spec in inputs], form)
        return graph(*arguments, **keywords)

    return Weights(
        tensors=tensors,
        metadata={},
        source=f"program with {sum(1 for _ in program.parameters())} weights",
        module=StoredProgram(
            module, [Parameter(name=spec.name, required=True) for spec in inputs], call, scripted=False
        ),
        inputs=inputs,
    )


def _compute_in_float(module: torch.fx.GraphModule) -> None:
    """Lets a program of bfloat16 compute in float32: onnxruntime's CPU has no kernels for anything less."""
    values = (node.meta.get("val") for node in module.graph.nodes)
    if not any(isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16 for value in values):
        return

    def widened(argument: Any) -> Any:
        return torch.float32 if argument is torch.bfloat16 else argument

    module._apply(lambda tensor: tensor.float() if tensor.dtype == torch.bfloat16 else tensor)
    for node in module.graph.nodes:
        node.args = torch.fx.node.map_aggregate(node.args, widened)
        node.kwargs = torch.fx.node.map_aggregate(node.kwargs, widened)
    module.recompile()


def _inputs(program: torch.export.ExportedProgram, path: Path) -> tuple[InputSpec, ...]:
    """Returns the inputs with names for what is free: ``batch`` first, the same name for the same length."""
    placeholders = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    names: dict[str, str] = {}
    specs = []
    for name in program.graph_signature.user_inputs:
        value = placeholders.get(str(name))
        if not isinstance(value, torch.Tensor):
            raise FormatError(
                f"{path} takes an input that is no tensor ({name})", fix="export it again with tensors as inputs only"
            )
        dims = tuple(
            length
            if isinstance(length, int)
            else names.setdefault(str(length), "batch" if axis == 0 and not names else f"{name}_dim{axis}")
            for axis, length in enumerate(value.shape)
        )
        rules = {dim: _length(program, length) for dim, length in zip(dims, value.shape, strict=True)}
        lengths = {str(dim): rule for dim, rule in rules.items() if rule is not None}
        # numpy has no bfloat16, and the program is made to compute in float32.
        dtype = (
            np.dtype(np.float32) if value.dtype == torch.bfloat16 else torch.empty(0, dtype=value.dtype).numpy().dtype
        )
        specs.append(InputSpec(name=str(name), dims=dims, dtype=dtype, lengths=lengths))
    return tuple(specs)


def _length(program: torch.export.ExportedProgram, length: Any) -> Length | None:
    """Reads which lengths a dimension may have, where they are a multiple of one free number and something more."""
    if isinstance(length, int):
        return None
    expression = length.node.expr
    if len(expression.free_symbols) != 1:
        return None
    (symbol,) = expression.free_symbols
    factor, offset = expression.diff(symbol), expression.subs(symbol, 0)
    if not (factor.is_Integer and offset.is_Integer and factor > 0):
        return None
    ends = program.range_constraints.get(symbol)
    low, high = (1, None) if ends is None else (_whole(ends.lower), _whole(ends.upper))
    return Length(
        number=str(symbol),
        factor=int(factor),
        offset=int(offset),
        # torch writes 2 for whatever is free, because it compiles programs again for a length of 1.
        low=low if low is not None and low > _SMALLEST_FREE else 1,
        high=high,
    )


def _whole(end: Any) -> int | None:
    return int(end) if getattr(end, "is_Integer", isinstance(end, int)) else None
