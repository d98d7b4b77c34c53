"""What a dynamic quantization is asked for, and what it did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qtool.backends.onnxruntime_cpu.coverage import Coverage
from qtool.backends.onnxruntime_cpu.this_machine import scheme_here
from qtool.manifest import Manifest
from qtool.metrics.fidelity import OutputFidelity
from qtool.metrics.outlook import Outlook
from qtool.plan import DynamicPlan
from qtool.qdq.store_tables import StoredTable
from qtool.schemes import DynamicScheme, as_dynamic
from qtool.selection import NodeSelection
from qtool.workflows.convert.model_source import ModelSource
from qtool.workflows.quantize.data_request import DataRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicRequest:
    """What to quantize, and how.

    Attributes:
        source: the float model.
        data: samples to compare the result on; None for random inputs.
        scheme: which integers weights become; without one, those that this machine runs fastest.
        selection: which nodes may be quantized.
        output: the file to write; None names it after the model.
        output_dir: where an output without a name goes; None for beside the model.
        threads: threads inside an operator; 0 is one a core.
        force: whether existing outputs may be replaced.
        arguments: the options as a person gave them, for the manifest.
        locked: the manifest of the run to repeat; None for a run of its own.
    """

    source: ModelSource
    data: DataRequest | None = None
    scheme: DynamicScheme = field(default_factory=lambda: as_dynamic(scheme_here()))
    selection: NodeSelection = field(default_factory=NodeSelection)
    output: Path | None = None
    output_dir: Path | None = None
    threads: int = 0
    force: bool = False
    arguments: tuple[str, ...] = ()
    locked: Manifest | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicReport:
    """What a quantization did.

    Attributes:
        output: the quantized model.
        manifest: the record beside it.
        float_model: the float model to compare it with; made on the way where the source is no ONNX file.
        plan: what was quantized, and what was not.
        coverage: what onnxruntime runs on integers.
        dead_channels: by weight, the channels that are all zero.
        tables: the embedding tables that are stored as integers.
        fidelity: how close each output stays to the float model's.
        outlooks: what to expect of outputs on other data, by output.
        compared_on: the samples that ``fidelity`` comes from, in words.
        compared_on_data: whether they are real data.
        float_bytes: size of the float model on disk.
        quantized_bytes: size of the quantized model on disk.
    """

    output: Path
    manifest: Path
    float_model: Path
    plan: DynamicPlan
    coverage: Coverage
    dead_channels: Mapping[str, tuple[int, ...]]
    tables: tuple[StoredTable, ...]
    fidelity: tuple[OutputFidelity, ...]
    outlooks: Mapping[str, Outlook]
    compared_on: str
    compared_on_data: bool
    float_bytes: int
    quantized_bytes: int
