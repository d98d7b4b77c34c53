"""Replaces an Einsum that is a matrix product by MatMul, which runs on integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from qtool.graph.names import Names
from qtool.passes.quantization.arithmetic import replace_node


class EinsumToMatMul(ir.passes.InPlacePass):
    """Replaces Einsum of two operands that sums over one letter by MatMul, between Transposes where they are needed.

    Letters that both operands and the result have in common stand in front, as in ``bhid,bhjd->bhij``; without any,
    the first operand may have several letters of its own, as in ``btd,df->btf``.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replaces each such node; other equations, and those with dots or repeated letters, are not changed."""
        modified = False
        names = Names(model.graph)
        for node in list(model.graph):
            product = _product(node) if node.op_type == "Einsum" and node.domain == "" else None
            if product is not None:
                _replace(model.graph, node, product, names)
                modified = True
        return ir.passes.PassResult(model, modified=modified)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Product:
    """The axes of operands and result, and those that MatMul needs: letters, in order."""

    left: str
    right: str
    result: str
    wanted_left: str
    wanted_right: str
    given_result: str


def _product(node: ir.Node) -> _Product | None:
    equation = node.attributes.get("equation")
    if equation is None or len(node.inputs) != 2 or any(value is None for value in node.inputs):
        return None
    operands, arrow, result = "".join(equation.as_string().split()).partition("->")
    left, comma, right = operands.partition(",")
    if not arrow or not comma or not all(term.isalpha() for term in (left, right, result)):
        return None
    if any(len(set(term)) != len(term) for term in (left, right, result)):
        return None
    shared = [letter for letter in result if letter in left and letter in right]
    summed = [letter for letter in left if letter in right and letter not in result]
    own_left = [letter for letter in result if letter in left and letter not in right]
    own_right = [letter for letter in result if letter in right and letter not in left]
    if len(summed) != 1 or len(own_right) != 1 or not own_left or (shared and len(own_left) != 1):
        return None
    wanted_left, wanted_right = "".join([*shared, *own_left, *summed]), "".join([*shared, *summed, *own_right])
    # A letter that only one operand has and the result has not would be summed over as well.
    if sorted(wanted_left) != sorted(left) or sorted(wanted_right) != sorted(right):
        return None
    return _Product(
        left=left,
        right=right,
        result=result,
        wanted_left=wanted_left,
        wanted_right=wanted_right,
        given_result="".join([*shared, *own_left, *own_right]),
    )


def _replace(graph: ir.Graph, node: ir.Node, product: _Product, names: Names) -> None:
    left, right = node.inputs
    if left is None or right is None:
        raise AssertionError("only called for nodes with two inputs")
    name, dtype = node.name, node.outputs[0].dtype

    def step(operator: str, inputs: Sequence[ir.Value], role: str, order: list[int] | None = None) -> ir.Value:
        attributes = {} if order is None else {"perm": order}
        new = ir.node(operator, list(inputs), name=name and names.for_node(f"{name}_{role}"), attributes=attributes)
        new.outputs[0].name = names.free(f"{node.outputs[0].name}_{role}")
        if dtype is not None:
            new.outputs[0].dtype = dtype
        graph.insert_before(node, new)
        return new.outputs[0]

    def ordered(value: ir.Value, present: str, wanted: str, role: str) -> ir.Value:
        if present == wanted:
            return value
        return step("Transpose", [value], role, [present.index(letter) for letter in wanted])

    factors = [
        ordered(left, product.left, product.wanted_left, "left"),
        ordered(right, product.right, product.wanted_right, "right"),
    ]
    if product.given_result == product.result:
        replace_node(graph, node, ir.node("MatMul", factors, name=name))
        return
    given = step("MatMul", factors, "product")
    order = [product.given_result.index(letter) for letter in product.result]
    replace_node(graph, node, ir.node("Transpose", [given], name=name, attributes={"perm": order}))
