"""Converts graphs to another opset."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import onnx_ir as ir
from onnxscript.version_converter import ConvertVersionPass

from qtool.errors import InputError, UsageError
from qtool.formats.library_noise import quiet_libraries
from qtool.formats.onnx.shape_inference import infer_shapes
from qtool.graph.maps_aside import put_maps_back, take_maps_aside
from qtool.passes.normalization.normalize import ConstantsToInitializers, InlineFunctions
from qtool.passes.normalization.raise_opset import FIRST_OPSET_WITH_RESIZE_MODES, keep_resizing
from qtool.workflows.convert.older_forms import has_older_name
from qtool.workflows.convert.older_opsets import is_default, restamp, says_nothing

# Before 7, operators broadcast in ways that the converter does not support.
_LOWEST_OPSET = 7
# The converter's errors for operators without a rule.
_NO_WAY = ("No Adapter", "no registered schema")


def to_opset(model: ir.Model, opset: int) -> ir.Model:
    """Returns the graph with the operators of ``opset``; ``model`` may be modified.

    Raises:
        UsageError: there is no such opset.
        InputError: an operator of the graph has no form in it.
    """
    newest = onnx.defs.onnx_opset_version()
    if not _LOWEST_OPSET <= opset <= newest:
        raise UsageError(f"opset {opset} is not supported", fix=f"choose one from {_LOWEST_OPSET} to {newest}")
    have = model.opset_imports.get("", newest)
    if have > newest:
        raise InputError(
            f"the graph has opset {have}, and the installed onnx {onnx.__version__} supports opsets up to {newest}",
            fix="install a newer onnx, or export the model again with an older opset",
        )
    if have == opset:
        return model
    maps = take_maps_aside(model)
    result = _lowered(model, have, opset) if opset < have else _raised(model, have, opset)
    put_maps_back(result, maps)
    if have < FIRST_OPSET_WITH_RESIZE_MODES <= opset:
        keep_resizing(result)
    return result


def _lowered(model: ir.Model, have: int, opset: int) -> ir.Model:
    """Uses the definitions of the operators first, and onnx's converter where they are not enough."""
    _check_operators(model, have, opset)
    model = _plain(model)
    untouched = model.clone()
    try:
        return restamp(model, opset)
    except InputError as refused:
        try:
            with quiet_libraries(), _logged_reasons():
                result = ConvertVersionPass(target_version=opset, fallback=True)(untouched).model
        except Exception as error:  # the converter raises whatever its C++ part throws
            raise refused from error
        if result.opset_imports.get("", 0) != opset:
            raise
        _drop_newer_attributes(result, have, opset)
        return result


def _raised(model: ir.Model, have: int, opset: int) -> ir.Model:
    try:
        with quiet_libraries(), _logged_reasons() as reasons:
            result = ConvertVersionPass(target_version=opset, fallback=True)(model).model
    except Exception as error:  # the converter raises whatever its C++ part throws
        if any(said in str(error) for said in _NO_WAY):
            return restamp(_plain(model), opset)
        raise _unconvertible(have, opset, str(error)) from error
    if result.opset_imports.get("", 0) != opset and any(said in "".join(reasons) for said in _NO_WAY):
        return restamp(_plain(result), opset)
    if result.opset_imports.get("", 0) != opset:
        raise _unconvertible(have, opset, reasons[-1] if reasons else "")
    return result


def _plain(model: ir.Model) -> ir.Model:
    """Returns the model without functions and Constant nodes, and with the shapes that can be known."""
    with quiet_libraries():
        for graph_pass in (InlineFunctions(), ConstantsToInitializers()):
            model = graph_pass(model).model
    infer_shapes(model)
    return model


def taken_types(op_type: str, opset: int, position: int, is_input: bool) -> frozenset[str]:
    """Returns the supported element types, such as ``float16``, of an operator's input or output; none if unknown.

    Source: the operator definitions that come with the onnx package.
    """
    if not onnx.defs.has(op_type, opset, ""):
        return frozenset()
    schema = onnx.defs.get_schema(op_type, opset, "")
    formal = schema.inputs if is_input else schema.outputs
    if not formal:
        return frozenset()
    # The last one applies to all that follow, where an operator is variadic.
    name = formal[min(position, len(formal) - 1)].type_str
    texts = next((one.allowed_type_strs for one in schema.type_constraints if one.type_param_str == name), [name])
    return frozenset(text.removeprefix("tensor(").removesuffix(")") for text in texts)


def unknown_operators(model: ir.Model) -> dict[str, int]:
    """Counts the nodes whose operator the ONNX standard does not have, by operator."""
    version = model.opset_imports.get("", onnx.defs.onnx_opset_version())
    kinds = Counter(node.op_type for node in model.graph.all_nodes() if not node.domain)
    return {kind: count for kind, count in sorted(kinds.items()) if not onnx.defs.has(kind, version, "")}


@contextmanager
def _logged_reasons() -> Iterator[list[str]]:
    """Collects why the converter gave up: it tells its log, and returns the graph as it was."""
    reasons: list[str] = []

    class Gather(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info and record.exc_info[1]:
                reasons.append(str(record.exc_info[1]))

    logger, handler = logging.getLogger("onnxscript.version_converter"), Gather()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        yield reasons
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def _check_operators(model: ir.Model, have: int, opset: int) -> None:
    """Names an operator that the older opset does not have; the converter itself keeps its reasons to its log."""
    for node in model.graph.all_nodes():
        if node.domain or not onnx.defs.has(node.op_type, ""):
            continue
        if not onnx.defs.has(node.op_type, opset, "") and not has_older_name(node.op_type, opset):
            raise InputError(
                f"the graph cannot go from opset {have} to {opset}, which has no {node.op_type}",
                fix=f"choose opset {_first_opset(node.op_type, have)} or newer",
            )


def _first_opset(op_type: str, newest: int) -> int:
    return next(opset for opset in range(1, newest + 1) if onnx.defs.has(op_type, opset, ""))


def _drop_newer_attributes(model: ir.Model, have: int, opset: int) -> None:
    """Removes attributes that the older operators lack and the converter left, if they have no effect."""
    for node in model.graph.all_nodes():
        if node.domain or not onnx.defs.has(node.op_type, opset, ""):
            continue
        old = onnx.defs.get_schema(node.op_type, opset, "")
        new = onnx.defs.get_schema(node.op_type, have, "")
        for name in [name for name in node.attributes if name not in old.attributes]:
            if not is_default(node, name, new) and not says_nothing(node, name):
                raise _unconvertible(have, opset, f"{node.op_type} '{node.name}' needs its attribute {name}")
            del node.attributes[name]


def _unconvertible(have: int, opset: int, reason: str) -> InputError:
    # The C++ part puts its source location before the message.
    said = reason.strip().splitlines()[-1].rpartition("failed: ")[2] if reason.strip() else ""
    return InputError(
        f"the graph cannot go from opset {have} to {opset}{': ' + said if said else ''}",
        fix="choose an opset nearer to its own",
    )
