"""Lists the nodes of a graph, each with what it reads, makes and depends on, and how it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common

from qtool.backends.node_kernel import NodeKernel
from qtool.backends.registry import backend_named
from qtool.calib.image_layout import Layout
from qtool.errors import UsageError
from qtool.formats.onnx.onnx_file import OnnxFile
from qtool.formats.onnx.shape_inference import infer_shapes
from qtool.graph.constants import is_constant
from qtool.graph.specs import dtype_name
from qtool.image_layout import tensor_layout
from qtool.progress import Progress
from qtool.schemes import Scheme
from qtool.selection import NodeSelection
from qtool.workflows.diagnose.graph_facts import fix_free_dims
from qtool.workflows.diagnose.verify import onnx_path

# Larger attributes, tensors among them, are described.
_LONGEST_LIST = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRow:
    """An input or output of a node.

    Attributes:
        tensor: its name; empty for one that the node leaves out.
        dtype: its element type; None where it is not known.
        shape: its lengths, names for free ones and None for unknown ones; None where its rank is not known.
        layout: ``nchw`` or ``nhwc`` of a tensor of images, where the operators around it tell; None elsewhere.
        constant: whether it is stored in the model.
    """

    tensor: str
    dtype: str | None
    shape: tuple[int | str | None, ...] | None
    layout: Layout | None
    constant: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRow:
    """A node.

    Attributes:
        node: its name.
        operator: its type.
        domain: the domain of the operator; empty for the standard's.
        graph: the node whose branch or body it is in; None for the main graph.
        attributes: their values; large ones and graphs are described.
        inputs: what it reads, in order.
        outputs: what it makes, in order.
        depends_on: the nodes whose results it reads, in order, each once.
        runs_as: the kernel, where one was asked for and the node is in the main graph.
    """

    node: str
    operator: str
    domain: str
    graph: str | None
    attributes: Mapping[str, Any]
    inputs: tuple[TensorRow, ...]
    outputs: tuple[TensorRow, ...]
    depends_on: tuple[str, ...]
    runs_as: NodeKernel | None = None


def list_nodes(
    path: Path,
    *,
    include: Sequence[str],
    input_shapes: Mapping[str, tuple[int | str, ...]] | None,
    target: Scheme | None,
    progress: Progress,
) -> tuple[NodeRow, ...]:
    """Returns the nodes in the order of the graph; those of inner graphs follow the node that they are in.

    Args:
        path: an ONNX file.
        include: patterns of names or operators, as in ``NodeSelection``; empty for all nodes.
        input_shapes: lengths for free dimensions, with which shapes are inferred; they stay free without.
        target: the machine whose kernels to name; None for none.
        progress: receives the steps.

    Raises:
        FormatError: the file cannot be read.
        UsageError: a pattern matches nothing, or the kernels of the target cannot be asked here.
        InputError: it is not an ONNX graph.
        RuntimeRefusedError: onnxruntime does not load the model.
    """
    with progress.task("reading the model"):
        model = OnnxFile().read(onnx_path(path))
    common.NameFixPass()(model)
    kernels: Mapping[str, NodeKernel] = {}
    if target is not None:
        with progress.task("asking the runtime"):
            found = backend_named(target.backend).kernels(model)
        if found is None:
            raise UsageError(
                f"the kernels of {target.machine} cannot be asked here",
                fix="name a CPU target, such as --target auto, or `qtool verify --target` for its rules",
            )
        kernels = found
    if input_shapes is None:
        infer_shapes(model)
    else:
        fix_free_dims(model, input_shapes)
    nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
    selection = NodeSelection(include=tuple(include))
    selection.check(nodes)
    owners: dict[ir.Graph | None, str | None] = {
        graph: node.name for node in nodes for one in node.attributes.values() for graph in _graphs_in(one)
    }
    return tuple(
        replace(_row(node, owners.get(node.graph)), runs_as=kernels.get(node.name or ""))
        for node in nodes
        if selection.reason_to_skip(node) is None
    )


def _row(node: ir.Node, graph: str | None) -> NodeRow:
    makers = [value.producer() for value in node.inputs if value is not None]
    return NodeRow(
        node=node.name or "",
        operator=node.op_type,
        domain=node.domain,
        graph=graph,
        attributes={name: _plain(node.attributes[name]) for name in sorted(node.attributes)},
        inputs=tuple(map(_tensor, node.inputs)),
        outputs=tuple(map(_tensor, node.outputs)),
        depends_on=tuple(dict.fromkeys(maker.name or "" for maker in makers if maker is not None)),
    )


def _tensor(value: ir.Value | None) -> TensorRow:
    if value is None:
        return TensorRow(tensor="", dtype=None, shape=None, layout=None, constant=False)
    dims = None if value.shape is None else tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)
    return TensorRow(
        tensor=value.name or "",
        dtype=dtype_name(value),
        shape=dims,
        layout=None if is_constant(value) else tensor_layout(value),
        constant=is_constant(value),
    )


def _plain(attribute: ir.Attr) -> Any:
    """Returns an attribute as a value for JSON."""
    value = attribute.value
    if any(True for _ in _graphs_in(attribute)):
        return "a graph"
    if isinstance(value, ir.TensorProtocol):
        whole = value.numpy().tolist() if value.size <= _LONGEST_LIST else None
        return f"{value.dtype.name.lower()} {list(value.shape)}" if whole is None else whole
    if isinstance(value, list | tuple):
        return list(value) if len(value) <= _LONGEST_LIST else f"{len(value)} values, {value[0]} first"
    return value if isinstance(value, int | float | str) else str(value)


def _graphs_in(attribute: ir.Attr) -> tuple[ir.Graph, ...]:
    if attribute.type == ir.AttributeType.GRAPH:
        return (attribute.as_graph(),)
    return tuple(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else ()
