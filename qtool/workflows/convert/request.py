"""Request and report of a conversion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qtool.formats.onnx.external_data import Storage
from qtool.formats.torch.architecture import Architecture
from qtool.formats.trust import NO_TRUST, Trust
from qtool.passes.half.half_precision import KeptFloat32
from qtool.workflows.convert.half_precision import Precision
from qtool.workflows.convert.program_check import ProgramComparison
from qtool.workflows.convert.target_format import TargetFormat
from qtool.workflows.convert.targets.base import IntegerLayers
from qtool.workflows.convert.tensorflow_import import TensorFlowOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertRequest:
    """The options of a conversion.

    Attributes:
        source: the model file.
        target: the format of the result.
        output: the result; None for the source's name with another suffix.
        output_dir: the folder of a result that ``output`` does not name; None for the source's.
        architecture: what builds the torch module of weights.
        input_shapes: the shape of each input, with names for free dimensions.
        input_dtypes: element types of inputs, where there is no data.
        calib_data: real data to compare on.
        preprocess: how images in it become arrays.
        opset: the ONNX opset of the result.
        precision: the precision of the graph; None for unchanged float32.
        storage: where the weights of a graph are kept.
        tensorflow: which part of a TensorFlow model to convert, and its layout.
        trust: which code the source may run when it is opened.
        force: whether an existing result is replaced.
    """

    source: Path
    target: TargetFormat
    output: Path | None = None
    output_dir: Path | None = None
    architecture: Architecture | None = None
    input_shapes: Mapping[str, tuple[int | str, ...]] | None = None
    input_dtypes: Mapping[str, np.dtype[Any]] | None = None
    calib_data: str | None = None
    preprocess: str | None = None
    opset: int | None = None
    precision: Precision | None = None
    storage: Storage = field(default_factory=Storage)
    tensorflow: TensorFlowOptions = field(default_factory=TensorFlowOptions)
    trust: Trust = NO_TRUST
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertReport:
    """The result of a conversion.

    Attributes:
        source: the model file.
        source_kind: its kind, in words.
        source_bytes: its size.
        output: the result.
        output_bytes: its size, with external data.
        target: its format.
        opset: its opset, where it is a graph.
        inputs: its inputs, as ``name (dims)``.
        outputs: its outputs.
        left_out: outputs of the torch module that are not tensors, which the graph does not have.
        tensors: how many tensors it holds, where it holds weights only.
        comparisons: runs of both; empty where weights were copied as they are.
        kept_float: nodes that stay float32 in a graph of half precision, with the reasons.
        integer_layers: what runs on integers in another runtime, of a quantized source.
    """

    source: Path
    source_kind: str
    source_bytes: int
    output: Path
    output_bytes: int
    target: TargetFormat
    opset: int | None = None
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    tensors: int | None = None
    comparisons: tuple[ProgramComparison, ...] = ()
    kept_float: tuple[KeptFloat32, ...] = ()
    integer_layers: IntegerLayers | None = None
