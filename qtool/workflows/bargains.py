"""Keeps layers float where integers cost much accuracy and save little time, and tells what that did."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import onnx_ir as ir

from qtool.progress import Progress
from qtool.search.bargain import Bargain, best_bargain, could_gain
from qtool.search.multiply_adds import multiply_add_shares
from qtool.search.node_groups import node_groups
from qtool.search.output_judge import OutputJudge
from qtool.search.sensitivity import rank_layers
from qtool.search.unsaturated import with_unsaturated_outputs
from qtool.search.variant import Quantize
from qtool.workflows.search_samples import SearchSamples

_RANKING_SAMPLES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptFloat:
    """What became of the search.

    Attributes:
        bargain: the layers that stay float.
        plain_db: SQNR of the worst output in dB with integers everywhere.
        samples: how many samples it was judged by.
        stopped: why the search ended early, in words; None when it did not.
    """

    bargain: Bargain
    plain_db: float
    samples: int
    stopped: str | None


def keep_bargains(
    original: ir.Model,
    model: ir.Model,
    quantize: Quantize,
    judge: OutputJudge,
    samples: SearchSamples,
    progress: Progress,
    *,
    most: float,
    budget_s: float | None = None,
    threads: int = 0,
) -> KeptFloat:
    """Searches the layers to keep float; an interrupt ends the search with the best so far.

    Args:
        original: the float model.
        model: the same, prepared.
        quantize: makes variants of it.
        judge: decides between them.
        samples: what ranks the layers.
        progress: receives the steps.
        most: the largest part of all multiply-adds that may stay float once the model is usable, 0 to 1.
        budget_s: seconds after which the best so far is returned.
        threads: threads inside an operator; 0 is one a core.

    Raises:
        RuntimeRefusedError: onnxruntime does not load or run a model.
    """
    end = math.inf if budget_s is None else time.monotonic() + budget_s

    def is_over() -> bool:
        return time.monotonic() >= end

    everything = quantize({})
    plain = judge.sqnr_db(everything.model)
    best, stopped = Bargain(layers=(), sqnr_db=plain, share=0.0), None
    groups = node_groups(model, everything.plan)
    if could_gain(plain) and len(groups) > 1:
        try:
            feeds = samples.spread(_RANKING_SAMPLES).feeds
            ranking = OutputJudge(original, feeds, view=with_unsaturated_outputs, threads=threads)
            with progress.task("quantizing one layer at a time", len(groups)) as advance:
                ranked = rank_layers(quantize, groups, ranking, advance=advance, stop=is_over)
            shares = multiply_add_shares(model, groups, feeds[0], threads=threads)
            with progress.task("trying which layers to keep float") as advance:
                best = best_bargain(quantize, judge, plain, ranked, shares, most=most, advance=advance, stop=is_over)
            stopped = f"the time of {budget_s:g} s was up" if is_over() else None
        except KeyboardInterrupt:
            stopped = "interrupted"
    return KeptFloat(bargain=best, plain_db=plain, samples=judge.samples, stopped=stopped)
