"""Request and report of training a quantized model on the outputs of its float model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qtool.backends.coverage import Coverage
from qtool.learn.augmentation import BOTH, Variation
from qtool.learn.distillation import Checked, Schedule
from qtool.manifest import Manifest
from qtool.metrics.fidelity import OutputFidelity
from qtool.workflows.quantize.data_request import DataRequest

TRAINED_SUFFIX = ".tuned.onnx"


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneRequest:
    """The options of a training.

    Attributes:
        model: the quantized model, in QDQ format.
        data: samples to learn from; some are held back to evaluate and to check on.
        float_model: the float model; None for the one in the manifest of ``model``.
        output: the file to write; None names it after the model.
        loss: a name of ``LOSSES``, or ``FILE.py:FUNCTION``; None for what fits each output.
        device: ``cpu``, ``cuda``, or ``auto`` for what is here.
        schedule: how long to train.
        variations: how images vary from step to step.
        threads: threads inside an operator; 0 is one per core.
        force: whether an existing output may be replaced, and a checkpoint beside it dropped.
        locked: the manifest of the run to repeat.
        arguments: the options as given, for the manifest.
    """

    model: Path
    data: DataRequest
    float_model: Path | None = None
    output: Path | None = None
    loss: str | None = None
    device: str = "auto"
    schedule: Schedule = field(default_factory=Schedule)
    variations: tuple[Variation, ...] = BOTH
    threads: int = 0
    force: bool = False
    locked: Manifest | None = None
    arguments: tuple[str, ...] = ()

    @property
    def destination(self) -> Path:
        """The path of the trained model."""
        stem = self.model.stem.removesuffix(".int8")
        return self.output or self.model.with_name(f"{stem}{TRAINED_SUFFIX}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneReport:
    """The result of a training.

    Attributes:
        output: the trained model.
        manifest: its manifest file.
        float_model: the float model.
        checks: every evaluation, the first one before any step.
        best: the evaluation of what was written.
        ended: why the training ended, in words.
        gained: whether held-back samples confirm it; where not, the model is written as it was.
        foreign: operator type by name of the nodes that have no gradient.
        coverage: the nodes that run on integers, as many as before.
        before: how close each output was to the float model's before.
        fidelity: how close it is now, on the same samples.
        compared_on: these samples, in words.
        device: where it was trained.
        learning_rate: the first rate, as a multiple of the usual one.
        varied: the image inputs that varied.
        bytes: size of the file.
    """

    output: Path
    manifest: Path
    float_model: Path
    checks: tuple[Checked, ...]
    best: Checked
    ended: str
    gained: bool
    foreign: Mapping[str, str]
    coverage: Coverage
    before: tuple[OutputFidelity, ...]
    fidelity: tuple[OutputFidelity, ...]
    compared_on: str
    device: str
    learning_rate: float
    varied: tuple[str, ...]
    bytes: int
