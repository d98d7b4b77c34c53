"""Finds errors that make a graph impossible to run: cycles, undefined or duplicate values, wrong types.

Source of the rules: https://onnx.ai/onnx/repo-docs/IR.html.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache

import onnx
import onnx_ir as ir

# Types that operators take in the same places, except for gaps that runtimes fill.
_FAMILIES: Mapping[str, str] = {
    **dict.fromkeys(("tensor(float)", "tensor(double)", "tensor(float16)", "tensor(bfloat16)"), "floating-point"),
    **dict.fromkeys((f"tensor({sign}int{bits})" for sign in ("", "u") for bits in (2, 4, 8, 16, 32, 64)), "integer"),
    "tensor(bool)": "boolean",
    "tensor(string)": "text",
}
# onnxruntime's own operators that carry no domain, and those of the standard that it has in every opset.
ONNXRUNTIME_OPERATORS = frozenset(
    {
        *("Affine", "Crop", "DynamicSlice", "GRUUnit", "GivenTensorFill", "ImageScaler", "LayerNormalization"),
        *("MemcpyFromHost", "MemcpyToHost", "ParametricSoftplus", "RotaryEmbedding", "Scale", "ScaledTanh"),
        *("SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization", "ThresholdedRelu"),
    }
)
_NEWEST = 1 << 30


def broken_names(graph: onnx.GraphProto) -> str | None:
    """Returns what is wrong with the names of values, in subgraphs too; None where each is given once."""
    made: set[str] = set()
    for value in graph.input:
        if value.name in made:
            return f"two inputs are called '{value.name}'"
        made.add(value.name)
    made.update(tensor.name for tensor in graph.initializer)
    for node in graph.node:
        for name in filter(None, node.output):
            if name in made:
                return f"'{name}' is made twice, the second time by {_called(node.op_type, node.name)}"
            made.add(name)
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                problem = broken_names(inner)
                if problem is not None:
                    return problem
    return None


def circular_functions(model: ir.Model) -> str | None:
    """Returns an error for functions that call each other in a cycle; None where there are none."""
    calls = {
        name: {node.op_identifier() for node in function.all_nodes()} & set(model.functions)
        for name, function in model.functions.items()
    }
    while calls:
        ends = {name for name, called in calls.items() if not called & set(calls)}
        if not ends:
            return f"its functions call each other in a circle ({next(iter(calls))[1]})"
        calls = {name: called for name, called in calls.items() if name not in ends}
    return None


def broken_graph(model: ir.Model) -> str | None:
    """Returns the first thing that no runtime could do something with, in words; None where there is nothing."""
    opset = model.opset_imports.get("", _NEWEST)
    known = {function.name for function in model.functions.values() if function.domain == ""}
    for node in model.graph.all_nodes():
        problem = _missing_input(node)
        if problem is None and node.domain == "" and node.op_type not in known:
            problem = _unknown_operator(node, opset) or _wrong_type(node, opset)
        if problem is not None:
            return problem
    for graph in (graph for graph in model.graphs() if isinstance(graph, ir.Graph)):
        problem = _missing_output(graph) or _circle(graph)
        if problem is not None:
            return problem
    return None


def _missing_input(node: ir.Node) -> str | None:
    for value in node.inputs:
        if value is not None and _comes_from_nowhere(value):
            return f"{_of(node)} reads '{value.name}', which nothing makes"
    return None


def _missing_output(graph: ir.Graph) -> str | None:
    for value in graph.outputs:
        if _comes_from_nowhere(value):
            return f"it returns '{value.name}', which nothing makes"
    return None


def _comes_from_nowhere(value: ir.Value) -> bool:
    return value.producer() is None and not value.is_graph_input() and not value.is_initializer()


def _unknown_operator(node: ir.Node, opset: int) -> str | None:
    first = _first_opset(node.op_type)
    if node.op_type in ONNXRUNTIME_OPERATORS or (first is not None and first <= opset):
        return None
    if first is None:
        return f"{_of(node)} is no operator of the standard, and names no domain that it could come from"
    return f"{_of(node)} is of opset {first}, and the model of opset {opset}"


def _wrong_type(node: ir.Node, opset: int) -> str | None:
    """Searches for inputs that an operator does not take, or not beside each other."""
    formal, allowed = _types(node.op_type, opset)
    bound: dict[str, str] = {}
    for place, value in enumerate(node.inputs):
        if value is None or value.dtype is None or not formal or not isinstance(value.type, ir.TensorType):
            continue
        parameter, homogeneous = formal[min(place, len(formal) - 1)]
        found = f"tensor({_spelled(value.dtype)})"
        takes = allowed.get(parameter, frozenset({parameter}))
        if found in _FAMILIES and not {_FAMILIES.get(kind) for kind in takes} & {_FAMILIES[found], None}:
            return f"{_of(node)} takes no {_FAMILIES[found]} tensor such as '{value.name}' as input {place}"
        if parameter in allowed and homogeneous and bound.setdefault(parameter, found) != found:
            types = f"{bound[parameter][7:-1]} and {found[7:-1]} ('{value.name}')"
            return f"{_of(node)} reads {types}, which do not go together"
    return None


@cache
def _types(op_type: str, opset: int) -> tuple[tuple[tuple[str, bool], ...], Mapping[str, frozenset[str]]]:
    """Returns the type of each input of an operator, with whether all that share it are alike, and what it may be."""
    opset = min(opset, onnx.defs.onnx_opset_version())
    if not onnx.defs.has(op_type, opset):
        return (), {}
    schema = onnx.defs.get_schema(op_type, opset)
    formal = tuple((parameter.type_str, parameter.is_homogeneous) for parameter in schema.inputs)
    allowed = {c.type_param_str: frozenset(c.allowed_type_strs) for c in schema.type_constraints}
    return formal, allowed


@cache
def _first_opset(op_type: str) -> int | None:
    """Returns the first opset with an operator of the standard; None where there is none."""
    return _first_opsets().get(op_type)


@cache
def _first_opsets() -> Mapping[str, int]:
    first: dict[str, int] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            first[schema.name] = min(first.get(schema.name, _NEWEST), schema.since_version)
    return first


def _circle(graph: ir.Graph) -> str | None:
    """Searches for nodes that need each other's results."""
    before = {node: set(_makers(node, graph)) for node in graph}
    readers: dict[ir.Node, list[ir.Node]] = {node: [] for node in before}
    for node, producers in before.items():
        for producer in producers:
            readers[producer].append(node)
    waiting = {node: len(producers) for node, producers in before.items()}
    ready = [node for node, count in waiting.items() if not count]
    while ready:
        done = ready.pop()
        del waiting[done]
        for reader in readers[done]:
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    if not waiting:
        return None
    way = [next(iter(waiting))]
    while way.count(way[-1]) == 1:
        way.append(next(producer for producer in before[way[-1]] if producer in waiting))
    start = way.index(way[-1])
    return f"its nodes go in a circle: {' needs '.join(_of(node) for node in way[start:][:4])}"


def _makers(node: ir.Node, graph: ir.Graph) -> Iterator[ir.Node]:
    """Yields the nodes of ``graph`` that make what a node reads, in its subgraphs too."""
    inner = [node]
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            inner += ir.traversal.RecursiveGraphIterator(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            for branch in attribute.as_graphs():
                inner += ir.traversal.RecursiveGraphIterator(branch)
    for reader in inner:
        for value in reader.inputs:
            producer = None if value is None else value.producer()
            if producer is not None and producer.graph is graph:
                yield producer


def _of(node: ir.Node) -> str:
    return _called(node.op_type, node.name)


def _called(op_type: str, name: str | None) -> str:
    return f"{op_type} '{name}'" if name else op_type


def _spelled(dtype: ir.DataType) -> str:
    """Returns a type as operator schemas spell it."""
    return "double" if dtype == ir.DataType.DOUBLE else dtype.name.lower()
