from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import PIL.Image
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from qtool.calib.dataset import open_dataset
from qtool.calib.datasets.images import Preprocess
from qtool.cli.app import app
from qtool.runtime.session import Session

FREE: Sequence[Any] = ("batch", "a", "b", "c")
KERNEL = np.ones((2, 3, 3, 3), np.float32)


def network(path: Path, dims: Sequence[Any], *nodes: onnx.NodeProto) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(KERNEL, "w"), numpy_helper.from_array(np.float32(2), "two")],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


def node(kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, [output], **attributes)


CASES: dict[str, tuple[Sequence[Any], list[onnx.NodeProto], dict[str, str]]] = {
    "a layer takes channels first": (FREE, [node("Conv", ["image", "w"], "y")], {"image": "nchw"}),
    "a transpose shows that they come last": (
        FREE,
        [node("Transpose", ["image"], "t", perm=[0, 3, 1, 2]), node("Conv", ["t", "w"], "y")],
        {"image": "nhwc"},
    ),
    "scaling before says nothing": (
        FREE,
        [
            node("Mul", ["image", "two"], "m"),
            node("Transpose", ["m"], "t", perm=[0, 3, 1, 2]),
            node("Sub", ["t", "two"], "s"),
            node("Conv", ["s", "w"], "y"),
        ],
        {"image": "nhwc"},
    ),
    "two transposes cancel": (
        FREE,
        [
            node("Transpose", ["image"], "t", perm=[0, 3, 1, 2]),
            node("Transpose", ["t"], "u", perm=[0, 2, 3, 1]),
            node("Conv", ["u", "w"], "y"),
        ],
        {"image": "nchw"},
    ),
    "lengths tell where no layer does": (["batch", 8, 8, 3], [node("Relu", ["image"], "y")], {"image": "nhwc"}),
    "nothing tells": (FREE, [node("Relu", ["image"], "y")], {}),
    "the graph is right and the lengths mislead": (
        ["batch", 3, 8, 3],
        [node("Transpose", ["image"], "t", perm=[0, 3, 1, 2]), node("Conv", ["t", "w"], "y")],
        {"image": "nhwc"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_graph_shows_where_channels_are(facts: Any, tmp_path: Path, case: str) -> None:
    dims, nodes, expected = CASES[case]
    path = network(tmp_path / "m.onnx", dims, *nodes)
    assert facts(str(path))["graph"]["layouts"] == expected
    shown = CliRunner().invoke(app, ["inspect", str(path)]).output
    assert ("NHWC" in shown) == ("nhwc" in expected.values())
    assert ("NCHW" in shown) == ("nchw" in expected.values())


@pytest.mark.parametrize("last", [False, True])
def test_images_take_the_layout_of_a_graph_whose_lengths_hide_it(tmp_path: Path, last: bool) -> None:
    moved = [node("Transpose", ["image"], "t", perm=[0, 3, 1, 2])] if last else []
    path = network(tmp_path / "m.onnx", FREE, *moved, node("Conv", ["t" if last else "image", "w"], "y"))
    (tmp_path / "photos").mkdir()
    PIL.Image.new("RGB", (8, 6), (10, 20, 30)).save(tmp_path / "photos" / "one.png")
    dataset = open_dataset(str(tmp_path / "photos"), preprocess=Preprocess.parse("0-1,size=6x8"))
    session = Session(path)
    (feed,) = dataset.feeds(session.inputs, batch_size=1)
    assert feed["image"].shape == ((1, 6, 8, 3) if last else (1, 3, 6, 8))
    assert session.run(feed)["y"].shape == (1, 2, 4, 6)
