"""How much a quantization looks for, by effort and by what a person asks for by name."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Effort(StrEnum):
    """How much time goes into the quality of the result."""

    FAST = "fast"
    BALANCED = "balanced"
    BEST = "best"


class Policy(StrEnum):
    """Whether a correction is made."""

    NEVER = "never"
    IF_BETTER = "if better"
    ALWAYS = "always"


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchConfig:
    """What is looked for.

    Attributes:
        ranges: whether the method of activations' ranges is chosen by the outputs.
        each_range: whether that is done for each of them.
        cross_layer_equalization: scaling channels of activations against the layers around them.
        smoothquant: moving outlier channels of activations into the weights behind them.
        doubts_rewriting: whether the model without either is refined as well, and the better of both is taken.
        bias_correction: letting biases take back what rounding weights does to the layers' means.
        weight_clipping: narrower scales of weights where products lose less then.
        gptq: rounding that minimizes the error of products instead of that of weights.
        layer_reconstruction: fitting layers one after another, in the quantized model, to the outputs of the float one.
        fits_weights: whether that may change integers as well as biases.
        most_float: the largest part of what integers save that may be given up for accuracy, 0 to 1; None for as much
            as makes a run ``most_slower`` of itself longer.
        most_slower: that part, 0 to 1.
        float_price: how many dB have to come of a run that takes a hundredth longer.
        every_short: whether every short line of layers to keep float is tried, instead of some.
        evaluation_batches: how many batches judge ranges.
        seen_batches: how many batches show the layers' inputs.
        evaluation_samples: how many samples judge corrections.
        fitted_samples: how many samples layers are fitted on.
        limited: whether a search ends that takes long beside running the float model.
    """

    ranges: bool
    each_range: bool
    cross_layer_equalization: Policy
    smoothquant: Policy
    doubts_rewriting: bool
    bias_correction: Policy
    weight_clipping: Policy
    gptq: Policy
    layer_reconstruction: Policy
    fits_weights: bool
    most_float: float | None
    most_slower: float
    float_price: float
    every_short: bool
    evaluation_batches: int
    seen_batches: int
    evaluation_samples: int
    fitted_samples: int
    limited: bool

    @property
    def need_evaluator(self) -> bool:
        """Whether anything is decided by the outputs."""
        uses = (
            self.cross_layer_equalization,
            self.smoothquant,
            self.bias_correction,
            self.weight_clipping,
            self.gptq,
            self.layer_reconstruction,
        )
        return self.keeps_float or Policy.IF_BETTER in uses

    @property
    def keeps_float(self) -> bool:
        """Whether layers stay float for accuracy."""
        return self.most_slower > 0.0 if self.most_float is None else self.most_float > 0.0


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
    most_float: float | None = None,
) -> SearchConfig:
    """Returns what an effort looks for; what is None follows from the effort."""
    fast, best = effort is Effort.FAST, effort is Effort.BEST

    def use(asked: bool | None, *, usual: bool) -> Policy:
        if asked is None:
            return Policy.IF_BETTER if usual else Policy.NEVER
        return Policy.ALWAYS if asked else Policy.NEVER

    return SearchConfig(
        ranges=ranges,
        each_range=not fast,
        cross_layer_equalization=use(cross_layer_equalization, usual=True),
        smoothquant=use(smoothquant, usual=True),
        doubts_rewriting=best,
        bias_correction=use(bias_correction, usual=True),
        weight_clipping=use(weight_clipping, usual=best),
        gptq=use(gptq, usual=True),
        layer_reconstruction=use(layer_reconstruction, usual=not fast),
        fits_weights=best,
        most_float=most_float,
        most_slower=0.0 if fast else 0.04,
        float_price=0.02 if best else 0.04,
        every_short=best,
        evaluation_batches=4 if best else 2,
        seen_batches=32 if best else 8 if fast else 12,
        evaluation_samples=64 if best else 16 if fast else 32,
        fitted_samples=64 if best else 32,
        limited=not best,
    )


NO_SEARCH = searches(
    Effort.FAST, ranges=False, cross_layer_equalization=False, smoothquant=False, bias_correction=True, gptq=False
)
