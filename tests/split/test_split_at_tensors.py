from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from qtool.errors import InputError
from qtool.runtime.part_chain import PartChain
from qtool.runtime.session import Session


def _whole(path: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, feeds)


def _constants(path: Path) -> set[str]:
    return {tensor.name for tensor in onnx.load(path).graph.initializer}


def test_parts_in_a_row_do_what_the_whole_does(split: Any, network: Path, images: Path, run_by_hand: Any) -> None:
    report = split("net.onnx", "--at", "r1", "--at", "s", "--data", "data.npz")
    assert [(part["inputs"], part["outputs"]) for part in report["parts"]] == [
        (["image"], ["r1"]),
        (["r1"], ["s"]),
        (["s"], ["scores"]),
    ]
    assert [part["nodes"] for part in report["parts"]] == [2, 4, 3]
    assert report["difference"] <= 1e-6
    feeds = {"image": np.load(images)["image"][:3]}
    (expected,) = _whole(network, feeds)
    manifest = network.parent / "parts" / "net.split.json"
    np.testing.assert_array_equal(run_by_hand(manifest, feeds)["scores"], expected)
    np.testing.assert_array_equal(PartChain(manifest, level="none").run(feeds)["scores"], expected)
    np.testing.assert_array_equal(PartChain(manifest, level="none", one_at_a_time=True).run(feeds)["scores"], expected)


def test_weights_go_where_they_are_used_and_nowhere_else(split: Any, network: Path) -> None:
    split("net.onnx", "--at", "r1", "--at", "s")
    folder = network.parent / "parts"
    assert [_constants(folder / f"net.part{number}.onnx") for number in (1, 2, 3)] == [
        {"w1"},
        {"w2", "w3"},
        {"w4", "b4"},
    ]


def test_a_shared_weight_is_in_each_part_that_uses_it(split: Any, save: Any) -> None:
    save(
        "tied.onnx",
        "tied (float[2,4] x) => (float[2,4] y) { a = MatMul (x, w)  b = Tanh (a)  y = MatMul (b, w) }",
        w=np.eye(4, dtype=np.float32),
    )
    report = split("tied.onnx", "--at", "b")
    assert [part["inputs"] for part in report["parts"]] == [["x"], ["b"]]


def test_what_skips_a_part_is_handed_past_it(split: Any, network: Path, images: Path, run_by_hand: Any) -> None:
    report = split("net.onnx", "--at", "c2", "--at", "c3")
    assert report["parts"][0]["outputs"] == ["r1", "c2"]
    assert report["parts"][2]["inputs"] == ["r1", "c3"]
    feeds = {"image": np.load(images)["image"][:1]}
    found = run_by_hand(network.parent / "parts" / "net.split.json", feeds)["scores"]
    np.testing.assert_array_equal(found, _whole(network, feeds)[0])


def test_several_tensors_make_one_cut(split: Any, save: Any) -> None:
    save(
        "branches.onnx",
        """branches (float[4] x) => (float[4] y, float[4] b) {
            a = Tanh (x)  b = Sigmoid (x)  c = Exp (a)  d = Neg (b)  y = Add (c, d)
        }""",
    )
    report = split("branches.onnx", "--at", "a,d")
    assert [(part["nodes"], part["outputs"]) for part in report["parts"]] == [(3, ["a", "b", "d"]), (2, ["y"])]


def test_cuts_may_be_named_in_any_order(split: Any, network: Path) -> None:
    report = split("net.onnx", "--at", "s", "--at", "r1")
    assert [part["outputs"] for part in report["parts"]] == [["r1"], ["s"], ["scores"]]


def test_graphs_inside_nodes_get_what_they_read(split: Any, save: Any, run_by_hand: Any) -> None:
    path = save(
        "inner.onnx",
        """inner (float[3] x, bool take) => (float[3] y) {
            a = Tanh (x)
            b = Exp (a)
            y = If (take) <
                then_branch = one () => (float[3] p) { p = Add (a, k) },
                else_branch = two () => (float[3] q) { q = Mul (b, k) }
            >
        }""",
        k=np.array([1, 2, 3], np.float32),
    )
    report = split("inner.onnx", "--at", "b")
    assert report["parts"][1]["inputs"] == ["take", "a", "b"]
    for take in (True, False):
        feeds = {"x": np.array([0.5, -1, 2], np.float32), "take": np.array(take)}
        found = run_by_hand(path.parent / "parts" / "inner.split.json", feeds)["y"]
        np.testing.assert_array_equal(found, _whole(path, feeds)[0])


def test_outputs_that_need_no_node_are_passed_on(split: Any, save: Any, run_by_hand: Any) -> None:
    path = save(
        "passing.onnx",
        "passing (float[2] x) => (float[2] y, float[2] k, float[2] m) { a = Neg (x)  m = Exp (k)  y = Tanh (a) }",
        k=np.array([3, 4], np.float32),
    )
    split("passing.onnx", "--at", "a")
    feeds = {"x": np.array([1, 2], np.float32)}
    found = run_by_hand(path.parent / "parts" / "passing.split.json", feeds)
    np.testing.assert_array_equal(found["k"], [3, 4])
    np.testing.assert_array_equal(found["m"], np.exp(np.float32([3, 4])))


def test_types_that_nothing_declares_are_found_in_a_run(split: Any, save: Any) -> None:
    path = _with_custom_operator(save)
    report = split(path.name, "--at", "a")
    part = onnx.load(path.parent / "parts" / report["parts"][1]["file"])
    assert part.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def _with_custom_operator(save: Any) -> Path:
    path: Path = save("custom.onnx", "custom (float[2,4] x) => (float[2,4] y) { a = Tanh (x)  y = Tanh (a) }")
    model = onnx.load(path)
    model.graph.node[0].op_type, model.graph.node[0].domain = "QuickGelu", "com.microsoft"
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, path)
    return path


def test_large_weights_go_beside_their_part(network: Path) -> None:
    from qtool.formats.onnx.onnx_file import OnnxFile
    from qtool.splitting.groups import groups_at_tensors
    from qtool.splitting.part_models import part_model, parts_of

    model = OnnxFile().read(network)
    cut = next(value for node in model.graph for value in node.outputs if value.name == "r1")
    first, second = parts_of(model.graph, groups_at_tensors(model.graph, [[cut]]))
    file = OnnxFile(largest_message_bytes=1000)
    for name, part in (("first.onnx", first), ("second.onnx", second)):
        file.write(part_model(model, part), network.parent / name)
    # The first part has 864 bytes of weights.
    assert not (network.parent / "first.onnx.data").exists()
    assert (network.parent / "second.onnx.data").stat().st_size == 4 * 8 * 8 * 9


def test_models_that_fill_the_memory_run_one_part_at_a_time(
    split: Any, network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qtool.workflows.optimize.split.LARGEST_MESSAGE_BYTES", 1000)
    opened: list[str] = []

    def open_one(path: Path, **options: Any) -> Session:
        opened.append(path.name)
        return Session(path, **options)

    monkeypatch.setattr("qtool.runtime.part_chain.Session", open_one)
    report = split("net.onnx", "--at", "r1")
    assert report["difference"] <= 1e-6
    assert opened == ["net.part1.onnx", "net.part2.onnx"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--at TENSOR"),
        (("--at", "r1", "--at-integer-borders"), "exclude each other"),
        (("--at", "image"), "nothing in the graph computes"),
        (("--at", "scores"), "nothing is left after"),
        (("--at", "r1", "--at", "r1"), "nothing is left to compute before r1"),
        (("--at", "r9"), "r1"),
        (("--at-integer-borders",), "no border"),
    ],
)
def test_cuts_that_make_no_sense_are_refused(run: Any, network: Path, arguments: tuple[str, ...], words: str) -> None:
    result = run("split", "net.onnx", *arguments, "-o", "parts")
    assert result.code == 2, result.err
    assert words in result.err
    assert not (network.parent / "parts" / "net.split.json").exists()


def test_parts_that_differ_are_not_put_in_place(
    run: Any, network: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qtool.splitting import part_models

    right = part_models.part_model

    def wrong(model: Any, part: Any) -> Any:
        made = right(model, part)
        for node in made.graph:
            node.op_type = "Abs" if node.op_type == "Relu" else node.op_type
        return made

    monkeypatch.setattr("qtool.workflows.optimize.split.part_model", wrong)
    result = run("split", "net.onnx", "--at", "s", "-o", "parts", "--data", "data.npz")
    assert result.code == 2
    assert "another output 'scores'" in result.err
    assert not (network.parent / "parts").exists()


def test_what_exists_is_replaced_only_when_asked(run: Any, network: Path) -> None:
    assert run("split", "net.onnx", "--at", "r1", "--at", "s", "-o", "parts").code == 0
    again = run("split", "net.onnx", "--at", "r1", "-o", "parts")
    assert again.code == 2
    assert "--force" in again.err
    assert run("split", "net.onnx", "--at", "r1", "-o", "parts", "--force").code == 0
    # The third part of the first time is gone.
    assert sorted(path.name for path in (network.parent / "parts").iterdir()) == [
        "net.part1.onnx",
        "net.part2.onnx",
        "net.split.json",
    ]


def test_a_manifest_that_points_elsewhere_is_refused(split: Any, network: Path) -> None:
    split("net.onnx", "--at", "r1")
    manifest = network.parent / "parts" / "net.split.json"
    manifest.write_text(manifest.read_text(encoding="utf-8").replace("net.part1.onnx", "../net.onnx"), encoding="utf-8")
    with pytest.raises(InputError, match="not next to"):
        PartChain(manifest)
