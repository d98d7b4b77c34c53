"""Mixed half precision: rewrites graphs in float16 or bfloat16, keeps overflowing nodes in float32, and compares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from qtool.calib.specs import Array, Feed
from qtool.errors import InputError, RuntimeRefusedError
from qtool.formats.onnx.ir_versions import lowest_ir_version
from qtool.formats.onnx.onnx_file import LARGEST_MESSAGE_BYTES, weights_nbytes
from qtool.formats.onnx.shape_inference import infer_shapes
from qtool.formats.torch.example_inputs import InputSpec
from qtool.graph.maps_aside import put_maps_back, take_maps_aside
from qtool.graph.names import Names
from qtool.passes.half.half_precision import (
    HALF_DTYPES,
    NCHWC_DOMAIN,
    HalfName,
    HalfPlan,
    KeptFloat32,
    compute_in_float,
    float_nodes,
    plan_half,
    to_half,
)
from qtool.progress import Progress
from qtool.workflows.convert.opsets import taken_types, to_opset
from qtool.workflows.convert.program_check import ProgramComparison, compare_programs, first_run

if TYPE_CHECKING:
    from qtool.runtime.parts import Parts
    from qtool.runtime.session import Level, Session

# Rounding to 11 or 8 bits in every layer adds up to about this fraction of the largest output in deep networks.
LARGEST_HALF_DIFFERENCE: Mapping[HalfName, float] = {"float16": 2e-2, "bfloat16": 1.5e-1}
_LARGEST: Mapping[HalfName, float] = {"float16": 65504.0, "bfloat16": 3.3895313892515355e38}
# The first opset in which Conv and pooling support it.
_BFLOAT16_OPSET = 22
_FREE_INITIALIZERS_VERSION = 4
_VALUES_AT_ONCE = 1 << 22
_WATCHED = "qtool_largest_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """The precision to compute in.

    Attributes:
        name: the type.
        half_io: whether inputs and outputs are of that type too.
    """

    name: HalfName
    half_io: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfGraph:
    """A graph in half precision.

    Attributes:
        model: the graph.
        comparisons: its comparisons with the float graph.
        kept: the nodes that stay float32.
    """

    model: ir.Model
    comparisons: tuple[ProgramComparison, ...]
    kept: tuple[KeptFloat32, ...]


def to_precision(
    model: ir.Model, precision: Precision, *, real: Feed | None, keep_opset: bool, progress: Progress
) -> HalfGraph:
    """Rewrites ``model``, in place, and compares it with the original.

    Args:
        model: a float32 graph.
        precision: the type.
        real: data to detect overflow and to compare on; random inputs where None.
        keep_opset: whether the opset is kept even if its operators do not support the type.
        progress: receives the steps.

    Raises:
        InputError: nothing in the graph computes in float32, or the result differs by more than rounding.
        RuntimeRefusedError: onnxruntime does not run the graph.
    """
    maps = take_maps_aside(model)
    model = _prepared(model, precision, keep_opset=keep_opset)
    specs = input_specs(model)
    # The current size: in half precision the weights may fit, but onnxruntime converts them to float again.
    is_large = weights_nbytes(model) > LARGEST_MESSAGE_BYTES
    with _opened(model, is_large=is_large) as original, progress.task(f"converting to {precision.name}"):
        feeds = first_run(specs, real, lambda feed: list(original.run(feed).values()), progress).feeds
        blocked: dict[ir.Node, str] = {}
        for node, reason in _out_of_range(model, precision.name, feeds, is_large=is_large):
            blocked.setdefault(node, reason)
        plan = plan_half(model, HALF_DTYPES[precision.name], taken=taken_types, blocked=blocked)
        if not plan.nodes:
            raise _nothing_to_convert(model, precision.name, plan)
        runnable = _for_float_kernels(model, plan) if precision.name == "bfloat16" else model
        to_half(model, plan, taken=taken_types, half_io=precision.half_io)
        comparisons = _compared(runnable, precision.name, specs, real, original.run, progress, is_large=is_large)
    put_maps_back(model, maps)
    return HalfGraph(model=model, comparisons=comparisons, kept=plan.kept)


def _nothing_to_convert(model: ir.Model, name: HalfName, plan: HalfPlan) -> InputError:
    made = {value.dtype for node in model.graph for value in node.outputs}
    halves = [dtype for dtype in HALF_DTYPES.values() if dtype in made]
    if halves and not plan.kept:
        kinds = " and ".join(dtype.name.lower() for dtype in halves)
        return InputError(f"the graph computes in {kinds} already", fix="leave out --fp16 and --bf16")
    why = plan.kept[0].reason if plan.kept else "it has no layers of floats"
    fix = "leave out --fp16 and --bf16, or give a newer --opset"
    if any(node.domain == NCHWC_DOMAIN for node in model.graph):
        fix = "convert the original model, not one that onnxruntime saved at its highest level of optimization"
    return InputError(f"nothing in the graph can compute in {name}: {why}", fix=fix)


def _dim(dim: int | ir.SymbolicDim) -> int | str | None:
    """Returns a length, or the name of a free one; None where it has none, or the -1 or ? that some exporters write."""
    if isinstance(dim, int):
        return dim if dim > 0 else None
    return None if dim.value == "?" else dim.value


def input_specs(model: ir.Model) -> list[InputSpec]:
    """Describes the graph's inputs, with a name for each free dimension."""
    return [
        InputSpec(
            name=value.name or "",
            dims=tuple(_dim(dim) or f"{value.name}_dim{axis}" for axis, dim in enumerate(value.shape or ())),
            dtype=np.dtype(np.float32) if value.dtype is None else np.dtype(value.dtype.numpy()),
        )
        for value in model.graph.inputs
        if not value.is_initializer()
    ]


def _prepared(model: ir.Model, precision: Precision, *, keep_opset: bool) -> ir.Model:
    from qtool.formats.library_noise import quiet_libraries
    from qtool.passes.normalization.normalize import ConstantsToInitializers, InlineFunctions

    # Before IR version 4 every weight was also an input, and weights in half precision cannot be.
    model.ir_version = max(lowest_ir_version(model), _FREE_INITIALIZERS_VERSION)
    if precision.name == "bfloat16" and not keep_opset and model.opset_imports.get("", 0) < _BFLOAT16_OPSET:
        model = to_opset(model, _BFLOAT16_OPSET)
    with quiet_libraries():
        for graph_pass in (InlineFunctions(), ConstantsToInitializers()):
            model = graph_pass(model).model
    infer_shapes(model)
    _learn_types(model)
    return model


def _learn_types(model: ir.Model) -> None:
    """Gets the output types of onnxruntime's own operators from onnxruntime, since onnx does not infer them."""
    from qtool.runtime.graphs import open_graph, watching

    unknown = [value for node in model.graph for value in node.outputs if value.name and value.type is None]
    if not unknown or weights_nbytes(model) > LARGEST_MESSAGE_BYTES:
        return
    with suppress(RuntimeRefusedError):  # other errors in the graph are raised when it is opened
        with watching(model, [value.name or "" for value in unknown]) as graph, open_graph(graph, level="none") as one:
            found = {spec.name: spec.dtype for spec in one.outputs}
        for value in unknown:
            if found[value.name or ""] != np.dtype(np.object_):
                value.dtype = ir.DataType.from_numpy(found[value.name or ""])


def _out_of_range(model: ir.Model, name: HalfName, feeds: Feed, *, is_large: bool) -> Iterator[tuple[ir.Node, str]]:
    """Yields nodes with weights or values out of the type's range, and why they stay float."""
    highest = _LARGEST[name]
    limit = f"more than the {highest:.4g} of {name}"
    for value in model.graph.initializers.values():
        if value.const_value is None or value.dtype != ir.DataType.FLOAT:
            continue
        array = value.const_value.numpy()
        largest = _largest_finite(array)
        reason = None
        if largest > highest:
            reason = f"its constant {value.name} reaches {largest:.4g}, {limit}"
        elif array.size == 1 and largest > 0 and float(array.astype(HALF_DTYPES[name].numpy()).reshape(-1)[0]) == 0:
            reason = f"its constant {value.name} is {largest:.4g}, which is zero in {name}"
        if reason is not None:
            yield from ((node, reason) for node, _ in value.uses())
    if name == "bfloat16":
        return
    for value, largest in _largest_values(model, feeds, is_large=is_large).items():
        if largest > highest:
            reason = f"its value {value.name} reaches {largest:.4g}, {limit}"
            producer = value.producer()
            if producer is not None:
                yield producer, reason
            yield from ((node, reason) for node, _ in value.uses())


def _largest_finite(array: Array) -> float:
    """Returns the largest finite magnitude, with little extra memory."""
    flat, largest = array.reshape(-1), 0.0
    for begin in range(0, flat.size, _VALUES_AT_ONCE):
        part = np.abs(flat[begin : begin + _VALUES_AT_ONCE])
        largest = max(largest, float(part.max(initial=0, where=np.isfinite(part))))
    return largest


def _largest_values(model: ir.Model, feeds: Feed, *, is_large: bool) -> dict[ir.Value, float]:
    """Runs the graph and returns the largest finite magnitude of each float value."""
    values = [value for node in float_nodes(model) for value in node.outputs if value.dtype == ir.DataType.FLOAT]
    values = [value for value in values if value.name and (value.uses() or value.is_graph_output())]
    if not values:
        return {}
    outputs = list(model.graph.outputs)
    added: list[ir.Node] = []
    names = Names(model.graph)
    # Each directly after the node it observes, so that the tensor can be freed.
    for number, value in enumerate(values):
        magnitude = ir.node("Abs", [value], name=names.for_both(f"{_WATCHED}abs_{number}"))
        largest = ir.node("ReduceMax", [magnitude.outputs[0]], attributes={"keepdims": 0})
        largest.name = names.for_both(f"{_WATCHED}{number}")
        magnitude.outputs[0].name, largest.outputs[0].name = magnitude.name, largest.name
        largest.outputs[0].dtype, largest.outputs[0].shape = ir.DataType.FLOAT, ir.Shape([])
        producer = value.producer()
        if producer is not None:
            model.graph.insert_after(producer, [magnitude, largest])
            added += [magnitude, largest]
    model.graph.outputs[:] = [node.outputs[0] for node in added[1::2]]
    try:
        with _opened(model, is_large=is_large) as session:
            found = session.run(feeds)
    finally:
        model.graph.outputs[:] = outputs
        model.graph.remove(reversed(added), safe=True)
    return {value: float(largest) for value, largest in zip(values, found.values(), strict=True)}


@contextmanager
def _opened(model: ir.Model, *, is_large: bool, level: Level = "all") -> Iterator[Session | Parts]:
    """Opens the graph; a large one runs part by part, unoptimized, with the weights of one part in memory."""
    from qtool.runtime.graphs import open_graph
    from qtool.runtime.parts import Parts

    if is_large:
        yield Parts(model)
        return
    with open_graph(model, level=level) as session:
        yield session


def _for_float_kernels(model: ir.Model, plan: HalfPlan) -> ir.Model:
    """Returns ``model`` in a form that runs on float32 kernels, since onnxruntime's CPU has no others."""
    runnable = model.clone()
    planned = set(plan.nodes)
    nodes = tuple(twin for node, twin in zip(model.graph, runnable.graph, strict=True) if node in planned)
    twins = HalfPlan(dtype=plan.dtype, nodes=nodes, kept=())
    to_half(runnable, twins, taken=taken_types, half_io=False)
    compute_in_float(runnable, twins)
    return runnable


def _compared(
    model: ir.Model,
    name: HalfName,
    specs: Sequence[InputSpec],
    real: Feed | None,
    reference: Callable[[Feed], Mapping[str, Array]],
    progress: Progress,
    *,
    is_large: bool,
) -> tuple[ProgramComparison, ...]:
    # Higher levels may remove the Casts that round between float kernels.
    with _opened(model, level="basic" if name == "float16" else "none", is_large=is_large) as session:

        def converted(feed: Feed) -> Mapping[str, Array]:
            result = session.run({spec.name: feed[spec.name].astype(spec.dtype) for spec in session.inputs})
            return {
                name: array.astype(np.float32) if array.dtype == np.float16 else array for name, array in result.items()
            }

        return compare_programs(
            specs,
            real,
            reference=lambda feed: list(reference(feed).values()),
            converted=converted,
            progress=progress,
            largest_relative_difference=LARGEST_HALF_DIFFERENCE[name],
        )
