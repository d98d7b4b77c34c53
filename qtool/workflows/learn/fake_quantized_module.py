"""Fake quantization of a torch module, exactly as a target will run it, for a training loop of one's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes import common

from qtool.atomic import check_output, staged
from qtool.backends.registry import backend_named
from qtool.backends.this_machine import scheme_here
from qtool.calib.collect import collect
from qtool.calib.ranges import RangeMethod
from qtool.calib.ranges.min_max import MinMax
from qtool.calib.specs import Feed
from qtool.errors import InputError, UsageError
from qtool.formats.base import Weights
from qtool.graph.constants import constant_array
from qtool.learn.differentiable_graph import DifferentiableGraph
from qtool.learn.learned_quantization import FloatWeight, LearnedQuantization
from qtool.learn.tensors import tensor_of
from qtool.plan import Plan
from qtool.planning import build_plan
from qtool.progress import SILENT, Progress
from qtool.quantizer import quantize_graph
from qtool.runtime.graphs import open_graph, watching
from qtool.runtime.session import Session, Watcher
from qtool.schemes import Scheme
from qtool.selection import NodeSelection
from qtool.workflows.convert.model_source import save_graph
from qtool.workflows.convert.torch_import import InputDescription, import_weights
from qtool.workflows.learn.pair_limits import limit_of_pairs
from qtool.workflows.quantize.prepare import prepare as prepared_graph

Example: TypeAlias = torch.Tensor | Sequence[torch.Tensor] | Mapping[str, torch.Tensor]

# Kernels add up in another order than torch, and a value between two integers falls to either side.
_LEAST_DB = 20.0


class FakeQuantizedModule(torch.nn.Module):
    """A module whose fake quantization is what the target runs: its placement, its grids, its rounding.

    Its parameters are float weights, biases as changes in units of their spread, and scales as logarithms of their
    change. Batch normalizations are folded, and dropout is gone, as in a model that is deployed.

    Attributes:
        scheme: the integers that tensors become.
        plan: what is quantized, and what stays float for which reason.
    """

    def __init__(
        self, model: ir.Model, plan: Plan, scheme: Scheme, weights: Mapping[str, FloatWeight], device: torch.device
    ) -> None:
        """Takes a QDQ graph; ``weights`` are the floats that its integers were rounded from."""
        super().__init__()
        self.scheme = scheme
        self.plan = plan
        self._model = model
        self._device = device
        self._learned = LearnedQuantization(model, weights=weights, device=device)
        self._graph = DifferentiableGraph(model, device=device)
        self._bounded = limit_of_pairs(model)
        self._inputs = [value.name or "" for value in model.graph.inputs]
        self._outputs = [value.name or "" for value in model.graph.outputs]
        self.learned = torch.nn.ParameterList(list(self._learned.parameters()))

    def forward(self, *inputs: torch.Tensor, **named: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Returns the module's output, or outputs, with fake quantization."""
        feed = {**dict(zip(self._inputs, inputs, strict=False)), **named}
        found = self._graph.run(feed, self._outputs, self._learned.values())
        outputs = tuple(found[name] for name in self._outputs)
        return outputs if len(outputs) > 1 else outputs[0]

    def graph(self) -> ir.Model:
        """Returns the QDQ graph with the integers and scales as they are now."""
        model = self._model.clone()
        self._learned.store(model)
        if self._bounded is not None:
            self._bounded(model)
        return model


def prepare(
    module: torch.nn.Module,
    example: Example,
    scheme: Scheme | None = None,
    *,
    method: RangeMethod | None = None,
    selection: NodeSelection | None = None,
    device: str = "cpu",
    progress: Progress = SILENT,
) -> FakeQuantizedModule:
    """Returns ``module`` with fake quantization, ready to be trained; ``module`` itself is not modified.

    Args:
        module: a float module.
        example: a batch that looks like real use: a tensor, a tensor per positional input, or one per name. Ranges of
            activations are those of this batch to begin with. The first axis counts samples.
        scheme: which integers tensors become and for which target; that of this machine by default.
        method: makes a range of what was seen; from the smallest to the largest value by default.
        selection: which nodes may be quantized.
        device: where to train.
        progress: receives the steps.

    Raises:
        UsageError: an input is missing.
        FormatError: torch cannot export the module.
        InputError: nothing in it can be quantized.
    """
    scheme = scheme or scheme_here()
    feed = _feed(module, example)
    shapes: dict[str, tuple[int | str, ...]] = {name: ("batch", *array.shape[1:]) for name, array in feed.items()}
    was_training = module.training
    module.eval()
    try:
        imported = import_weights(
            Weights(tensors=module.state_dict(), metadata={}, source="a module", module=module),
            Path(type(module).__name__),
            architecture=None,
            inputs=InputDescription(shapes=shapes, feeds=feed),
            opset=None,
            progress=progress,
        )
    finally:
        module.train(was_training)
    common.NameFixPass()(imported.model)
    model = prepared_graph(imported.model, integers_between_layers=scheme.integers_between_layers)
    plan = build_plan(model, scheme, selection or NodeSelection())
    weights = dict(_float_weights(model, plan))
    with watching(model, plan.observed) as graph, open_graph(graph) as session:
        statistics = collect(Watcher(session), [feed], plan.observed).statistics
    quantize_graph(model, plan, statistics, method or MinMax(), bias_correction=False)
    backend_named(scheme.backend).finish(model, scheme)
    return FakeQuantizedModule(model, plan, scheme, weights, torch.device(device))


def export(module: FakeQuantizedModule, path: Path | str, *, example: Example, force: bool = False) -> Path:
    """Writes the QDQ graph whose integers and scales are those that were trained, and returns its path.

    Args:
        module: what ``prepare`` returned, after training.
        path: the file to write.
        example: a batch to compare with: what onnxruntime computes has to be what the module does.
        force: whether an existing file may be replaced.

    Raises:
        OutputError: the file exists, or its folder does not.
        InputError: onnxruntime computes something else.
        RuntimeRefusedError: onnxruntime does not load the graph.
    """
    output = Path(path)
    check_output(output, force=force)
    feed = _feed(module, example)
    with staged(output) as file:
        save_graph(module.graph(), file)
        found = Session(file).run(feed)
        with torch.no_grad():
            given = {name: tensor_of(array, torch.device("cpu")) for name, array in feed.items()}
            wanted = module(**given)
        _check(found, wanted if isinstance(wanted, tuple) else (wanted,))
    return output


def _check(found: Feed, wanted: Sequence[torch.Tensor]) -> None:
    for (name, array), tensor in zip(found.items(), wanted, strict=True):
        signal = tensor.detach().cpu().numpy().astype(np.float64)
        noise = float(np.square(array - signal).sum())
        if noise > float(np.square(signal).sum()) * 10 ** (-_LEAST_DB / 10):
            raise InputError(
                f"onnxruntime computes another '{name}' than the trained module",
                fix="train for the target of this machine, or report the module",
            )


def _float_weights(model: ir.Model, plan: Plan) -> Iterator[tuple[str, FloatWeight]]:
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    for name, weight in plan.weights.items():
        array = constant_array(values[name])
        if array is not None:
            yield name, FloatWeight(array=np.array(array, np.float32), low=weight.grid.low, high=weight.grid.high)


def _feed(module: torch.nn.Module, example: Example) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]:
    """Returns the example by the names of the module's inputs."""
    if isinstance(example, Mapping):
        named = dict(example)
    else:
        given = [example] if isinstance(example, torch.Tensor) else list(example)
        names = _input_names(module)
        if len(given) > len(names):
            raise UsageError(f"the module takes {len(names)} inputs, the example has {len(given)}", fix="drop some")
        named = dict(zip(names, given, strict=False))
    if not named:
        raise UsageError("the example has no tensor", fix="give a batch that looks like real use")
    return {name: tensor.detach().cpu().numpy() for name, tensor in named.items()}


def _input_names(module: torch.nn.Module) -> list[str]:
    from inspect import Parameter, signature

    if isinstance(module, FakeQuantizedModule):
        return [value.name or "" for value in module.graph().graph.inputs]
    kinds = {Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD}
    return [name for name, parameter in signature(module.forward).parameters.items() if parameter.kind in kinds]
