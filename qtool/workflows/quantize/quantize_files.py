"""The files of a quantization: its output, and the float model that it is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from qtool.atomic import check_output
from qtool.errors import OutputError, UsageError
from qtool.fingerprint import file_sha256
from qtool.formats.onnx.ir_versions import lowest_ir_version
from qtool.workflows.convert.model_source import ModelSource, save_graph

QUANTIZED_SUFFIX = ".int8.onnx"


@dataclass(frozen=True, slots=True)
class FloatModel:
    """A float model in a file.

    Attributes:
        path: its final path.
        file: its staged path until then.
    """

    path: Path
    file: Path


def destination(source: ModelSource, output: Path | None, output_dir: Path | None) -> Path:
    """Returns the path of a quantized model: ``output``, or a name derived from the model's."""
    if output is not None:
        return output
    return (output_dir or source.path.parent) / f"{source.stem}{QUANTIZED_SUFFIX}"


def check_destination(output: Path, source: ModelSource, *, force: bool) -> None:
    """Raises an error for an output that cannot be written, before anything is read.

    Raises:
        UsageError: it does not end in .onnx, or is the input.
        OutputError: it exists, or its folder does not.
    """
    if output.suffix != ".onnx":
        raise UsageError(f"the output {output} does not end in .onnx", fix="quantized models are ONNX: -o name.onnx")
    if output.resolve() == source.path.resolve():
        raise UsageError("the output is the input", fix="name another file with -o")
    check_output(output, force=force)


def float_model(original: ir.Model, source: ModelSource, output: Path, staging: Path, *, force: bool) -> FloatModel:
    """Returns the float model that ``output`` is made from; an exported one is written next to it.

    Args:
        original: the float graph.
        source: the file it was read from.
        output: the path of the quantized model.
        staging: the path where the quantized model is written first.
        force: whether a different float model that exists there may be replaced.

    Raises:
        OutputError: a different float model exists there.
    """
    if source.is_graph:
        return FloatModel(source.path, source.path)
    path = output.with_name(f"{source.stem}.onnx")
    file = staging.with_name(path.name)
    # As `qtool convert` writes it, so that both give the same bytes.
    original.ir_version = lowest_ir_version(original)
    save_graph(original, file)
    if path.exists() and not force and file_sha256(path) != file_sha256(file):
        raise OutputError(
            f"the exported float model differs from the existing {path}",
            fix="pass --force to replace it, or name an output in another folder with -o",
        )
    return FloatModel(path, file)
