from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtool.analysis.lifetimes import memory_use
from qtool.graph.tensor_sizes import TensorSize

_PLANE = 8 * 8 * 4


def test_the_peak_agrees_with_counting_by_hand(facts: Any, network: Path) -> None:
    memory = facts("net.onnx", "--memory")["memory"]
    # While c2 is made, r1 and the image, which c3 still reads, are alive; while s is made, c2 and c3 are.
    assert memory["nodes"][2] == {"node": "n_c2", "bytes": (8 + 8 + 3) * _PLANE, "in_place_bytes": (8 + 8 + 3) * _PLANE}
    assert (memory["peak_node"], memory["peak_bytes"]) == ("n_s", 3 * 8 * _PLANE)
    assert memory["alive_at_peak"] == ["c2", "c3", "s"]
    # s can be written over c2, and r1 over c1.
    assert memory["in_place_peak_bytes"] == (8 + 8 + 3) * _PLANE
    taken = {entry["tensor"]: entry["takes_over"] for entry in memory["tensors"]}
    assert (taken["r1"], taken["s"], taken["f"], taken["c2"]) == ("c1", "c2", "p", None)


def test_lengths_given_on_the_command_line_count(facts: Any, network: Path) -> None:
    report = facts("net.onnx", "--memory", "--input-shape", "image=7,3,8,8")
    assert report["memory"]["peak_bytes"] == 7 * 3 * 8 * _PLANE
    assert report["sizes"] == {"lengths": {"batch": 7}, "measured": False}


def test_samples_give_the_sizes(facts: Any, network: Path, data: Path) -> None:
    report = facts("net.onnx", "--memory", "--data", "data.npz", "--batch-size", "5")
    assert report["memory"]["peak_bytes"] == 5 * 3 * 8 * _PLANE
    assert report["sizes"]["measured"]


def test_sizes_that_shape_inference_does_not_find_are_measured(facts: Any, save: Any) -> None:
    save(
        "odd.onnx",
        """odd (float[4] x) => (float[n] y) {
            places = NonZero (x)
            flat = Squeeze (places)
            y = Gather (x, flat)
        }""",
    )
    tensors = {entry["tensor"]: entry["size"] for entry in facts("odd.onnx", "--memory")["memory"]["tensors"]}
    assert tensors["places"] == {"dtype": "int64", "shape": [1, 4], "nbytes": 32}


def test_what_is_computed_from_constants_alone_is_no_activation(facts: Any, save: Any) -> None:
    save(
        "constant.onnx",
        "constant (float[1,2] x) => (float[1,3] y) { big = Neg (w)  y = MatMul (x, big) }",
        w=np.ones((2, 3), np.float32),
    )
    memory = facts("constant.onnx", "--memory")["memory"]
    assert [entry["tensor"] for entry in memory["tensors"]] == ["x", "y"]
    assert memory["peak_bytes"] == 8 + 12


def test_the_larger_branch_of_an_if_counts(facts: Any, save: Any) -> None:
    save(
        "branches.onnx",
        """branches (float[100] x, bool take) => (float[100] y) {
            y = If (take) <
                then_branch = small () => (float[100] a) { a = Neg (x) },
                else_branch = large () => (float[100] d) { b = Neg (x) c = Exp (x) d = Add (b, c) }
            >
        }""",
    )
    memory = facts("branches.onnx", "--memory")["memory"]
    assert memory["peak_bytes"] == 400 + 1 + 400 + 3 * 400


@st.composite
def _graphs(draw: st.DrawFn) -> tuple[ir.Graph, dict[str, TensorSize]]:
    source = ir.val("v0", ir.DataType.FLOAT, (draw(st.integers(1, 9)),))
    values, nodes = [source], []
    for number in range(1, draw(st.integers(2, 12))):
        chosen = draw(st.lists(st.sampled_from(values), min_size=1, max_size=3))
        node = ir.node(draw(st.sampled_from(["Conv", "Add", "Reshape"])), chosen, name=f"n{number}")
        node.outputs[0].name = f"v{number}"
        nodes.append(node)
        values.append(node.outputs[0])
    sizes = {value.name or "": TensorSize(ir.DataType.FLOAT, (draw(st.integers(1, 9)),)) for value in values}
    return ir.Graph([source], values[-1:], nodes=nodes, name="random"), sizes


@settings(max_examples=80, deadline=None)
@given(_graphs())
def test_what_is_alive_is_what_was_made_and_is_still_needed(drawn: tuple[ir.Graph, dict[str, TensorSize]]) -> None:
    graph, sizes = drawn
    nodes = list(graph)
    use = memory_use(graph, sizes)
    for place, node in enumerate(nodes):
        made = {graph.inputs[0], *(value for earlier in nodes[: place + 1] for value in earlier.outputs)}
        needed = {value for later in nodes[place:] for value in (*later.inputs, *later.outputs)}
        needed |= set(graph.outputs)
        alive = (made & needed) | ({graph.inputs[0]} if place == 0 else set())
        assert use.bytes_at[place] == sum(sizes[value.name or ""].nbytes for value in alive), node.name
    # A view needs no memory of its own, but holds what it looks at.
    if not any(node.op_type == "Reshape" for node in nodes):
        assert use.reused_peak_bytes <= use.peak_bytes


def test_a_table_names_the_node_at_the_peak(run: Any, network: Path) -> None:
    shown = run("inspect", "net.onnx", "--memory").out
    assert "n_s (5 of 8)" in shown
    assert "6,144 bytes" in shown


@pytest.mark.parametrize("option", ["--data", "--calib-stats"])
def test_data_without_an_analysis_is_refused(run: Any, network: Path, data: Path, option: str) -> None:
    result = run("inspect", "net.onnx", option, "data.npz")
    assert result.code == 2
    assert "--memory" in result.err
