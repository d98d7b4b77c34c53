"""Explains one node or tensor of a quantized model: why it is float, slow or inaccurate, and how to change that."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common

from qtool.backends.onnxruntime_cpu.coverage import optimized_nodes
from qtool.backends.onnxruntime_cpu.node_fate import fate_of
from qtool.backends.qdq_placement.operators import OPERATORS
from qtool.fingerprint import file_sha256
from qtool.formats.onnx.onnx_file import OnnxFile
from qtool.manifest import Manifest, manifest_path, read_manifest
from qtool.metrics.tensor_error import weight_error
from qtool.progress import Progress
from qtool.qdq.packed_integers import is_packed
from qtool.qdq.quantized_tensors import QuantizedTensor, quantized_tensors
from qtool.workflows.diagnose.explain_advice import Advice, advise
from qtool.workflows.diagnose.explained_facts import NodeFacts, TensorFacts
from qtool.workflows.diagnose.graph_names import find
from qtool.workflows.diagnose.measured_tensors import Measured, measure
from qtool.workflows.diagnose.overflow import warn_of_overflow
from qtool.workflows.diagnose.verify import onnx_path
from qtool.workflows.quantize.data_request import DataRequest
from qtool.workflows.quantize.planned_float import fix_for_plan

# Inputs of nodes with packed integers that are scales or zero points.
_PACKED_PARAMETERS = (2, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainRequest:
    """The options of an explanation.

    Attributes:
        model: a model in QDQ form, or a float one.
        name: of a node or a tensor, or the end of it.
        data: samples to measure errors and times on; None for facts from the graph alone.
        threads: threads inside an operator; 0 is one per core.
    """

    model: Path
    name: str
    data: DataRequest | None = None
    threads: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The explanation of a node or tensor.

    Attributes:
        model: the file.
        name: the full name of the node or tensor.
        node: the node, or the one that makes the tensor.
        tensors: the tensor, or those around the node.
        samples: samples that the errors come from.
        made_with: how the model was quantized, according to its manifest.
        advice: problems, and the options that change them.
    """

    model: Path
    name: str
    node: NodeFacts | None
    tensors: tuple[TensorFacts, ...]
    samples: int
    made_with: str | None
    advice: tuple[Advice, ...]


def explain(request: ExplainRequest, progress: Progress) -> Explanation:
    """Reads a graph and its optimized form in onnxruntime, and with samples compares it with its float form.

    Raises:
        FormatError: the file cannot be read.
        InputError: it is not an ONNX graph, or has no such node or tensor.
        CalibError: the samples do not fit the model.
        RuntimeRefusedError: onnxruntime does not load or run the model.
    """
    path = onnx_path(request.model)
    with progress.task("reading the model"):
        model = OnnxFile().read(path)
    common.NameFixPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    tensors = quantized_tensors(model)
    found = find(model, tensors, request.name)
    roles = _roles(found.node, found.tensor, tensors)
    warn_of_overflow(path, path.name, progress)
    measured = Measured(errors={}, noise_db={}, times={}, samples=0)
    if request.data is not None:
        chosen = [tensors[name] for name in roles if name in tensors and tensors[name].role == "activation"]
        others = [name for name in roles if name not in tensors]
        measured = measure(model, chosen, others, request.data, progress, threads=request.threads)
    manifest = _manifest(request.model, progress)
    facts = tuple(_tensor_facts(name, role, tensors.get(name), measured) for name, role in roles.items())
    node = None
    if found.node is not None:
        with progress.task("opening it in onnxruntime"):
            node = _node_facts(model, found.node, manifest, measured)
    return Explanation(
        model=request.model,
        name=found.tensor or (node.node if node is not None else request.name),
        node=node,
        tensors=facts,
        samples=measured.samples,
        made_with=None if manifest is None else _made_with(manifest.options),
        advice=advise(node, facts),
    )


def _roles(node: ir.Node | None, tensor: str | None, tensors: Mapping[str, QuantizedTensor]) -> dict[str, str]:
    """Returns what to show, by the tensor's name in the float model, each with its part in the question."""
    owners = {id(value): name for name, entry in tensors.items() for value in (entry.value, entry.dequantized)}
    if tensor is not None:
        return {tensor: tensors[tensor].role if tensor in tensors else "float"}
    if node is None:
        raise AssertionError("a name is that of a node or a tensor")
    roles: dict[str, str] = {}
    operator = OPERATORS.get(node.op_type)
    for index, value in enumerate(node.inputs):
        if value is None or not value.name:
            continue
        if operator is not None and operator.data_inputs is not None and index not in (*operator.data_inputs, 2):
            continue
        if is_packed(node) and value.is_initializer() and id(value) not in owners and index in _PACKED_PARAMETERS:
            continue
        name = owners.get(id(value), value.name)
        kind = f" {tensors[name].role}" if name in tensors and tensors[name].role != "activation" else ""
        roles.setdefault(name, f"input{kind}")
    for value in node.outputs:
        if value.name:
            roles.setdefault(owners.get(id(_behind_clamps(value)), value.name), "output")
    return roles


def _behind_clamps(value: ir.Value) -> ir.Value:
    """Follows a value through a Relu or Clip that is its only reader and is fused into the integers after it."""
    uses = list(value.uses())
    if len(uses) == 1 and uses[0].node.op_type in ("Relu", "Clip") and uses[0].idx == 0 and not value.is_graph_output():
        return uses[0].node.outputs[0]
    return value


def _tensor_facts(name: str, role: str, tensor: QuantizedTensor | None, measured: Measured) -> TensorFacts:
    if tensor is None:
        sqnr = measured.noise_db.get(name, math.inf)
        return TensorFacts(
            tensor=name,
            role=role,
            scheme=None,
            low=None,
            high=None,
            error=None,
            sqnr_db=sqnr if math.isfinite(sqnr) else None,
        )
    error = measured.errors.get(name) if tensor.role == "activation" else weight_error(tensor)
    computed = error is not None and tensor.role == "activation"
    return TensorFacts(
        tensor=name,
        role=role,
        scheme=tensor.description,
        low=tensor.low,
        high=tensor.high,
        error=error,
        sqnr_db=error.sqnr_db if error is not None and computed else None,
    )


def _node_facts(model: ir.Model, node: ir.Node, manifest: Manifest | None, measured: Measured) -> NodeFacts:
    planned = {} if manifest is None else {row["node"]: row["reason"] for row in manifest.quantized["float_nodes"]}
    with optimized_nodes(model) as kept:
        fate = fate_of(model, node, kept)
    name = node.name or ""
    reason = planned.get(name)
    if reason is not None and fate.reason is not None:
        fate = replace(fate, fix=fix_for_plan(reason) or fate.fix)
    # Where onnxruntime changed the layout, it names kernels after outputs.
    made = [value.name or "" for output in node.outputs for value in (output, _behind_clamps(output))]
    time = next((measured.times[key] for key in (name, *made) if key in measured.times), None)
    return NodeFacts(node=name, operator=node.op_type, fate=fate, planned=reason, time=time)


def _manifest(model: Path, progress: Progress) -> Manifest | None:
    """Reads the manifest next to a model; one of another file is ignored."""
    path = manifest_path(model)
    if not path.exists():
        return None
    manifest = read_manifest(path)
    if manifest.quantized_model.sha256 != file_sha256(model):
        progress.note(f"{path} is the manifest of another model: ignored")
        return None
    return manifest


def _made_with(options: Mapping[str, Any]) -> str:
    method = options.get("method")
    parts = [str(options.get("scheme", "")), *([str(method["name"])] if isinstance(method, dict) else [])]
    return ", ".join(part for part in parts if part)
