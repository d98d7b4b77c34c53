"""Checks a quantized model against the constraints of a target."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common

from qtool.backends.onnxruntime_cpu.saturation_proof import SaturationProof, prove
from qtool.backends.registry import backend_named
from qtool.backends.violations import Violation
from qtool.errors import GateError
from qtool.formats.onnx.onnx_file import OnnxFile
from qtool.graph.constants import constant_array
from qtool.schemes import Scheme
from qtool.workflows.diagnose.verify import onnx_path


@dataclass(frozen=True, slots=True, kw_only=True)
class Misfit:
    """A quantized tensor that the target does not support.

    Attributes:
        tensor: its name.
        problem: the reason.
    """

    tensor: str
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetReport:
    """The result of checking a model against a target.

    Attributes:
        target: its name among the presets.
        machine: its description.
        misfits: quantized tensors that it does not support, in graph order.
        violations: what its runtime does not take, by its published rules.
        placement_only: whether these rules are all that is known of it, since it is not run here.
        proof: whether the model's sums can overflow there.
    """

    target: str
    machine: str
    misfits: tuple[Misfit, ...]
    violations: tuple[Violation, ...]
    placement_only: bool
    proof: SaturationProof


def check_target(path: Path, scheme: Scheme) -> TargetReport:
    """Reads a quantized model, made by any tool, and checks its integers against a preset.

    Raises:
        FormatError: the file cannot be read.
        InputError: the file is not an ONNX graph.
    """
    model = OnnxFile().read(onnx_path(path))
    common.NameFixPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    # Where zero points are free, kernels for the other sign exist as well, though slower ones.
    strict = scheme.activations.signed and scheme.activations.symmetric
    return TargetReport(
        target=scheme.target,
        machine=scheme.machine,
        misfits=_misfits(model, float8=scheme.takes_float8) if strict else (),
        violations=backend_named(scheme.backend).violations(model),
        placement_only=scheme.placement_only,
        proof=prove(model, scheme),
    )


def check_gate(report: TargetReport) -> None:
    """Checks a report against its gate.

    Raises:
        GateError: the target does not support the model, or can overflow.
    """
    fix = f"quantize the float model again with --target {report.target}"
    if report.misfits:
        first = report.misfits[0]
        fix = f"{fix} --activation-type e4m3" if "FLOAT8" in first.problem else fix
        raise GateError(
            f"{report.machine} does not support {len(report.misfits)} quantized tensors, '{first.tensor}' first: "
            f"{first.problem}",
            fix=fix,
        )
    if report.violations:
        wrong = report.violations[0]
        raise GateError(
            f"{report.machine} does not take the graph as it is ({len(report.violations)} findings), "
            f"'{wrong.node}' first: {wrong.problem}",
            fix=wrong.fix,
        )
    unsafe = [layer for layer in report.proof.layers if not layer.safe]
    if unsafe:
        raise GateError(
            f"{len(unsafe)} of {len(report.proof.layers)} integer layers can overflow on {report.machine}, "
            f"'{unsafe[0].node}' first",
            fix=fix,
        )


def _misfits(model: ir.Model, *, float8: bool) -> tuple[Misfit, ...]:
    """Finds the tensors of Q and DQ that are not symmetric s8, or e4m3 where the runtime takes that."""
    found: dict[str, str] = {}
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or not node.inputs:
            continue
        value = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
        if value is None:
            continue
        problem = _problem(node, value, float8=float8)
        if problem is not None:
            found.setdefault(value.name or "", problem)
    return tuple(Misfit(tensor=tensor, problem=problem) for tensor, problem in found.items())


def _problem(node: ir.Node, value: ir.Value, *, float8: bool) -> str | None:
    zero_point = node.inputs[2] if len(node.inputs) > 2 else None
    # Without a zero point QuantizeLinear makes u8; DequantizeLinear reads any type.
    default = value.dtype if node.op_type == "DequantizeLinear" else ir.DataType.UINT8
    kind = default if zero_point is None else zero_point.dtype
    if float8 and kind == ir.DataType.FLOAT8E4M3FN:
        return None
    if kind is not None and kind != ir.DataType.INT8:
        return f"it is {kind}, not INT8"
    zeros = constant_array(zero_point)
    if zeros is not None and zeros.any():
        return "its zero point is not 0"
    return None
