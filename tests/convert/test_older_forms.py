"""Operators that had other inputs, attributes or names in older opsets get those, and compute the same."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import NodeProto, TensorProto, helper, numpy_helper

from qtool.formats.onnx.onnx_file import OnnxFile
from qtool.workflows.convert.opsets import to_opset

X = np.random.default_rng(1).standard_normal((2, 3, 8, 6)).astype(np.float32)
DOUBLED = np.array([1, 1, 2, 2], np.float32)


def save(nodes: Sequence[NodeProto], opset: int, **weights: np.ndarray) -> None:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape)],
        [helper.make_value_info("y", helper.make_tensor_type_proto(TensorProto.FLOAT, None))],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(onnx.shape_inference.infer_shapes(model), "m.onnx")


def output(name: str) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(name, options, providers=["CPUExecutionProvider"])
    value: np.ndarray = session.run(None, {"x": X})[0]
    return value


def check(run: Any, opset: int, *, kinds: set[str] | None = None) -> None:
    result = run("m.onnx", "--opset", str(opset), "-o", "old.onnx", "--force")
    assert result.exit_code == 0, result.output
    model = onnx.load("old.onnx")
    assert model.opset_import[0].version == opset
    if kinds is not None:
        assert {node.op_type for node in model.graph.node} >= kinds
    np.testing.assert_allclose(output("old.onnx"), output("m.onnx"), atol=1e-5)


RESIZE_11 = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}


@pytest.mark.parametrize("opset", [11, 12, 13, 17])
def test_resize_gets_the_inputs_that_were_required(run: Any, folder: Path, opset: int) -> None:
    save([helper.make_node("Resize", ["x", "", "s"], ["y"], **RESIZE_11)], 19, s=DOUBLED)
    check(run, opset)
    sizes = np.array([2, 3, 12, 9], np.int64)
    save([helper.make_node("Resize", ["x", "", "", "z"], ["y"], **RESIZE_11)], 19, z=sizes)
    check(run, opset)
    attributes = {**RESIZE_11, "axes": [3, -2], "antialias": 0, "keep_aspect_ratio_policy": "stretch"}
    save([helper.make_node("Resize", ["x", "", "s"], ["y"], **attributes)], 19, s=np.array([2, 1.5], np.float32))
    check(run, opset)


@pytest.mark.parametrize(("opset", "kind"), [(10, "Resize"), (9, "Upsample"), (8, "Upsample"), (7, "Upsample")])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resize_becomes_what_it_was_where_coordinates_are_the_old_ones(
    run: Any, folder: Path, mode: str, opset: int, kind: str
) -> None:
    old = {"mode": mode, "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    save([helper.make_node("Resize", ["x", "", "s"], ["y"], **old)], 18, s=DOUBLED)
    check(run, opset, kinds={kind})


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_upsample_keeps_its_coordinates_on_the_way_up(run: Any, folder: Path, mode: str, opset: int) -> None:
    save([helper.make_node("Upsample", ["x", "s"], ["y"], mode=mode)], 9, s=np.array([1, 1, 2, 3], np.float32))
    check(run, opset, kinds={"Resize"})


@pytest.mark.parametrize("mode", [None, "linear", "cubic", "nearest"])
def test_grid_sample_calls_its_modes_by_their_older_names(run: Any, folder: Path, mode: str | None) -> None:
    grid = np.random.default_rng(2).uniform(-0.9, 0.9, (2, 4, 5, 2)).astype(np.float32)
    attributes = {} if mode is None else {"mode": mode}
    save([helper.make_node("GridSample", ["x", "grid"], ["y"], **attributes)], 20, grid=grid)
    check(run, 16)


@settings(max_examples=25)
@given(
    kind=st.sampled_from(("Softmax", "LogSoftmax")),
    axis=st.integers(-4, 3),
    opset=st.integers(9, 12),
    length=st.integers(1, 4),
)
def test_softmax_along_any_axis_goes_down(
    kind: str, axis: int, opset: int, length: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shape = [length, 3, 2, length + 1]
    x = np.random.default_rng(length).standard_normal(shape).astype(np.float32)
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node(kind, ["a"], ["b"], axis=axis),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xyb"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    path = tmp_path_factory.mktemp("softmax") / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    old = path.with_name("old.onnx")
    OnnxFile().write(to_opset(OnnxFile().read(path), opset), old)
    OnnxFile().check(old)
    before, after = (
        ort.InferenceSession(str(one), providers=["CPUExecutionProvider"]).run(None, {"x": x}) for one in (path, old)
    )
    for expected, found in zip(before, after, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


NUMBER = np.float32
CASES = {
    "clip": (
        [helper.make_node("Clip", ["x", "low", "high"], ["y"])],
        {"low": NUMBER(-0.5), "high": NUMBER(0.7)},
    ),
    "clip above": ([helper.make_node("Clip", ["x", "", "high"], ["y"])], {"high": NUMBER(0.7)}),
    "pad": (
        [helper.make_node("Pad", ["x", "p", "v"], ["y"])],
        {"p": np.array([0, 0, 1, 2, 0, 0, 3, 0], np.int64), "v": NUMBER(1.5)},
    ),
    "pad of axes": (
        [helper.make_node("Pad", ["x", "p", "", "axes"], ["y"], mode="edge")],
        {"p": np.array([1, 2, 3, 0], np.int64), "axes": np.array([-1, 2], np.int64)},
    ),
    "slice": (
        [helper.make_node("Slice", ["x", "s", "e", "axes"], ["y"])],
        {"s": np.array([1, -4]), "e": np.array([3, 1 << 40]), "axes": np.array([1, -2])},
    ),
    "top k": ([helper.make_node("TopK", ["x", "k"], ["y", "places"], axis=-1)], {"k": np.array([2])}),
    "dropout": ([helper.make_node("Dropout", ["x", "r"], ["y"])], {"r": NUMBER(0.3)}),
    "product without bias": (
        [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Gemm", ["f", "w"], ["y"], transB=1)],
        {"w": np.random.default_rng(3).standard_normal((5, 144)).astype(np.float32)},
    ),
    "split": (
        [
            helper.make_node("Split", ["x"], ["a", "b", "c"], axis=-1, num_outputs=3),
            helper.make_node("Concat", ["c", "a", "b"], ["y"], axis=-2),
        ],
        {},
    ),
    "sum": (
        [helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)],
        {"axes": np.array([-1, 1])},
    ),
    "scatter": (
        [helper.make_node("ScatterElements", ["x", "i", "u"], ["y"], axis=3, reduction="none")],
        {"i": np.zeros((2, 3, 8, 1), np.int64), "u": np.ones((2, 3, 8, 1), np.float32)},
    ),
    "pool": (
        [helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2], dilations=[1, 1])],
        {},
    ),
}


@pytest.mark.parametrize("opset", [9, 11, 13])
@pytest.mark.parametrize("name", CASES)
def test_inputs_become_attributes_and_defaults_go(run: Any, folder: Path, name: str, opset: int) -> None:
    if name == "scatter" and opset == 9:
        pytest.skip("Scatter had another name then")
    nodes, weights = CASES[name]
    save(nodes, 19, **{key: np.asarray(value) for key, value in weights.items()})
    check(run, opset)


@pytest.mark.parametrize(
    ("node", "weights", "opset", "said"),
    [
        (helper.make_node("Resize", ["x", "", "s"], ["y"], mode="linear"), {"s": DOUBLED}, 10, "half_pixel"),
        (
            helper.make_node("Resize", ["x", "", "s"], ["y"], antialias=1, mode="linear"),
            {"s": DOUBLED},
            13,
            "antialias",
        ),
        (helper.make_node("Pad", ["x", "p"], ["y"], mode="wrap"), {"p": np.ones(8, np.int64)}, 13, "pads in a way"),
        (
            helper.make_node("Slice", ["x", "s", "e", "axes", "step"], ["y"]),
            {name: np.array([number]) for name, number in {"s": 0, "e": 6, "axes": 2, "step": 2}.items()},
            9,
            "steps other than 1",
        ),
    ],
)
def test_the_operator_is_named_and_not_the_source_blamed(
    run: Any, folder: Path, node: NodeProto, weights: dict[str, np.ndarray], opset: int, said: str
) -> None:
    node.name = "it"
    save([node], 19, **weights)
    result = run("m.onnx", "--opset", str(opset), "-o", "old.onnx")
    assert result.exit_code == 2
    assert f"{node.op_type} 'it'" in result.stderr
    assert said in result.stderr
    assert "damaged" not in result.stderr
    assert not Path("old.onnx").exists()
