"""The source model of a workflow, in any format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from qtool.calib.datasets.base import Dataset
from qtool.errors import UsageError
from qtool.formats.detect import detect
from qtool.formats.onnx.onnx_file import OnnxFile
from qtool.formats.torch.architecture import Architecture
from qtool.formats.trust import NO_TRUST, Trust
from qtool.formats.weights.sharded_index import weights_stem
from qtool.progress import Progress
from qtool.workflows.convert.convert import load_graph
from qtool.workflows.convert.example_data import example_data


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model file with the options to convert it to a graph.

    Attributes:
        path: the model file.
        architecture: what builds the torch module of weights.
        input_shapes: the shape of each input of the module, with names for free dimensions; None for those of data.
        input_dtypes: element types of inputs, where there is no data.
        trust: which code the file may run when it is opened.
    """

    path: Path
    architecture: Architecture | None = None
    input_shapes: Mapping[str, tuple[int | str, ...]] | None = None
    input_dtypes: Mapping[str, np.dtype[Any]] | None = None
    trust: Trust = NO_TRUST

    @property
    def is_graph(self) -> bool:
        """Whether the file is an ONNX graph.

        Raises:
            FormatError: the file is missing, or of no known format.
        """
        return detect(self.path).format == "onnx"

    @property
    def stem(self) -> str:
        """The file's name without its last suffix, for naming results."""
        return weights_stem(self.path)

    def load(self, progress: Progress, *, dataset: Dataset | None = None) -> ir.Model:
        """Reads the model as a graph; weights are exported and checked against torch.

        Args:
            progress: receives the steps.
            dataset: calibration data, whose shapes are used where ``input_shapes`` is None.

        Raises:
            FormatError: the file cannot be read, or the code, the weights and the inputs do not fit together.
            UsageError: weights came without an architecture, or a graph with one.
            InputError: the exported graph does not compute the same as torch.
        """
        is_graph = self.is_graph
        if is_graph and (self.architecture is not None or self.input_shapes is not None):
            raise UsageError(
                f"{self.path} is a graph: --model and --input-shape have no effect with it", fix="drop them"
            )
        example = None if dataset is None or is_graph else example_data(dataset, self.input_shapes)
        return load_graph(
            self.path,
            architecture=self.architecture,
            input_shapes=self.input_shapes,
            input_dtypes=self.input_dtypes,
            example=example,
            trust=self.trust,
            progress=progress,
        )


def save_graph(model: ir.Model, path: Path) -> None:
    """Writes a graph as ``.onnx``, with external data where its weights are too large for one message."""
    OnnxFile().write(model, path)
