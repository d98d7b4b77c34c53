"""Finds the differences between two ONNX models: interface, nodes, integers, scales and weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common

from qtool.fingerprint import graph_fingerprint
from qtool.formats.onnx.onnx_file import OnnxFile
from qtool.progress import Progress
from qtool.qdq.packed_integers import is_packed
from qtool.qdq.quantized_tensors import QuantizedTensor, quantized_tensors
from qtool.workflows.diagnose.verify import onnx_path

Kind: TypeAlias = Literal["interface", "operators", "nodes", "schemes", "scales", "weights", "other"]

# Inputs of nodes with packed integers that are scales or zero points.
_PACKED_PARAMETERS = (2, 3)
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One thing that differs.

    Attributes:
        kind: what it is about.
        name: of the input, output, operator, node or tensor.
        before: in the first model; None where it has no such thing.
        after: in the second one; None where it has no such thing.
        size: how much, for sorting; scales: the larger shift of an end of the range over the range's width; weights:
            ‖b − a‖ / ‖a‖; operators: nodes more or less; everything else: 1, or 2 for what is only in one of them.
    """

    kind: Kind
    name: str
    before: str | None
    after: str | None
    size: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffReport:
    """The differences between two models.

    Attributes:
        first: the one.
        second: the other.
        changes: by kind, and in each kind the largest first.
    """

    first: Path
    second: Path
    changes: tuple[Change, ...]

    @property
    def equal(self) -> bool:
        """Whether nothing differs; the models' names, producers and metadata do not count."""
        return not self.changes


@dataclass(frozen=True, slots=True)
class _Side:
    """One of the two models."""

    graph: ir.Graph
    tensors: Mapping[str, QuantizedTensor]
    owners: Mapping[int, str]
    fingerprint: str

    @staticmethod
    def of(path: Path) -> _Side:
        model = OnnxFile().read(onnx_path(path))
        fingerprint = graph_fingerprint(model)
        common.NameFixPass()(model)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        tensors = quantized_tensors(model)
        owners = {id(value): name for name, entry in tensors.items() for value in (entry.value, entry.dequantized)}
        return _Side(model.graph, tensors, owners, fingerprint)

    def name(self, value: ir.Value | None) -> str:
        """Returns the name of a value in the float model."""
        return "" if value is None else self.owners.get(id(value), value.name or "")

    def nodes(self) -> dict[str, ir.Node]:
        """Returns the nodes that compute, those in branches included, by name."""
        every = ir.traversal.RecursiveGraphIterator(self.graph)
        return {node.name or "": node for node in every if node.op_type not in _CONVERSIONS}

    def constants(self) -> dict[str, ir.Value]:
        """Returns stored tensors, integers of weights included and scales left out, by name in the float model."""
        found = {}
        for value in self.graph.initializers.values():
            uses = list(value.uses())
            if value.const_value is not None and not (uses and all(_is_parameter(use.node, use.idx) for use in uses)):
                found[self.name(value)] = value
        return found

    def array(self, name: str, value: ir.Value) -> npt.NDArray[Any]:
        """Returns the dequantized values of a stored tensor."""
        floats = self.tensors[name].floats() if name in self.tensors else None
        if floats is None and value.const_value is not None:
            return value.const_value.numpy()
        return np.zeros(0) if floats is None else floats

    def place(self, name: str, value: ir.Value) -> tuple[str, int] | None:
        """Returns the first node that reads a stored tensor, and at which input: tensors may have other names."""
        read = self.tensors[name].dequantized if name in self.tensors else value
        uses = sorted((use.node.name or "", use.idx) for use in read.uses())
        return uses[0] if uses else None


def diff(first: Path, second: Path, progress: Progress) -> DiffReport:
    """Compares two models, float or quantized, tensor by tensor.

    Raises:
        FormatError: a file cannot be read.
        InputError: a file is not an ONNX graph.
    """
    sides = []
    with progress.task("reading the models", 2) as advance:
        for path in (first, second):
            sides.append(_Side.of(path))
            advance(1)
    a, b = sides
    found: list[Change] = []
    with progress.task("comparing", len(_PARTS)) as advance:
        for part in _PARTS:
            found += sorted(part(a, b), key=lambda change: (-change.size, change.name))
            advance(1)
    if not found and a.fingerprint != b.fingerprint:
        found.append(
            Change(kind="other", name="graph", before="", after="names of values, or order of nodes", size=1.0)
        )
    return DiffReport(first=first, second=second, changes=tuple(found))


def _interface(a: _Side, b: _Side) -> Iterator[Change]:
    def described(side: _Side) -> dict[str, str]:
        ends = (("input", side.graph.inputs), ("output", side.graph.outputs))
        return {f"{role} {value.name}": f"{value.dtype} {value.shape}" for role, values in ends for value in values}

    yield from _unequal("interface", described(a), described(b))


def _operators(a: _Side, b: _Side) -> Iterator[Change]:
    counts = [Counter(node.op_type for node in ir.traversal.RecursiveGraphIterator(side.graph)) for side in (a, b)]
    for operator in counts[0].keys() | counts[1].keys():
        before, after = counts[0][operator], counts[1][operator]
        if before != after:
            yield Change(
                kind="operators", name=operator, before=str(before), after=str(after), size=float(abs(after - before))
            )


def _nodes(a: _Side, b: _Side) -> Iterator[Change]:
    def described(side: _Side) -> dict[str, str]:
        return {name: _described(side, node) for name, node in side.nodes().items()}

    yield from _unequal("nodes", described(a), described(b))


def _described(side: _Side, node: ir.Node) -> str:
    # Constants are compared by their values, not by their names.
    read = _inputs(side, node)
    inputs = ["·" if value is not None and value.is_initializer() else side.name(value) for value in read]
    attributes = [
        f"{name}={_attribute(attribute)}"
        for name, attribute in sorted(node.attributes.items())
        if attribute.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    ]
    return f"{node.op_type}({', '.join(inputs)}) {' '.join(attributes)}".strip()


def _inputs(side: _Side, node: ir.Node) -> Iterator[ir.Value | None]:
    """Yields the inputs of a node, with stored integers instead of their dequantized form."""
    for value in node.inputs:
        name = None if value is None else side.owners.get(id(value))
        yield value if name is None else side.tensors[name].value


def _attribute(attribute: Any) -> str:
    if attribute.type == ir.AttributeType.TENSOR:
        return str(attribute.as_tensor().numpy().tolist())
    return str(attribute.value)


def _schemes(a: _Side, b: _Side) -> Iterator[Change]:
    names = [{name for name, tensor in side.tensors.items() if tensor.role != "bias"} for side in (a, b)]
    for name in names[0] | names[1]:
        before, after = (
            side.tensors[name].description if name in known else "float"
            for side, known in zip((a, b), names, strict=True)
        )
        if before != after:
            size = 2.0 if "float" in (before, after) else 1.0
            yield Change(kind="schemes", name=name, before=before, after=after, size=size)


def _scales(a: _Side, b: _Side) -> Iterator[Change]:
    for name in a.tensors.keys() & b.tensors.keys():
        one, two = a.tensors[name], b.tensors[name]
        if one.role == "bias" or one.description != two.description:
            continue  # those of biases follow from the others
        if np.array_equal(one.scale, two.scale) and np.array_equal(one.zero_point, two.zero_point):
            continue
        yield Change(
            kind="scales",
            name=name,
            before=f"{one.low:.5g} to {one.high:.5g}",
            after=f"{two.low:.5g} to {two.high:.5g}",
            size=_shift(one, two),
        )


def _shift(one: QuantizedTensor, two: QuantizedTensor) -> float:
    """Returns the largest shift of an end of the range of any channel, over the width of that range."""
    # Scales of blocks may be negative.
    ends = [np.sort(np.stack(side.ends()), axis=0) for side in (one, two)]
    width = np.maximum(ends[0][1] - ends[0][0], np.finfo(np.float64).tiny)
    return float(max((np.abs(ends[1][end] - ends[0][end]) / width).max() for end in (0, 1)))


def _weights(a: _Side, b: _Side) -> Iterator[Change]:
    before, after = a.constants(), b.constants()
    places = {b.place(name, value): name for name, value in after.items() if name not in before}
    partners = {name: name if name in after else places.get(a.place(name, value)) for name, value in before.items()}
    for name, value in before.items():
        partner = partners[name]
        one = a.array(name, value)
        if partner is None:
            yield Change(kind="weights", name=name, before=_shape(one), after=None, size=2.0)
            continue
        two = b.array(partner, after[partner])
        if one.shape != two.shape:
            yield Change(kind="weights", name=name, before=_shape(one), after=_shape(two), size=2.0)
        elif (change := _relative_change(one, two)) > 0:
            yield Change(
                kind="weights", name=name, before=f"norm {_norm(one):.5g}", after=f"norm {_norm(two):.5g}", size=change
            )
    for name in after.keys() - {partner for partner in partners.values() if partner is not None}:
        yield Change(kind="weights", name=name, before=None, after=_shape(b.array(name, after[name])), size=2.0)


def _is_parameter(node: ir.Node, index: int) -> bool:
    """Returns whether an input of a node is a scale, a zero point, or the shape of packed integers."""
    if node.op_type == "Reshape":
        return index == 1 and any(is_packed(reader.node) for reader in node.outputs[0].uses())
    return (node.op_type in _CONVERSIONS and index > 0) or (is_packed(node) and index in _PACKED_PARAMETERS)


def _relative_change(one: npt.NDArray[Any], two: npt.NDArray[Any]) -> float:
    """Returns ‖two − one‖ / ‖one‖; infinite where there was nothing, and 0 only where all is the same."""
    if np.array_equal(one, two):
        return 0.0
    if one.dtype.kind not in "fiub" and one.dtype.name != "bfloat16":
        return 1.0
    difference = two.astype(np.float64) - one.astype(np.float64)
    size, norm = float(np.linalg.norm(difference.reshape(-1))), _norm(one)
    if not np.isfinite(size):
        return float("inf")
    # A change below the precision of the norm still counts.
    return max(size / norm, np.finfo(np.float64).tiny) if norm else float("inf")


def _norm(array: npt.NDArray[Any]) -> float:
    if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
        return 0.0
    return float(np.linalg.norm(array.astype(np.float64).reshape(-1)))


def _shape(array: npt.NDArray[Any]) -> str:
    return f"{array.dtype} {'×'.join(map(str, array.shape)) or 'scalar'}"


def _unequal(kind: Kind, before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[Change]:
    for name in before.keys() | after.keys():
        one, two = before.get(name), after.get(name)
        if one != two:
            yield Change(kind=kind, name=name, before=one, after=two, size=2.0 if None in (one, two) else 1.0)


_PARTS = (_interface, _operators, _nodes, _schemes, _scales, _weights)
