"""The report as a value: the one source of every form in which it is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from qtool.llm.generation import Answer
from qtool.llm.language_figures import TokenTimes
from qtool.llm.mean_interval import Estimate
from qtool.llm.perplexity import LanguageScore
from qtool.metrics.accuracy import Accuracy, ClassChange
from qtool.metrics.changed_samples import ChangedSample
from qtool.metrics.fidelity import OutputFidelity
from qtool.metrics.latency import Interval, Latency
from qtool.metrics.layers import LayerFidelity, TensorHistogram
from qtool.metrics.memory import Memory
from qtool.metrics.size_by_kind import SizePart
from qtool.runtime.profile import OperatorTime

Outcome: TypeAlias = Literal["passed", "unproven", "failed", "unjudged"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A figure as it was found.

    Attributes:
        value: the figure; None where the report does not have it, NaN where outputs cannot be compared.
        low: lower end of its confidence interval; None for a figure that another run would find again.
        high: upper end of it.
    """

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReport:
    """What was measured on one model alone; accuracy and metric are those on one dataset.

    Attributes:
        name: what the report calls it: the file's name, and as much of the folder as tells it from the others.
        path: the file, as it was given.
        size_bytes: on disk, external data included.
        accuracy: on the labels; None without labels.
        metric: the score at its task; None where no metric was asked for.
        size_parts: what takes the room on disk.
        overflowing_layers: the layers whose integer sums can overflow on this processor, by name.
        runtime: what ran it, a key of ``RUNTIMES``.
        target: what it was quantized for; None where it does not say.
        perplexity: of a language model on a text; None on other data.
        token_times: how fast a language model is; None on other data, or where times were not to be measured.
        misplaced: why its figures are not those of that target, in words; None where they are.
        latency: of one sample; None where it was not to be measured.
        throughput: samples a second in batches of the report's batch size; None where latency is.
        memory: of a process that runs it once.
        cold_start: milliseconds that a fresh process takes to open and run it; None where it was not to be measured.
        operators: where the time of one sample goes; empty where it was not to be looked at.
    """

    name: str
    path: str
    size_bytes: int
    accuracy: Accuracy | None
    latency: Latency | None
    throughput: Interval | None
    memory: Memory
    cold_start: Interval | None = None
    operators: tuple[OperatorTime, ...] = ()
    metric: float | None = None
    size_parts: tuple[SizePart, ...] = ()
    overflowing_layers: tuple[str, ...] = ()
    runtime: str = "onnxruntime"
    target: str | None = None
    misplaced: str | None = None
    perplexity: Estimate | None = None
    token_times: TokenTimes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GridPoint:
    """The times of both models in one setting.

    Attributes:
        batch_size: samples per run.
        threads: threads inside an operator; 0 is one per core.
        float_ms: milliseconds a run of the float model.
        quantized_ms: milliseconds a run of the quantized model.
        speedup: float time over quantized time, from paired rounds.
    """

    batch_size: int
    threads: int
    float_ms: Interval
    quantized_ms: Interval
    speedup: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where it was measured.

    Attributes:
        system: operating system and architecture.
        processor: the processor's name.
        cores: logical processors.
    """

    system: str
    processor: str
    cores: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelComparison:
    """The comparison of one quantized model with its float model, on one dataset.

    Attributes:
        dataset: the name of the dataset.
        float_model: the float model's figures.
        quantized_model: the quantized model's figures.
        fidelity: how close the outputs are, one entry an output.
        speedup: float time over quantized time, from paired rounds; None where latency was not to be measured.
        classes: the classes that the two name more or less often rightly; empty without labels.
        samples: the samples that changed most, the worst first.
        layers: how close the tensors inside are; empty where they were not to be looked at, and on all datasets but
            the first.
        histograms: where the values of some of these tensors lie.
        grid: the times at other batch sizes and numbers of threads; empty where none were asked for.
        language: what a text says of the two; None on other data.
        answers: how both go on with prompts; empty without any.
        lower_is_better: whether a lower metric is a better one.
        is_float: whether the quantized model is none: it is the float model in another runtime.
        figures: everything above that has a name, as ``figures.with_figures`` fills it in.
    """

    dataset: str
    float_model: ModelReport
    quantized_model: ModelReport
    fidelity: tuple[OutputFidelity, ...]
    speedup: Interval | None
    classes: tuple[ClassChange, ...] = ()
    samples: tuple[ChangedSample, ...] = ()
    layers: tuple[LayerFidelity, ...] = ()
    histograms: tuple[TensorHistogram, ...] = ()
    grid: tuple[GridPoint, ...] = ()
    language: LanguageScore | None = None
    answers: tuple[Answer, ...] = ()
    lower_is_better: bool = False
    is_float: bool = False
    figures: Mapping[str, Measured] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a condition says about one quantized model.

    Attributes:
        model: the model's name.
        condition: the gate's condition.
        outcome: whether it passed; "unproven" passes too: the value misses, and its confidence interval does not.
            "unjudged" is a condition on a figure that the report does not have.
        message: one line: the figure, and how far it misses.
        fix: one line: what to do about it; empty where nothing has to be done.
        dataset: the dataset whose figure it is; empty where there is only one, or the figure is that of the model.
    """

    model: str
    condition: str
    outcome: Outcome
    message: str
    fix: str = ""
    dataset: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsedData:
    """A dataset that all models ran on.

    Attributes:
        name: what the report calls it: the name that it was given, or as much of its path as tells it from the others.
        source: where it was read from, as it was given.
        labels: the name of the labels; None without labels.
        samples: how many samples all ran on.
        tokens: how many tokens of a text all predicted; None for other data.
    """

    name: str
    source: str
    labels: str | None
    samples: int
    tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Compares quantized models with the float model that they were made from.

    Attributes:
        comparisons: one entry a dataset and quantized model, the models on the first dataset first, all with the same
            float model. What is measured once a model stands in the entries of every dataset.
        datasets: what all models ran on, at least one.
        metric: the metric of the task; None without one.
        batch_size: samples per run.
        threads: threads inside an operator; 0 is one per core.
        rounds: rounds of the latency measurement; 0 where it was not to be measured.
        versions: of the packages that have a say in the figures.
        machine: where it was measured.
        verdicts: what gates and an earlier report say about it.
    """

    comparisons: tuple[ModelComparison, ...]
    datasets: tuple[UsedData, ...]
    batch_size: int
    threads: int
    rounds: int
    versions: Mapping[str, str]
    machine: Machine
    verdicts: tuple[Verdict, ...] = ()
    metric: str | None = None

    @property
    def float_model(self) -> ModelReport:
        """The float model's figures, on the first dataset."""
        return self.comparisons[0].float_model

    @property
    def models(self) -> tuple[ModelReport, ...]:
        """The float model, then the quantized ones, on the first dataset."""
        return (self.float_model, *(comparison.quantized_model for comparison in self.by_model))

    @property
    def by_model(self) -> tuple[ModelComparison, ...]:
        """One entry per quantized model, on the first dataset, for figures that do not depend on the data."""
        return self.on(self.datasets[0])

    def on(self, dataset: UsedData) -> tuple[ModelComparison, ...]:
        """Returns one entry a quantized model, on this dataset."""
        return tuple(comparison for comparison in self.comparisons if comparison.dataset == dataset.name)

    def called(self, comparison: ModelComparison) -> str:
        """Returns the label that distinguishes a comparison: its model, its dataset, both, or nothing."""
        return self.described(comparison.quantized_model.name, comparison.dataset if len(self.datasets) > 1 else "")

    def described(self, model: str, dataset: str) -> str:
        """Returns the model where there are several, and the dataset where there is one to name."""
        return " on ".join(filter(None, (model if len(self.by_model) > 1 else "", dataset)))
