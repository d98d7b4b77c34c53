"""Dequantizes a quantized model into a float one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from qtool.atomic import check_output, staged
from qtool.backends.execution import OnnxruntimeExecution, as_it_is
from qtool.backends.onnxruntime_cpu.exact_sums import with_exact_sums
from qtool.backends.onnxruntime_cpu.integer_sums import sums_saturate
from qtool.errors import InputError, UsageError
from qtool.formats.onnx.onnx_file import OnnxFile
from qtool.metrics.fidelity import OutputFidelity
from qtool.metrics.size import model_bytes
from qtool.progress import SILENT, Progress
from qtool.qdq.integer_operators_to_qdq import SpellOutIntegers
from qtool.qdq.remove_blocks import RemoveBlocks
from qtool.qdq.remove_dynamic import RemoveDynamic
from qtool.qdq.remove_qdq import RemoveQdq
from qtool.workflows.convert.model_source import save_graph
from qtool.workflows.convert.random_inputs import NoRandomInputsError
from qtool.workflows.diagnose.verify import onnx_path
from qtool.workflows.quantize.check_result import compare_with_float
from qtool.workflows.quantize.decoder_output import bring_decoder_files

FLOAT_SUFFIX = ".float.onnx"
# Operators with integer arithmetic.
_INTEGER_OPERATORS = ("QLinear", "QGemm", "ConvInteger", "MatMulInteger", "DynamicQuantize", "QAttention")
_PACKED = ("MatMulNBits", "GatherBlockQuantized")
_AT_RUN_TIME = ("MatMulInteger", "ConvInteger", "DynamicQuantizeLinear")
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")


@dataclass(frozen=True, slots=True, kw_only=True)
class DequantizeRequest:
    """The options of a dequantization.

    Attributes:
        model: the quantized model, in QDQ format, with integer operators, or with dynamic quantization.
        output: the file to write; None names it after the model.
        output_dir: folder of an output without a name; None for the model's folder.
        force: whether an existing output may be replaced.
    """

    model: Path
    output: Path | None = None
    output_dir: Path | None = None
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DequantizeReport:
    """The result of a dequantization.

    Attributes:
        output: the float model.
        removed: how many QuantizeLinear, DequantizeLinear, DynamicQuantizeLinear and integer operators were removed.
        fidelity: how close the quantized model is to the float one, on random inputs; empty where it accepts none.
        quantized_bytes: size of the quantized model on disk.
        float_bytes: size of the float model on disk.
    """

    output: Path
    removed: int
    fidelity: tuple[OutputFidelity, ...]
    quantized_bytes: int
    float_bytes: int


def dequantize(request: DequantizeRequest, progress: Progress = SILENT) -> DequantizeReport:
    """Writes a float model without quantization whose weights are the dequantized ones.

    Raises:
        FormatError: the file cannot be read.
        InputError: the model is not quantized, or holds an integer operator in an unsupported form.
        OutputError: the output cannot be written.
        RuntimeRefusedError: onnxruntime does not load or run one of the models.
    """
    folder = request.output_dir or request.model.parent
    stem = request.model.stem.removesuffix(".int8")
    output = request.output or folder / f"{stem}{FLOAT_SUFFIX}"
    if output.resolve() == request.model.resolve():
        raise UsageError("the output is the input", fix="name another file with -o")
    check_output(output, force=request.force)
    model = OnnxFile().read(onnx_path(request.model))
    before = [*_conversions(model), *_integer_operators(model)]
    RemoveBlocks()(model)
    RemoveDynamic()(model)
    SpellOutIntegers()(model)
    _check_form(model, request.model, before)
    RemoveQdq()(model)
    left = _conversions(model)
    outputs = [node for node in left if any(value.is_graph_output() for value in node.outputs)]
    if outputs and outputs[0].op_type == "QuantizeLinear":
        raise InputError(
            f"the model has an integer output: '{outputs[0].outputs[0].name}'",
            fix="export or quantize it with float outputs",
        )
    if left:
        raise InputError(
            f"'{left[0].name}' cannot be removed: its scale or zero point is computed at run time",
            fix="only quantization with stored scales can be removed",
        )
    with staged(output) as path:
        with progress.task(f"writing {output.name}"):
            save_graph(model, path)
            bring_decoder_files(request.model, path, output)
        progress.note("comparing the two models in onnxruntime")
        # Keeps the exact meaning of the integers on every processor.
        execution = OnnxruntimeExecution(form=with_exact_sums if sums_saturate() else as_it_is)
        fidelity: tuple[OutputFidelity, ...] = ()
        try:
            with progress.task("comparing"):
                fidelity = compare_with_float(model, request.model, None, execution=execution).fidelity
        except NoRandomInputsError as error:
            progress.note(f"not compared: {error.problem}")
        return DequantizeReport(
            output=output,
            removed=len(before),
            fidelity=fidelity,
            quantized_bytes=model_bytes(request.model),
            float_bytes=model_bytes(path),
        )


def _conversions(model: ir.Model) -> list[ir.Node]:
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    return [node for node in nodes if node.op_type in _CONVERSIONS]


def _integer_operators(model: ir.Model) -> list[ir.Node]:
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    # A product after dynamic quantization stays one product.
    kinds = (*_INTEGER_OPERATORS, *_PACKED)
    return [node for node in nodes if node.op_type.startswith(kinds) and node.op_type not in _AT_RUN_TIME]


def _check_form(model: ir.Model, path: Path, conversions: list[ir.Node]) -> None:
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    left = next((node for node in nodes if node.op_type.startswith((*_INTEGER_OPERATORS, *_PACKED))), None)
    if left is not None:
        named = f"'{left.name}', " if left.name else ""
        raise InputError(
            f"{path} holds {named}a {left.op_type} in a form that cannot be dequantized",
            fix="start from the float model that it was made from",
        )
    if not conversions:
        raise InputError(f"{path} is not quantized", fix="give a model that `qtool quantize` wrote")
