"""What requests of static and of dynamic quantization share, and what their reports do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qtool.backends.coverage import Coverage
from qtool.manifest import Manifest
from qtool.metrics.fidelity import OutputFidelity
from qtool.metrics.outlook import Outlook
from qtool.qdq.store_tables import StoredTable
from qtool.selection import NodeSelection
from qtool.workflows.convert.model_source import ModelSource
from qtool.workflows.quantize.data_request import DataRequest
from qtool.workflows.quantize.quantize_files import destination


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedRequest:
    """The options of every quantization.

    Attributes:
        source: the float model.
        data: samples to compare the result on; a static quantization calibrates on them, too.
        selection: which nodes may be quantized.
        output: the file to write; None names it after the model.
        output_dir: folder of an output without a name; None for the model's folder.
        threads: threads inside an operator; 0 is one per core.
        force: whether existing outputs may be replaced.
        arguments: the options as given, for the manifest.
        locked: the manifest of the run to repeat; None for a new run.
    """

    source: ModelSource
    data: DataRequest | None = None
    selection: NodeSelection = field(default_factory=NodeSelection)
    output: Path | None = None
    output_dir: Path | None = None
    threads: int = 0
    force: bool = False
    arguments: tuple[str, ...] = ()
    locked: Manifest | None = None

    @property
    def destination(self) -> Path:
        """The path of the quantized model."""
        return destination(self.source, self.output, self.output_dir)


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedReport:
    """The result of every quantization.

    Attributes:
        output: the quantized model.
        manifest: its manifest file.
        float_model: the float model to compare it with; exported where the source is not an ONNX file.
        coverage: the nodes that onnxruntime runs on integers.
        tables: the embedding tables that are stored as integers.
        fidelity: how close each output stays to the float model's.
        outlooks: expected fidelity on other data, by output.
        compared_on: the samples of ``fidelity``, in words.
        compared_on_data: whether they are real data.
        float_bytes: size of the float model on disk.
        quantized_bytes: size of the quantized model on disk.
    """

    output: Path
    manifest: Path
    float_model: Path
    coverage: Coverage
    tables: tuple[StoredTable, ...]
    fidelity: tuple[OutputFidelity, ...]
    outlooks: Mapping[str, Outlook]
    compared_on: str
    compared_on_data: bool
    float_bytes: int
    quantized_bytes: int
