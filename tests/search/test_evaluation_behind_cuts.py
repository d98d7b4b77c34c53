"""Layers that are measured from a cut before them on get the figures of the whole graph."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from qtool.backends.targets import PRESETS
from qtool.calib.affine import Range, params_from_range
from qtool.plan import NOTHING_KEPT, Plan
from qtool.planning import build_plan
from qtool.qdq.insert_qdq import insert_qdq
from qtool.runtime import graphs
from qtool.search import evaluation_behind_cuts
from qtool.search.evaluation_behind_cuts import EvaluationBehindCuts
from qtool.search.logits_view import with_logits
from qtool.search.node_groups import NodeGroup, node_groups
from qtool.search.output_evaluator import OutputEvaluator
from qtool.selection import NodeSelection
from qtool.weights.round_to_nearest import round_to_nearest
from qtool.workflows.quantize.prepare import prepare

_LAYERS = 16


class _Candidates:
    """Quantizes a chain of convolutions, one of whose pools belongs to the layer behind it."""

    def __init__(self) -> None:
        draw = np.random.default_rng(3)
        lines, last = [], "x"
        for number in range(_LAYERS):
            lines.append(f"c{number} = Conv <pads = [1,1,1,1]> ({last}, w{number})\n r{number} = Tanh (c{number})")
            last = f"r{number}"
            if number % 4 == 3:
                lines.append(f"p{number} = MaxPool <kernel_shape = [3,3], pads = [1,1,1,1]> ({last})")
                last = f"p{number}"
        lines.append(f"side = Neg (r2)\n joined = Add ({last}, r5)\n y = Sigmoid (joined)")
        text = "\n".join(lines)
        proto = parser.parse_model(
            '<ir_version: 8, opset_import: ["" : 17]> '
            f"g (float[n,4,8,8] x) => (float[n,4,8,8] y, float[n,4,8,8] side) {{ {text} }}"
        )
        weights = {f"w{number}": draw.normal(0, 0.4, (4, 4, 3, 3)).astype(np.float32) for number in range(_LAYERS)}
        proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
        self.weights = weights
        self.model = prepare(ir.from_proto(proto))
        self.groups = node_groups(self.model, self._plan(self.model, NOTHING_KEPT))
        self.feeds = [{"x": draw.normal(0, 1, (2, 4, 8, 8)).astype(np.float32)} for _ in range(2)]

    def alone(self, number: int) -> ir.Model:
        """Returns the model with one layer quantized."""
        kept = {name: "float" for place, group in enumerate(self.groups) if place != number for name in group.nodes}
        model = self.model.clone()
        plan = self._plan(model, kept)
        activations = {
            planned.source: params_from_range(Range(-3.0, 3.0), planned.grid) for planned in plan.activations.values()
        }
        rounded = {
            name: round_to_nearest(name, self.weights[name], planned.grid, planned.granularity, bias=None)
            for name, planned in plan.weights.items()
        }
        insert_qdq(model, plan, activations, rounded)
        return model

    @staticmethod
    def _plan(model: ir.Model, kept: Mapping[str, str]) -> Plan:
        return build_plan(model, PRESETS["x86"], NodeSelection(), kept_float=kept, may_be_empty=True)


@pytest.fixture(scope="module")
def candidates() -> _Candidates:
    return _Candidates()


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of convolutions of each graph that is opened."""
    seen: list[int] = []
    apart = graphs.apart

    def counted(model: ir.Model) -> object:
        seen.append(sum(node.op_type == "Conv" for node in model.graph))
        return apart(model)

    monkeypatch.setattr(graphs, "apart", counted)
    return seen


def test_every_layer_has_the_noise_that_it_has_in_the_whole_graph(candidates: _Candidates, opened: list[int]) -> None:
    groups = candidates.groups
    assert len(groups) == _LAYERS
    evaluator = OutputEvaluator(candidates.model, candidates.feeds, view=with_logits)
    evaluation = EvaluationBehindCuts(candidates.model, groups, evaluator)
    # The last ones come again: a runner that has passed a cut begins anew.
    for number in (*range(_LAYERS), 9, 4):
        candidate = candidates.alone(number)
        expected = evaluator.sqnr_db(candidate)
        opened.clear()
        assert evaluation.sqnr_db(candidate, number) == pytest.approx(expected, abs=0.05)
        assert expected < 60
        behind = _LAYERS - number
        assert opened[-1] >= behind
        if number >= evaluation_behind_cuts._FEWEST_LAYERS:
            assert opened[-1] < _LAYERS


def test_an_operator_before_the_cut_that_is_on_integers_takes_the_whole_graph(
    candidates: _Candidates, opened: list[int]
) -> None:
    evaluator = OutputEvaluator(candidates.model, candidates.feeds)
    groups = list(candidates.groups)
    evaluation = EvaluationBehindCuts(candidates.model, groups, evaluator)
    # What is quantized is not the layer that the cut was chosen for.
    candidate = candidates.alone(2)
    opened.clear()
    assert evaluation.sqnr_db(candidate, _LAYERS - 1) == evaluator.sqnr_db(candidate)
    assert _LAYERS in opened


def test_few_layers_are_not_cut(candidates: _Candidates, opened: list[int]) -> None:
    evaluator = OutputEvaluator(candidates.model, candidates.feeds)
    few: list[NodeGroup] = list(candidates.groups[: evaluation_behind_cuts._FEWEST_LAYERS - 1])
    candidate = candidates.alone(2)
    opened.clear()
    EvaluationBehindCuts(candidates.model, few, evaluator).sqnr_db(candidate, 2)
    assert opened == [_LAYERS]
