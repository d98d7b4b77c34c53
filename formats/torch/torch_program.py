"""Exports torch modules as ONNX graphs with torch's own exporter."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from qtool.formats.errors import FormatError
from qtool.formats.garbage import few_collections
from qtool.formats.library_noise import quiet_libraries
from qtool.formats.torch.example_inputs import Array, Feeds, InputSpec, Length
from qtool.formats.torch.forward_inputs import check_data, nothing_named, paired_by_name, paired_with_data
from qtool.formats.torch.missing_translations import translations
from qtool.formats.torch.program_outputs import name_outputs, separate_outputs
from qtool.formats.torch.torch_calls import (
    Called,
    StoredProgram,
    call,
    names_in,
    no_tensors_in,
    parameters,
    tensors_in,
)
from qtool.formats.torch.torchscript_file import export_script

# Asked for anything else, torch.onnx.export silently gives another opset, or an invalid file.
EXPORTER_OPSETS = range(18, 24)
# The metadata of a folded constant's inputs; all other metadata of the exporter is about its own run.
_KEPT_METADATA = "pkg.onnxscript.optimizer.folded_from"
_STATIC_DIM = re.compile(r"static shape of (\d+) for dimension inputs\['([^']+)'\]\.shape\[(\d+)\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundInput:
    """Joins an input of the graph with the parameter that receives it.

    Attributes:
        parameter: the parameter of forward.
        spec: the input.
    """

    parameter: str
    spec: InputSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """The result of a module.

    Attributes:
        names: the keys of a dictionary; nothing for other results.
        values: its tensors, in the order of the graph's outputs.
        left_out: its other parts, such as plain numbers, with their places.
    """

    names: tuple[str, ...]
    values: tuple[Array, ...]
    left_out: tuple[str, ...] = ()


def bind(
    module: torch.nn.Module,
    *,
    shapes: Mapping[str, tuple[int | str, ...]] | None = None,
    dtypes: Mapping[str, np.dtype[Any]] | None = None,
    feeds: Feeds | None = None,
    data_shapes: Mapping[str, tuple[int | str, ...]] | None = None,
    lengths: Mapping[str, Mapping[str, Length]] | None = None,
) -> tuple[BoundInput, ...]:
    """Maps the inputs of the graph to the parameters of the module's forward method.

    Names are those of the parameters; where there is one required parameter and one input, the input keeps its own
    name, and an empty name stands for it. Without ``shapes`` they are those of the data; arrays that no parameter
    asks for, such as labels, are ignored.

    Args:
        module: the module.
        shapes: the shape of each input, as the user gave it.
        dtypes: element types; those of ``feeds`` otherwise (floats become float32), and float32 without either.
        feeds: real data by input name.
        data_shapes: shapes of the data, with names for what varies; the first dimension of ``feeds`` otherwise.
        lengths: which lengths free dimensions may have, by input and dimension.

    Raises:
        FormatError: a required parameter gets nothing, or a name belongs to no parameter.
    """
    offered = parameters(module)
    if not offered:
        raise nothing_named(module)
    if shapes:
        pairs = paired_by_name(offered, list(shapes))
        if feeds:
            check_data(pairs, feeds)
    elif feeds:
        pairs = paired_with_data(offered, feeds)
        shapes = {name: ("batch", *array.shape[1:]) for name, array in feeds.items()} | dict(data_shapes or {})
    else:
        names = [parameter.name for parameter in offered if parameter.required]
        raise FormatError(
            f"the shapes of the module's inputs are not known (its forward takes {', '.join(names) or 'nothing'})",
            fix=f"pass --input-shape {names[0] if names else 'x'}=batch,3,224,224 or --calib-data",
        )
    return tuple(
        BoundInput(
            parameter=parameter,
            spec=InputSpec(
                name=name or parameter,
                dims=shapes[name],
                dtype=_dtype(name, feeds or {}, dtypes or {}),
                lengths=(lengths or {}).get(name, {}),
            ),
        )
        for parameter, name in pairs.items()
    )


def run(module: torch.nn.Module, inputs: Sequence[BoundInput], feeds: Feeds) -> list[Array]:
    """Returns the module's outputs for ``feeds``: its tensors, in the order of the graph's outputs.

    Raises:
        FormatError: the module fails.
    """
    return [_array(value) for value in tensors_in(_result(module, inputs, feeds))]


def run_named(module: torch.nn.Module, inputs: Sequence[BoundInput], feeds: Feeds) -> Outputs:
    """Runs the module and returns what it gives, as copies that later runs leave alone, with the names that it has.

    Raises:
        FormatError: the module fails.
    """
    result = _result(module, inputs, feeds)
    return Outputs(
        names=names_in(result),
        values=tuple(_array(value).copy() for value in tensors_in(result)),
        left_out=no_tensors_in(result),
    )


def export(
    module: torch.nn.Module,
    inputs: Sequence[BoundInput],
    feeds: Feeds,
    *,
    opset: int | None = None,
    output_names: Sequence[str] = (),
) -> ir.Model:
    """Exports the module, in evaluation mode, as a graph with free dimensions where the inputs have them.

    Args:
        module: the module.
        inputs: the graph's inputs, from ``bind``.
        feeds: an example, with lengths of 2 or more in free dimensions.
        opset: 18 to 23; None leaves the choice to torch.
        output_names: what to call the outputs; empty leaves the choice to torch.

    Raises:
        FormatError: the module cannot be exported, or a free dimension is fixed by its code.
    """
    try:
        with torch.no_grad(), quiet_libraries(), few_collections():
            model = _exported(module, inputs, feeds, opset)
    except MemoryError:
        raise
    except Exception as error:  # torch.export and the code it traces raise nearly anything
        raise _not_exported(error, inputs) from error
    _strip_notes(model)
    if isinstance(module, Called):
        for value in list(model.graph.initializers.values()):
            value.name = (value.name or "").removeprefix("program.")
    separate_outputs(model)
    name_outputs(model, output_names)
    return model


def _exported(module: torch.nn.Module, inputs: Sequence[BoundInput], feeds: Feeds, opset: int | None) -> ir.Model:
    tensors = _tensors(inputs, feeds)
    names = [bound.spec.name for bound in inputs]
    free = {
        bound.parameter: {axis: dim for axis, dim in enumerate(bound.spec.dims) if isinstance(dim, str)}
        for bound in inputs
    }
    stored = isinstance(module, StoredProgram)
    if isinstance(module, StoredProgram):
        if module.scripted:
            axes = {bound.spec.name: free[bound.parameter] for bound in inputs}
            return export_script(module, tensors, names, axes, opset)
        module = module.giving(list(tensors))
    program = torch.onnx.export(
        module,
        tuple(tensors.values()) if stored else (),
        kwargs=None if stored else tensors,
        input_names=names,
        opset_version=opset,
        dynamo=True,
        custom_translation_table=translations(),
        dynamic_shapes={"inputs": tuple(free.values())} if stored else free,
        external_data=False,
        verbose=False,
    )
    if program is None:
        raise FormatError("torch.onnx.export gave no graph", fix="export the model with another version of torch")
    model: ir.Model = program.model
    return model


def _result(module: torch.nn.Module, inputs: Sequence[BoundInput], feeds: Feeds) -> Any:
    try:
        with torch.no_grad(), quiet_libraries():
            result = call(module, _tensors(inputs, feeds))
    except MemoryError:
        raise
    except Exception as error:  # the user's code may raise anything
        shapes = ", ".join(f"{name} {array.shape} {array.dtype}" for name, array in feeds.items())
        raise FormatError(
            f"the module fails on {shapes}: {_first_line(error)}",
            fix="correct --input-shape (a type can follow it: ids=batch,seq:int64), or pass real --calib-data",
        ) from error
    if not tensors_in(result):
        raise FormatError("the module returns no tensor", fix="let its forward return its outputs")
    if any(tensor.is_complex() for tensor in tensors_in(result)):
        raise FormatError(
            "the module returns complex numbers, which ONNX runtimes do not have",
            fix="let its forward return real ones: torch.view_as_real(y), or y.real and y.imag",
        )
    return result


def _dtype(name: str, feeds: Feeds, dtypes: Mapping[str, np.dtype[Any]]) -> np.dtype[Any]:
    if name in dtypes:
        return dtypes[name]
    if name in feeds and feeds[name].dtype.kind != "f":
        return feeds[name].dtype
    return np.dtype(np.float32)


def _tensors(inputs: Sequence[BoundInput], feeds: Feeds) -> dict[str, torch.Tensor]:
    return {bound.parameter: torch.from_numpy(np.ascontiguousarray(feeds[bound.spec.name])) for bound in inputs}


def _array(tensor: torch.Tensor) -> Array:
    plain = tensor.detach().cpu()
    # numpy has no bfloat16; the comparison needs the values only.
    return (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()


def _strip_notes(model: ir.Model) -> None:
    """Removes stack traces, paths and other notes, so that the same module gives the same bytes on any machine."""
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        graph.metadata_props.clear()
        graph.doc_string = None
    for node in model.graph.all_nodes():
        _keep_origin(node.metadata_props)
        node.doc_string = None
        for value in node.outputs:
            _keep_origin(value.metadata_props)
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        _keep_origin(value.metadata_props)
    model.metadata_props.clear()


def _keep_origin(notes: dict[str, str]) -> None:
    for key in [key for key in notes if key != _KEPT_METADATA]:
        del notes[key]


def _not_exported(error: Exception, inputs: Sequence[BoundInput]) -> FormatError:
    dims = {bound.parameter: bound.spec for bound in inputs}
    static = _STATIC_DIM.search(str(error))
    if static is not None and static[2] in dims:
        spec = dims[static[2]]
        name = spec.dims[int(static[3])]
        fixed = ",".join(static[1] if dim == name else str(dim) for dim in spec.dims)
        return FormatError(
            f"the module's code fixes the free dimension '{name}' of input '{spec.name}' to the example's {static[1]}",
            fix=f"give it a length, as in --input-shape {spec.name}={fixed}, or change the code",
        )
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return FormatError(
        f"torch cannot export the module: {_first_line(cause)}",
        fix="make its forward traceable (no data-dependent branches); --debug shows where it stops",
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
