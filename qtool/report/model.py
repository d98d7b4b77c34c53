"""The report as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qtool.metrics.accuracy import Accuracy
from qtool.metrics.fidelity import OutputFidelity
from qtool.metrics.latency import Latency, Ratio
from qtool.metrics.memory import Memory


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReport:
    """What was measured on one model alone.

    Attributes:
        path: the file, as it was given.
        size_bytes: on disk, external data included.
        accuracy: on the labels; None without labels.
        latency: of one sample; None where it was not to be measured.
        throughput: samples a second in batches of the report's batch size; None where latency is.
        memory: of a process that runs it once.
    """

    path: str
    size_bytes: int
    accuracy: Accuracy | None
    latency: Latency | None
    throughput: float | None
    memory: Memory


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
class Report:
    """Compares a quantized model with the float model it was made from.

    Attributes:
        float_model: the float model's figures.
        quantized_model: the quantized model's figures.
        fidelity: how close the outputs are, one entry an output.
        speedup: float time over quantized time, from paired rounds; None where latency was not to be measured.
        data: what both models ran on.
        labels: the name of the labels; None without labels.
        samples: how many samples both ran on.
        batch_size: samples a run.
        threads: threads inside an operator; 0 is one a core.
        rounds: rounds of the latency measurement.
        versions: of the packages that have a say in the figures.
        machine: where it was measured.
    """

    float_model: ModelReport
    quantized_model: ModelReport
    fidelity: tuple[OutputFidelity, ...]
    speedup: Ratio | None
    data: str
    labels: str | None
    samples: int
    batch_size: int
    threads: int
    rounds: int
    versions: Mapping[str, str]
    machine: Machine
