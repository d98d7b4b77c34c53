"""What stands in graphs and plans, and what comes out of models, as tests compare it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from qtool.backends.targets import PRESETS
from qtool.plan import DynamicPlan, Plan
from qtool.planning import build_plan
from qtool.runtime.session import Session
from qtool.schemes import Scheme
from qtool.selection import NodeSelection

X86 = PRESETS["x86"]


def operators_of(model: ir.Model) -> list[str]:
    """Returns the operators of a graph, in its order."""
    return [node.op_type for node in model.graph]


def counted_operators(path: Path | str) -> Counter[str]:
    """Returns how often each operator stands in the graph of a file."""
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def initializers_of(path: Path) -> dict[str, np.ndarray]:
    """Returns the stored tensors of a file by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def plan_of(model: ir.Model, scheme: Scheme = X86, **selection: tuple[str, ...]) -> Plan:
    """Returns the plan for a prepared graph, of all nodes or of a selection."""
    return build_plan(model, scheme, NodeSelection(**selection))


def integer_operators(plan: Plan) -> list[str]:
    """Returns the operators that are to run on integers, in the graph's order."""
    return list(plan.integer_nodes.values())


def reason_of(plan: Plan | DynamicPlan, node: str) -> str:
    """Returns why a node stays float."""
    return next(skip.reason for skip in plan.skipped if skip.node == node)


def logits_of(path: Path, images: np.ndarray) -> np.ndarray:
    """Returns what a digit classifier makes of images."""
    return Session(path).run({"image": images})["logits"]
