"""The search configuration of each effort, with the corrections requested by name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from qtool.weights.registry import CLIPPING, GPTQ, WEIGHT_ALGORITHMS

# With little effort, longer graphs are not searched.
_MOST_SEARCHED_NODES = 12_000


class Effort(StrEnum):
    """How much time is spent on the quality of the result."""

    FAST = "fast"
    BALANCED = "balanced"
    BEST = "best"


class Policy(StrEnum):
    """Whether a correction is applied."""

    NEVER = "never"
    IF_BETTER = "if better"
    ALWAYS = "always"


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchConfig:
    """What a search tries, and on how much data.

    Attributes:
        ranges: whether the range method of activations is chosen by the outputs' error.
        each_range: whether that is done per tensor.
        cross_layer_equalization: scaling channels of activations against the layers around them.
        smoothquant: moving outlier channels of activations into the weights that multiply them.
        doubts_rewriting: whether the model without these two is corrected as well, and the better of both is taken.
        bias_correction: correcting the shift of the layers' means that rounding weights causes.
        weight_clipping: narrower scales of weights where that reduces the error of products.
        gptq: rounding that minimizes the error of products instead of that of weights.
        other_algorithms: the other entries of ``WEIGHT_ALGORITHMS``.
        layer_reconstruction: fitting the quantized layers in order to the outputs of the float ones: their biases, and
        in ``further`` searches integers as well.
        learned_rounding: learning integers and biases by gradients, block after block.
        most_float: the largest fraction of the integers' savings to give up for accuracy, 0 to 1; None for what slows
        a run down by ``most_slower``.
        most_slower: the largest relative slowdown, 0 to 1.
        float_price: the gain in dB required for a slowdown of one percent.
        every_short: whether every short prefix of layers to keep float is tried, instead of some.
        evaluation_batches: how many batches ranges are evaluated on.
        seen_batches: how many batches the Hessians of layers' inputs are collected from.
        evaluation_samples: how many samples corrections are evaluated on.
        fitted_samples: how many samples layers are fitted on.
        limited: whether the search time is limited in proportion to the float model's run time.
        times_layers: whether layers are timed in the model; their times are predicted from what kernels cost otherwise.
        most_nodes: graphs of more nodes are not searched, see ``for_nodes``; None where all are.
        further: what is tried on top of the result, and kept where samples held back from it show it to be better;
        None for nothing.
    """

    ranges: bool
    each_range: bool
    cross_layer_equalization: Policy
    smoothquant: Policy
    doubts_rewriting: bool
    bias_correction: Policy
    weight_clipping: Policy
    gptq: Policy
    other_algorithms: Policy
    layer_reconstruction: Policy
    learned_rounding: Policy
    most_float: float | None
    most_slower: float
    float_price: float
    every_short: bool
    evaluation_batches: int
    seen_batches: int
    evaluation_samples: int
    fitted_samples: int
    limited: bool
    times_layers: bool = True
    most_nodes: int | None = None
    further: SearchConfig | None = None

    @property
    def need_evaluator(self) -> bool:
        """Whether any decision depends on the outputs."""
        uses = (
            self.cross_layer_equalization,
            self.smoothquant,
            self.bias_correction,
            *map(self.policy_of, WEIGHT_ALGORITHMS),
            self.layer_reconstruction,
            self.learned_rounding,
        )
        return self.keeps_float or Policy.IF_BETTER in uses

    def policy_of(self, algorithm: str) -> Policy:
        """Whether an entry of ``WEIGHT_ALGORITHMS`` is used."""
        return {CLIPPING: self.weight_clipping, GPTQ: self.gptq}.get(algorithm, self.other_algorithms)

    @property
    def keeps_float(self) -> bool:
        """Whether layers stay float for accuracy."""
        return self.most_slower > 0.0 if self.most_float is None else self.most_float > 0.0

    def for_nodes(self, nodes: int) -> SearchConfig:
        """Returns what is tried on a graph of so many nodes: ``self``, or what compares no quantized graphs.

        To open one of very many nodes takes longer than to run it on all samples. Corrections that are requested by
        name are applied; that of biases always helps on average.
        """
        if self.most_nodes is None or nodes <= self.most_nodes or self.keeps_float:
            return self

        def unless_asked(use: Policy) -> Policy:
            return Policy.NEVER if use is Policy.IF_BETTER else use

        return replace(
            self,
            ranges=False,
            cross_layer_equalization=unless_asked(self.cross_layer_equalization),
            smoothquant=unless_asked(self.smoothquant),
            bias_correction=Policy.ALWAYS if self.bias_correction is Policy.IF_BETTER else self.bias_correction,
            weight_clipping=unless_asked(self.weight_clipping),
            gptq=unless_asked(self.gptq),
            other_algorithms=unless_asked(self.other_algorithms),
            layer_reconstruction=unless_asked(self.layer_reconstruction),
            learned_rounding=unless_asked(self.learned_rounding),
            times_layers=False,
        )


def searches(
    effort: Effort,
    *,
    ranges: bool = True,
    cross_layer_equalization: bool | None = None,
    smoothquant: bool | None = None,
    bias_correction: bool | None = None,
    weight_clipping: bool | None = None,
    gptq: bool | None = None,
    layer_reconstruction: bool | None = None,
    learned_rounding: bool | None = None,
    most_float: float | None = None,
) -> SearchConfig:
    """Returns the configuration of an effort; arguments that are None follow from the effort.

    The best effort is the balanced one, with further searches on top.
    """
    fast, best = effort is Effort.FAST, effort is Effort.BEST

    def use(asked: bool | None, *, usual: bool) -> Policy:
        if asked is None:
            return Policy.IF_BETTER if usual else Policy.NEVER
        return Policy.ALWAYS if asked else Policy.NEVER

    config = SearchConfig(
        ranges=ranges,
        each_range=not fast,
        cross_layer_equalization=use(cross_layer_equalization, usual=True),
        smoothquant=use(smoothquant, usual=True),
        doubts_rewriting=best,
        bias_correction=use(bias_correction, usual=True),
        weight_clipping=use(weight_clipping, usual=best),
        gptq=use(gptq, usual=True),
        other_algorithms=use(None, usual=not fast),
        layer_reconstruction=use(layer_reconstruction, usual=not fast),
        learned_rounding=use(learned_rounding, usual=best),
        most_float=most_float,
        most_slower=0.0 if fast else 0.08 if best else 0.04,
        float_price=0.02 if best else 0.04,
        every_short=best,
        evaluation_batches=4 if best else 2,
        seen_batches=32 if best else 8 if fast else 12,
        evaluation_samples=64 if best else 16 if fast else 32,
        fitted_samples=64 if best else 32,
        limited=not best,
        most_nodes=_MOST_SEARCHED_NODES if fast else None,
    )
    if not best:
        return config
    balanced = searches(
        Effort.BALANCED,
        ranges=ranges,
        cross_layer_equalization=cross_layer_equalization,
        smoothquant=smoothquant,
        bias_correction=bias_correction,
        weight_clipping=weight_clipping,
        gptq=gptq,
        layer_reconstruction=layer_reconstruction,
        learned_rounding=learned_rounding,
        most_float=most_float,
    )
    # What is to be improved must not depend on how busy the machine is.
    return replace(balanced, limited=False, further=config)


BALANCED = searches(Effort.BALANCED)
# Corrections move integers on a grid of equal steps; 8-bit floats are rounded to the nearest.
FLOAT8 = searches(
    Effort.FAST,
    ranges=False,
    cross_layer_equalization=False,
    smoothquant=False,
    bias_correction=False,
    weight_clipping=False,
    gptq=False,
    layer_reconstruction=False,
)
NO_SEARCH = searches(
    Effort.FAST, ranges=False, cross_layer_equalization=False, smoothquant=False, bias_correction=True, gptq=False
)
