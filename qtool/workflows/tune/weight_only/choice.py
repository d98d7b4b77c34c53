"""What a weight-only quantization has come to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from qtool.graph.unpacked_product import EXACT_LEVEL, INTEGER_LEVEL
from qtool.plan import WeightOnlyPlan
from qtool.weights.blocks.choices import BlockMethod
from qtool.weights.blocks.quantization import BlockWeight
from qtool.workflows.quantize.weight_only_request import Attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightOnlyChoice:
    """The weights that were chosen.

    Attributes:
        plan: the weights that become integers.
        weights: by name.
        method: what chose their integers.
        model: the float model whose weights they stand for; None where it is the prepared model as it was.
        integer_layers: the products whose activations are rounded to 8 bits in the kernel.
        attempts: what was evaluated.
        noise: where bits are mixed, what each weight alone puts into the outputs at 4 bits, over their signal.
    """

    plan: WeightOnlyPlan
    weights: Mapping[str, BlockWeight]
    method: BlockMethod
    model: ir.Model | None = None
    integer_layers: frozenset[str] = frozenset()
    attempts: tuple[Attempt, ...] = ()
    noise: Mapping[str, float] = field(default_factory=dict)

    @property
    def products(self) -> frozenset[str]:
        """The layers that multiply."""
        return frozenset(name for name, operator in self.plan.layers.items() if operator != "Gather")

    @property
    def levels(self) -> dict[str, int]:
        """The accuracy level of each layer."""
        return {name: INTEGER_LEVEL if name in self.integer_layers else EXACT_LEVEL for name in self.plan.layers}

    def layers_at(self, level: int | None) -> frozenset[str]:
        """Returns the integer layers where all products have one level, by default the exact one."""
        return self.products if level == INTEGER_LEVEL else frozenset()
