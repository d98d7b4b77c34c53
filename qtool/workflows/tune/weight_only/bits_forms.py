"""The forms of each weight that bits are chosen among: their sizes, and what each alone does to the outputs."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from qtool.plan import WeightOnlyPlan
from qtool.progress import Progress
from qtool.search.blocks.rounding import GuidedBlocks
from qtool.search.mixed_bits import FLOAT_BITS, BitsOption
from qtool.weights.blocks.choices import BlockMethod
from qtool.weights.blocks.quantization import BlockWeight
from qtool.workflows.tune.weight_only.choice import WeightOnlyChoice
from qtool.workflows.tune.weight_only.evaluation import WeightOnlyEvaluation

_MEASURED_BITS = 4
# Kernels multiply with 2 bits many times slower than with 4; tables are only looked up.
_BITS_OF_TABLES, _BITS_OF_PRODUCTS = (2, 4, 8), (4, 8)
_FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class BitsForms:
    """What bits can be chosen among.

    Attributes:
        plan: the weights that may become integers.
        method: what rounds them.
        model: the float model whose weights they stand for.
        by_bits: the rounded weights, by bits and name.
        noise: what each weight alone puts into the outputs at 4 bits, over their signal.
        options: the forms of each weight.
    """

    plan: WeightOnlyPlan
    method: BlockMethod
    model: ir.Model
    by_bits: Mapping[int, Mapping[str, BlockWeight]]
    noise: Mapping[str, float]
    options: Mapping[str, list[BitsOption]]

    def mixed(self, bits: Mapping[str, int]) -> WeightOnlyChoice:
        """Returns the weights with so many bits each; those with ``FLOAT_BITS`` stay float."""
        integers = {name: count for name, count in bits.items() if count != FLOAT_BITS}
        return WeightOnlyChoice(
            plan=with_bits(self.plan, integers),
            weights={name: self.by_bits[count][name] for name, count in integers.items()},
            method=self.method,
            model=self.model,
            noise=self.noise,
        )

    def alone(self, name: str, bits: int) -> WeightOnlyChoice:
        """Returns one weight with so many bits, all others being float."""
        return WeightOnlyChoice(
            plan=with_bits(self.plan, {name: bits}),
            weights={name: self.by_bits[bits][name]},
            method=self.method,
            model=self.model,
        )

    def usual(self) -> BitsForms:
        """Returns the same without bits whose products are slow."""
        tables = _tables(self.plan)
        options = {
            name: [
                form
                for form in forms
                if form.bits in (FLOAT_BITS, *(_BITS_OF_TABLES if name in tables else _BITS_OF_PRODUCTS))
            ]
            for name, forms in self.options.items()
        }
        return replace(self, options=options)


def measured_forms(
    evaluation: WeightOnlyEvaluation,
    plan: WeightOnlyPlan,
    progress: Progress,
    *,
    more_bits: Collection[int] = (),
) -> BitsForms:
    """Rounds every weight to 4 and 8 bits, tables to 2 as well, and measures each at 4 bits alone at the outputs.

    Args:
        evaluation: rounds weights and measures models.
        plan: the weights that may become integers; how many bits it gives them makes no difference.
        progress: receives the steps.
        more_bits: bits that products may have as well.

    Raises:
        RuntimeRefusedError: onnxruntime does not load or run a model.
    """
    tables = _tables(plan)
    bits_of = {
        name: tuple(sorted({*_BITS_OF_TABLES} if name in tables else {*_BITS_OF_PRODUCTS, *more_bits}))
        for name in plan.weights
    }
    method, guided = _by_best(evaluation, with_bits(plan, dict.fromkeys(plan.weights, _MEASURED_BITS)), progress)
    by_bits = {_MEASURED_BITS: guided.weights[method]}
    for bits in sorted({bits for allowed in bits_of.values() for bits in allowed} - {_MEASURED_BITS}):
        names = [name for name, allowed in bits_of.items() if bits in allowed]
        some = with_bits(plan, dict.fromkeys(names, bits))
        by_bits[bits] = evaluation.guided(some, progress, (method,), scales=guided.scales).weights[method]
    forms = BitsForms(
        plan=plan,
        method=method,
        model=guided.prepared(evaluation.model, method),
        by_bits=by_bits,
        noise={},
        options={},
    )
    noise = {}
    with progress.task("measuring sensitivity", len(plan.weights)) as advance:
        for name in plan.weights:
            sqnr_db = evaluation.sqnr_db(forms.alone(name, _MEASURED_BITS))
            noise[name] = 0.0 if sqnr_db == math.inf else 10.0 ** (-sqnr_db / 10.0)
            advance(1)
    options = {name: _options(by_bits, name, noise[name], bits_of[name]) for name in plan.weights}
    return replace(forms, noise=noise, options=options)


def _tables(plan: WeightOnlyPlan) -> set[str]:
    return {name for name, item in plan.weights.items() if any(plan.layers[node] == "Gather" for node in item.nodes)}


def _by_best(
    evaluation: WeightOnlyEvaluation, plan: WeightOnlyPlan, progress: Progress
) -> tuple[BlockMethod, GuidedBlocks]:
    """Returns GPTQ, or GPTQ after AWQ where that is better, and the weights by it."""
    methods = (BlockMethod.GPTQ, BlockMethod.AWQ_GPTQ)
    guided = evaluation.guided(plan, progress, methods)
    if not guided.scales:
        return BlockMethod.GPTQ, guided
    choices = [
        WeightOnlyChoice(
            plan=plan, weights=guided.weights[name], method=name, model=guided.prepared(evaluation.model, name)
        )
        for name in methods
    ]
    return max(choices, key=evaluation.sqnr_db).method, guided


def _options(
    by_bits: Mapping[int, Mapping[str, BlockWeight]], name: str, noise: float, bits: tuple[int, ...]
) -> list[BitsOption]:
    """Returns the forms of a weight; the noise of rounding falls fourfold with each bit."""
    found = [
        BitsOption(bits=count, size=by_bits[count][name].size, noise=noise * 4.0 ** (_MEASURED_BITS - count))
        for count in bits
    ]
    floats = _FLOAT_BYTES * by_bits[_MEASURED_BITS][name].integers.size
    return [*found, BitsOption(bits=FLOAT_BITS, size=floats, noise=0.0)]


def with_bits(plan: WeightOnlyPlan, bits: Mapping[str, int]) -> WeightOnlyPlan:
    """Returns the plan for the weights in ``bits`` alone, with so many bits each."""
    weights = {
        name: replace(item, grid=replace(item.grid, bits=bits[name]))
        for name, item in plan.weights.items()
        if name in bits
    }
    nodes = {node for item in weights.values() for node in item.nodes}
    return replace(plan, weights=weights, layers={name: kind for name, kind in plan.layers.items() if name in nodes})
