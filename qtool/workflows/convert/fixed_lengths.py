"""Fixes every length of a graph's inputs, and folds what follows from them."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from qtool.calib.specs import Feed
from qtool.errors import UsageError
from qtool.formats.torch.example_inputs import leading_dims
from qtool.passes.optimization.operators import Operators
from qtool.passes.optimization.pipeline import run_passes
from qtool.progress import Progress
from qtool.workflows.convert.half_precision import input_specs
from qtool.workflows.convert.opsets import to_opset

# Shapes become constants, and what reads only these.
_PASSES = (
    "inline-functions",
    "lift-constants",
    "infer-shapes",
    "fold-constants",
    "remove-no-ops",
    "known-shapes",
    "merge-views",
)
# From it on, axes of reductions are inputs, as those of Squeeze are.
_OPSET = 18


def fix_lengths(
    model: ir.Model,
    shapes: Mapping[str, tuple[int | str, ...]] | None,
    real: Feed | None,
    *,
    runtime: str,
    progress: Progress,
) -> ir.Model:
    """Returns the graph with fixed lengths, of opset 18 or newer; ``model`` may be modified.

    Lengths are those of ``shapes``, of ``real`` data, and 1 for the axis of samples.

    Args:
        model: the graph.
        shapes: shapes of inputs by name; an empty name stands for the only input.
        real: samples.
        runtime: what needs fixed lengths, for people.
        progress: receives the steps.

    Raises:
        UsageError: a length is not known, or a shape does not fit its input.
    """
    lengths = _lengths(model, dict(shapes or {}), real or {}, runtime)
    if model.opset_imports.get("", _OPSET) < _OPSET:
        model = to_opset(model, _OPSET)
    for value in (*model.graph.outputs, *(value for node in model.graph for value in node.outputs)):
        # What was found for free lengths is found again.
        if value.shape is not None and not value.shape.is_static():
            value.shape = None
    for value in model.graph.inputs:
        if not value.is_initializer():
            value.shape = ir.Shape(lengths[value.name or ""])
    run_passes(model, _PASSES, Operators(), progress)
    return model


def _lengths(
    model: ir.Model, shapes: dict[str, tuple[int | str, ...]], real: Feed, runtime: str
) -> dict[str, tuple[int, ...]]:
    specs = input_specs(model)
    if "" in shapes and len(specs) == 1:
        shapes[specs[0].name] = shapes.pop("")
    for name, shape in shapes.items():
        spec = next((spec for spec in specs if spec.name == name), None)
        if spec is None:
            raise UsageError(
                f"the model has no input '{name}'", fix=f"its inputs: {', '.join(one.name for one in specs)}"
            )
        fits = len(shape) == len(spec.dims) and all(
            isinstance(have, str) or asked in (have, str(have)) for asked, have in zip(shape, spec.dims, strict=False)
        )
        if not fits:
            raise UsageError(
                f"input '{name}' has the shape ({', '.join(map(str, spec.dims))}), not ({', '.join(map(str, shape))})",
                fix="give one number for each dimension",
            )
    leading = leading_dims(specs)
    known: dict[str, int] = {}
    for spec in specs:
        for axis, dim in enumerate(spec.dims):
            asked = shapes.get(spec.name, spec.dims)[axis]
            if not isinstance(dim, str):
                continue
            if isinstance(asked, int):
                known[dim] = asked
            elif dim not in leading and spec.name in real:
                known.setdefault(dim, real[spec.name].shape[axis])
    for spec in specs:
        for dim in spec.dims:
            if isinstance(dim, str) and dim not in known:
                if dim not in leading:
                    written = ",".join(str(known.get(str(one), 1 if one in leading else one)) for one in spec.dims)
                    raise UsageError(
                        f"{runtime} takes fixed lengths, and '{dim}' of input '{spec.name}' is free",
                        fix=f"give a number for it: --input-shape {spec.name}={written}",
                    )
                known[dim] = 1
    return {spec.name: tuple(known[dim] if isinstance(dim, str) else dim for dim in spec.dims) for spec in specs}
