"""Distillation: trains a quantized graph, end to end, to give the outputs of the float model.

Fake quantization in the forward pass, gradients straight through the rounding (B. Jacob et al., Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, CVPR 2018); labels are not needed. Ranges
are observed before, batch normalizations are folded, and the rate falls to zero along half a cosine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import onnx_ir as ir
import torch

from qtool.calib.specs import Feed
from qtool.learn.checkpoint import Checkpoint
from qtool.learn.differentiable_graph import DifferentiableGraph
from qtool.learn.learned_quantization import LearnedQuantization, Rates
from qtool.learn.losses import Loss
from qtool.learn.tensors import tensor_of
from qtool.progress import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long a training goes on.

    Attributes:
        steps: batches to learn from.
        check_every: steps between two evaluations.
        patience: evaluations without a gain after which it ends.
        budget_s: seconds after which it ends; None for no limit.
        learning_rate: the first rate, as a multiple of the usual one; None for what fits how far the graph is from
            float.
    """

    steps: int = 400
    check_every: int = 25
    patience: int = 6
    budget_s: float | None = None
    learning_rate: float | None = None


# The usual rate is for models with a fifth of the signal's amplitude as noise, or more.
_FARTHEST = 0.2


def fitting_rate(sqnr_db: float) -> float:
    """Returns the first rate, as a multiple of the usual one, for a graph with this SQNR in dB.

    It is in proportion to the amplitude of the noise, since there is only so much to mend: a model of 25 dB begins with
    0.28 of the usual rate; with all of it EfficientNet-Lite0 lost 6 dB at first, and never gained any.
    """
    return float(min(1.0, 10.0 ** (-sqnr_db / 20.0) / _FARTHEST))


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """One evaluation.

    Attributes:
        step: how many batches were learned from.
        training_loss: mean over the batches since the last evaluation; None before the first.
        loss: on the evaluation samples.
        sqnr_db: of the worst output on the evaluation samples, in dB.
    """

    step: int
    training_loss: float | None
    loss: float
    sqnr_db: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What a graph is worth on the evaluation samples, see ``Checked``."""

    loss: float
    sqnr_db: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Distilled:
    """What a training came to.

    Attributes:
        model: the best graph that was evaluated, the first one included.
        checks: every evaluation, the first one before any step.
        best: the evaluation of ``model``.
        ended: why it ended, in words.
        foreign: operator type by name of the nodes that have no gradient.
        learning_rate: the first rate, as a multiple of the usual one.
    """

    model: ir.Model
    checks: tuple[Checked, ...]
    best: Checked
    ended: str
    foreign: Mapping[str, str]
    learning_rate: float


class Distillation:
    """Trains one quantized graph."""

    def __init__(
        self,
        model: ir.Model,
        losses: Mapping[str, Loss],
        *,
        view: ir.Model | None = None,
        device: torch.device | None = None,
        bounded: Callable[[ir.Model], None] | None = None,
        varied: Callable[[Feed, int], Feed] | None = None,
    ) -> None:
        """Reads the graph.

        Args:
            model: a QDQ graph whose nodes and values have names; it is not modified.
            losses: by output of ``view``.
            view: the same graph with other outputs; itself where it is None.
            device: where to compute.
            bounded: keeps what was learned within what the kernels of the target can add up, in place.
            varied: returns what is learned from in place of a batch, by the number of the step; None for itself.
        """
        self._model = model
        self._losses = losses
        self._device = device or torch.device("cpu")
        self._bounded = bounded
        self._varied = varied
        self.learned = LearnedQuantization(model, device=self._device)
        self._graph = DifferentiableGraph(view or model, device=self._device)

    def train(
        self,
        batches: Callable[[], Iterator[Feed]],
        teacher: Callable[[Feed], Feed],
        judge: Callable[[ir.Model], Judgement],
        schedule: Schedule,
        progress: Progress,
        *,
        checkpoint: Checkpoint | None = None,
    ) -> Distilled:
        """Returns the best graph; an interrupt ends the training and keeps it.

        Args:
            batches: yields the tuning batches, in the same order each time.
            teacher: returns the outputs of the float model.
            judge: evaluates a graph on samples that are not trained on.
            schedule: how long.
            progress: receives the steps.
            checkpoint: where the state is kept at each evaluation, and where to go on from, with the same result.

        Raises:
            OutputError: the checkpoint is of another training, or cannot be written.
            InputError: the checkpoint cannot be read.
        """
        done, spent, feeds, losses = 0, 0.0, _Endless(batches), list[float]()
        saved = None if checkpoint is None else checkpoint.load()
        if saved is None:
            found = judge(self._model)
            checks = [Checked(step=0, training_loss=None, loss=found.loss, sqnr_db=found.sqnr_db)]
            kept = self.learned.state()
        else:
            done, spent, kept = saved["step"], saved["seconds"], saved["kept"]
            checks = [Checked(**check) for check in saved["checks"]]
            self.learned.restore(saved["learned"])
        rate = schedule.learning_rate
        rate = fitting_rate(checks[0].sqnr_db) if rate is None else rate
        optimizer = torch.optim.Adam(self.learned.groups(Rates().times(rate)))
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, schedule.steps)
        if saved is not None:
            optimizer.load_state_dict(saved["optimizer"])
            falling.load_state_dict(saved["falling"])
            feeds.skip(saved["batch"])
            progress.note(f"goes on after step {done} of a training that did not end")
        best, start, ended = _least(checks), time.monotonic() - spent, "all steps are done"
        with progress.task("training", schedule.steps) as advance:
            advance(done)
            try:
                for step in range(done + 1, schedule.steps + 1):
                    feed = next(feeds) if self._varied is None else self._varied(next(feeds), step)
                    losses.append(self._step(feed, teacher(feed), optimizer))
                    falling.step()
                    advance(1)
                    late = schedule.budget_s is not None and time.monotonic() - start > schedule.budget_s
                    if step % schedule.check_every and step != schedule.steps and not late:
                        continue
                    found, mean = judge(self.stored()), float(np.mean(losses))
                    checks.append(Checked(step=step, training_loss=mean, loss=found.loss, sqnr_db=found.sqnr_db))
                    losses.clear()
                    if found.loss < best.loss:
                        best, kept = checks[-1], self.learned.state()
                    if late:
                        ended = "the time is up"
                        break
                    if step - best.step >= schedule.patience * schedule.check_every:
                        ended = "the evaluation samples gain nothing more"
                        break
                    if checkpoint is not None and step != schedule.steps:
                        state = {
                            "step": step,
                            "batch": feeds.given,
                            "seconds": time.monotonic() - start,
                            "learned": self.learned.state(),
                            "kept": kept,
                            "checks": [asdict(check) for check in checks],
                            "optimizer": optimizer.state_dict(),
                            "falling": falling.state_dict(),
                        }
                        checkpoint.save(state)
            except KeyboardInterrupt:
                ended = "interrupted"
        foreign = dict(self._graph.foreign)
        self._graph.close()
        self.learned.restore(kept)
        model = self.stored() if best.step else self._model
        return Distilled(model=model, checks=tuple(checks), best=best, ended=ended, foreign=foreign, learning_rate=rate)

    def stored(self) -> ir.Model:
        """Returns the graph with what is learned so far."""
        model = self._model.clone()
        self.learned.store(model)
        if self._bounded is not None:
            self._bounded(model)
        return model

    def _step(
        self,
        feed: Feed,
        wanted: Feed,
        optimizer: torch.optim.Optimizer,
    ) -> float:
        given = {name: tensor_of(array, self._device) for name, array in feed.items()}
        outputs = self._graph.run(given, list(self._losses), self.learned.values())
        parts = [loss(outputs[name], tensor_of(wanted[name], self._device)) for name, loss in self._losses.items()]
        total = torch.stack(parts).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        return float(total.detach())


class _Endless:
    """Yields the batches over and over.

    Attributes:
        given: how many since the last begin.
    """

    def __init__(self, batches: Callable[[], Iterator[Feed]]) -> None:
        self._batches = batches
        self._now = batches()
        self.given = 0

    def __next__(self) -> Feed:
        feed = next(self._now, None)
        if feed is None:
            self._now, self.given = self._batches(), 0
            feed = next(self._now)
        self.given += 1
        return feed

    def skip(self, count: int) -> None:
        """Passes over the next batches."""
        for _ in range(count):
            next(self)


def _least(checks: Sequence[Checked]) -> Checked:
    return min(checks, key=lambda check: check.loss)
