"""Exports small modules, and runs what came of them."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from torch import nn


def export(module: nn.Module, example: torch.Tensor, path: Path, *, dynamo: bool) -> Path:
    names = {"input_names": ["x"], "output_names": ["y"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            torch.onnx.export(module.eval(), (example,), path, **names, external_data=False, verbose=False)
        else:
            torch.onnx.export(module.eval(), (example,), path, **names, dynamo=False, opset_version=17)
    return path


def run(path: Path, example: torch.Tensor) -> Any:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": example.numpy()})[0]


def merged_module(module: nn.Module, state: dict[str, torch.Tensor]) -> nn.Module:
    """Returns a copy of ``module`` with the weights of ``state``."""
    other = copy.deepcopy(module).eval()
    other.load_state_dict(state)
    return other


def scales_of(path: Path) -> dict[str, float]:
    """Returns the scale of each activation by name."""
    graph = onnx.load(path).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return {node.input[0]: float(stored[node.input[1]]) for node in graph.node if node.op_type == "QuantizeLinear"}


def stored_arrays(path: Path) -> dict[str, Any]:
    """Returns the stored tensors of a graph by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
