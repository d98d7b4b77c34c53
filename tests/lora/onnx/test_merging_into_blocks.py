"""Adapters in weights that are integers in blocks: MatMulNBits, GatherBlockQuantized, DequantizeLinear."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import peft
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from qtool.lora.onnx.graph_merging import add_to_graph
from qtool.lora.onnx.graph_search import GraphSearch
from qtool.qdq.packed_integers import is_packed, packed_integers
from qtool.qdq.stored_integers import IntegerRules
from tests.lora.conftest import invoke, randomize
from tests.lora.graphs import export, merged_module, run, stored_arrays

Array = np.ndarray[Any, np.dtype[Any]]
IDS = torch.randint(0, 600, (4, 16), generator=torch.Generator().manual_seed(3))


class Speaker(nn.Module):
    """An embedding, two layers and a head, which is the embedding or not."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.embed_tokens, self.up, self.down = nn.Embedding(600, 64), nn.Linear(64, 96), nn.Linear(96, 64, bias=False)
        self.lm_head = nn.Linear(64, 600, bias=False)
        if tied:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.embed_tokens(x)
        output: torch.Tensor = self.lm_head(hidden + self.down(torch.tanh(self.up(hidden))))
        return output


class Case:
    """A module, an adapter for it, and the graphs of both."""

    def __init__(self, folder: Path, targets: list[str], *, tied: bool, dynamo: bool) -> None:
        self.folder = folder
        module = Speaker(tied=tied).eval()
        # A change far smaller than a step of four bits, as that of real adapters.
        config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=targets)
        live = peft.get_peft_model(copy.deepcopy(module), config)
        randomize((value for value in live.parameters() if value.requires_grad), 2, 0.12)
        live.eval().save_pretrained(folder / "adapter")
        torch.save(module.state_dict(), folder / "base.pth")
        self.adapter, self.base = folder / "adapter", folder / "base.pth"
        self.expected = live(IDS).detach().numpy()
        self.before = module(IDS).detach().numpy()
        self.float = export(module, IDS, folder / "float.onnx", dynamo=dynamo)
        state = live.merge_and_unload().state_dict()
        if tied and "lm_head" not in targets:
            module = merged_module(Speaker(tied=False), state)
        else:
            module = merged_module(module, state)
        self.right = export(module, IDS, folder / "right.onnx", dynamo=dynamo)

    def quantized(self, source: Path, *options: object) -> Path:
        output = source.with_suffix(".blocks.onnx")
        result = invoke("quantize", source, "--scheme", "weights", *options, "-o", output, "--force")
        assert result.exit_code == 0, result.output
        return output

    def merged(self, source: Path, *options: object) -> Path:
        output = source.with_suffix(".merged.onnx")
        result = invoke("merge-lora", source, self.adapter, *options, "-o", output, "--force")
        assert result.exit_code == 0, result.output
        return output

    def decibels(self, path: Path) -> float:
        return decibels(self.expected, run(path, IDS))


def decibels(expected: Array, got: Array) -> float:
    return float(10 * np.log10((expected**2).sum() / ((expected - got) ** 2).sum()))


FORMS = [
    (8, "nbits", "--weights-symmetric"),
    (4, "nbits", "--weights-symmetric"),
    (4, "nbits", "--weights-asymmetric"),
    (2, "nbits", "--weights-asymmetric"),
    (4, "qdq", "--weights-symmetric"),
    (8, "qdq", "--weights-asymmetric"),
]


@pytest.mark.parametrize(
    "dynamo", [pytest.param(False, id="old"), pytest.param(True, id="dynamo", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(("bits", "form", "symmetry"), FORMS)
def test_merging_into_blocks_is_as_good_as_quantizing_afterwards(
    tmp_path: Path, bits: int, form: str, symmetry: str, dynamo: bool
) -> None:
    case = Case(tmp_path, ["up", "down"], tied=False, dynamo=dynamo)
    options = ("--bits", bits, "--block-size", 32, "--format", form, symmetry)
    base = case.quantized(case.float, *options)
    merged = case.merged(base, "--base-weights", case.base)
    # Both are rounded in the same way from the same weights.
    assert case.decibels(merged) == pytest.approx(case.decibels(case.quantized(case.right, *options)), abs=0.5)
    assert case.decibels(merged) > case.decibels(base)
    kinds = [node.op_type for node in onnx.load(base).graph.node]
    assert [node.op_type for node in onnx.load(merged).graph.node] == kinds


@pytest.mark.parametrize("targets", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
@pytest.mark.parametrize("tied", [False, True], ids=["apart", "tied"])
def test_tables_and_heads_merge(tmp_path: Path, targets: list[str], tied: bool) -> None:
    case = Case(tmp_path, targets, tied=tied, dynamo=False)
    base = case.quantized(case.float, "--bits", 4, "--weights-asymmetric")
    merged = case.merged(base, "--base-weights", case.base)
    before = decibels(case.before, run(base, IDS))
    assert case.decibels(merged) > before - 2
    large = [array for array in stored_arrays(merged).values() if array.dtype == np.uint8 and len(array) == 600]
    # Two adapters, or one, make two tensors of what was one.
    assert sum(array.nbytes >= 600 * 32 for array in large) == 2


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_table_that_changes_with_its_head_stays_one_tensor(tmp_path: Path, symmetric: bool) -> None:
    weight = Speaker(tied=True).embed_tokens.weight.detach().double().numpy()
    text = "net (int64[n] ids) => (float[n,600] y) { x = Gather (table, ids) y = Gemm <transB = 1> (x, table) }"
    proto = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 21]> ' + text)
    proto.graph.initializer.append(numpy_helper.from_array(weight.astype(np.float32), "table"))
    onnx.save(proto, tmp_path / "tied.onnx")
    symmetry = "--weights-symmetric" if symmetric else "--weights-asymmetric"
    result = invoke("quantize", tmp_path / "tied.onnx", "--scheme", "weights", symmetry, "-o", tmp_path / "base.onnx")
    assert result.exit_code == 0, result.output
    model = ir.load(tmp_path / "base.onnx")
    (place,) = GraphSearch(model, {"embed_tokens.weight": weight.astype(np.float32)}, {}).places("embed_tokens.weight")
    delta = 0.05 * np.random.default_rng(0).standard_normal(weight.shape)
    add_to_graph(place, delta, "embed_tokens.weight", IntegerRules(fits_blocks=True), weight=weight + delta)
    nodes = {node.op_type: node for node in model.graph if is_packed(node)}
    found = [packed_integers(nodes[kind]) for kind in ("GatherBlockQuantized", "MatMulNBits")]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0].value is found[1].value
    np.testing.assert_array_equal(found[0].floats(), found[1].floats())
    assert np.linalg.norm(found[0].floats() - weight - delta) < 0.15 * np.linalg.norm(weight)


def test_what_the_adapter_does_not_change_stays_bit_by_bit(tmp_path: Path) -> None:
    case = Case(tmp_path, ["down"], tied=True, dynamo=False)
    base = case.quantized(case.float, "--bits", 4)
    before, after = stored_arrays(base), stored_arrays(case.merged(base, "--base-weights", case.base))
    assert before.keys() == after.keys()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert {name.rpartition("_")[2] for name in changed} == {"quantized", "scales", "points"}
    assert len({name.removesuffix("_zero_points").rpartition("_")[0] for name in changed}) <= 2
    assert len(changed) == 3


def test_the_old_integers_serve_where_no_checkpoint_is_given(tmp_path: Path) -> None:
    case = Case(tmp_path, ["down"], tied=False, dynamo=True)
    base = case.quantized(case.float, "--bits", 8)
    assert case.decibels(case.merged(base)) > case.decibels(base) + 3


def test_other_block_sizes_and_bits_stay_as_they_are(tmp_path: Path) -> None:
    case = Case(tmp_path, ["down"], tied=False, dynamo=False)
    base = case.quantized(case.float, "--bits", 4, "--block-size", 16, "--weights-symmetric")
    merged = case.merged(base, "--base-weights", case.base)
    nodes = [node for node in ir.load(merged).graph if is_packed(node)]
    assert len(nodes) == 4
    for node in nodes:
        assert node.attributes["bits"].as_int() == 4
        assert node.attributes["block_size"].as_int() == 16
        assert len(node.inputs) == 3 or node.inputs[3] is None
    down = next(node for node in nodes if node.op_type == "MatMulNBits" and node.attributes["K"].as_int() == 96)
    found = packed_integers(down)
    assert found is not None
    state = torch.load(case.base, weights_only=True)["down.weight"].double().numpy()
    adapter = peft.PeftModel.from_pretrained(Speaker(tied=False), case.adapter).merge_and_unload()
    wanted = adapter.down.weight.detach().double().numpy()
    floats = found.floats()
    # No value is farther than half a step, but for what is clipped to the fitted range.
    step = np.repeat(np.abs(found.scale), 16, axis=1)
    assert np.mean(np.abs(floats - wanted) <= 0.5001 * step) > 0.95
    assert np.linalg.norm(floats - wanted) < np.linalg.norm(floats - state)


def test_scales_can_be_kept(tmp_path: Path) -> None:
    case = Case(tmp_path, ["down"], tied=False, dynamo=False)
    base = case.quantized(case.float, "--bits", 4)
    before = stored_arrays(base)
    after = stored_arrays(case.merged(base, "--base-weights", case.base, "--scales", "keep"))
    assert all(np.array_equal(before[name], after[name]) for name in before if "scales" in name)
    assert any(not np.array_equal(before[name], after[name]) for name in before if "quantized" in name)


def test_forms_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    case = Case(tmp_path, ["down"], tied=False, dynamo=False)
    base = case.quantized(case.float, "--bits", 4)
    model = onnx.load(base)
    node = next(node for node in model.graph.node if node.op_type == "MatMulNBits" and len(node.input) == 4)
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            inputs = next(attribute.i for attribute in node.attribute if attribute.name == "K")
            order = np.arange(inputs, dtype=np.int32) // 32
            model.graph.initializer.append(numpy_helper.from_array(order, f"order_of_{node.name}"))
            del node.input[4:]
            node.input.append(f"order_of_{node.name}")
    onnx.save(model, base)
    result = invoke("merge-lora", base, case.adapter, "--base-weights", case.base, "-o", tmp_path / "m.onnx")
    assert result.exit_code == 2
    assert "g_idx" in result.stderr
    assert not (tmp_path / "m.onnx").exists()


def test_a_merge_can_be_undone_from_the_merged_checkpoint(tmp_path: Path) -> None:
    case = Case(tmp_path, ["down"], tied=False, dynamo=False)
    checkpoint = tmp_path / "merged.pth"
    merged = peft.PeftModel.from_pretrained(Speaker(tied=False), case.adapter).merge_and_unload()
    torch.save(merged.state_dict(), checkpoint)
    base = case.quantized(case.right, "--bits", 4)
    undone = case.merged(base, "--base-weights", checkpoint, "--unmerge")
    assert decibels(case.before, run(undone, IDS)) > decibels(case.before, run(base, IDS))


def test_the_report_tells_the_form(tmp_path: Path) -> None:
    case = Case(tmp_path, ["down"], tied=False, dynamo=False)
    base = case.quantized(case.float, "--bits", 4)
    result = invoke("merge-lora", base, case.adapter, "--base-weights", case.base, "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    target = json.loads(result.stdout)["targets"][0]
    assert target["weight"].endswith("down.weight")
    assert "quantized" in target["places"][0]
    assert 0 < target["integers"]["changed"] <= 1


@pytest.mark.parametrize("dynamo", [False, True], ids=["old", "dynamo"])
def test_adapters_can_be_exchanged_beside_blocks(tmp_path: Path, dynamo: bool) -> None:
    case = Case(tmp_path, ["up", "down", "embed_tokens"], tied=False, dynamo=dynamo)
    base = case.quantized(case.float, "--bits", 4)
    output = tmp_path / "exchangeable.onnx"
    options = ("--base-weights", case.base, "--as-adapter", "-o", output)
    result = invoke("merge-lora", base, case.adapter, *options)
    assert result.exit_code == 0, result.output
    session = onnxruntime.InferenceSession(output, providers=["CPUExecutionProvider"])
    feed = {"x": IDS.numpy()}
    np.testing.assert_allclose(session.run(None, feed)[0], run(base, IDS), atol=1e-5)
    adapter = onnxruntime.LoraAdapter()
    adapter.Load(str(tmp_path / "adapter.onnx_adapter"))
    active = onnxruntime.RunOptions()
    active.add_active_adapter(adapter)
    got = session.run(None, feed, active)[0]
    # The change is float beside the integers: what is left is the noise that the base has, too.
    assert decibels(case.expected, got) > decibels(case.before, run(base, IDS)) - 1
    assert decibels(case.expected, got) > case.decibels(base)
