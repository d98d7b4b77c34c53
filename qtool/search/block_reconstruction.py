"""Layer reconstruction over a whole model: fits each quantized layer to the float layer's outputs, in graph order.

Every layer reads the outputs of the layers before it, which are quantized already. Its integers and its bias are
chosen to minimize the error of its output, which also compensates part of the noise in its input. Related work:
M. Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization (AdaRound, ICML 2020) and Y. Li et al.,
BRECQ (ICLR 2021), which learn the rounding by gradient descent; here it is solved in closed form, see ``gptaq``.
Source for biases corrected layer by layer on data: M. Nagel et al., Data-Free Quantization Through Weight
Equalization and Bias Correction (ICCV 2019), section 4.2 and appendix D.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.backends.registry import backend_named
from qtool.calib.affine import AffineParams
from qtool.calib.specs import Feed
from qtool.graph.constants import add_constant, constant_array
from qtool.plan import Plan
from qtool.progress import Progress
from qtool.qdq.insert_qdq import insert_qdq
from qtool.schemes import Scheme
from qtool.search.layer_columns import layer_columns
from qtool.search.segmented_runner import SegmentedRunner
from qtool.weights.bias_correction import bias_place
from qtool.weights.input_hessian import LayerInput, layer_inputs
from qtool.weights.layer_reconstruction import LayerReconstruction, LayerTask, reconstruct_layer
from qtool.weights.padding import mask_of
from qtool.weights.round_to_nearest import QuantizedWeight, quantize_bias

# Biases alone need the means of columns, of which a fraction is enough.
_FEWER_FOR_MEANS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconstruction:
    """The result of a reconstruction; unchanged layers are missing.

    Attributes:
        weights: new integers, by weight.
        biases: new biases, float32, (output channels,), by layer.
        fits: the result for each layer that was visited, by layer.
    """

    weights: Mapping[str, QuantizedWeight]
    biases: Mapping[str, npt.NDArray[np.float32]]
    fits: Mapping[str, LayerReconstruction]


def never() -> bool:
    """Returns False: nothing stops the reconstruction early."""
    return False


def reconstruct(
    model: ir.Model,
    plan: Plan,
    scheme: Scheme,
    activations: Mapping[str, AffineParams],
    weights: Mapping[str, QuantizedWeight],
    feeds: Sequence[Feed],
    progress: Progress,
    *,
    rounding: bool = True,
    biases: bool = True,
    threads: int = 0,
    stop: Callable[[], bool] = never,
) -> Reconstruction:
    """Fits the layers of ``model`` in graph order; the arguments are not modified.

    Holds the inputs and the tensors that cross one cut of the graph, for all of ``feeds``, float and quantized.

    Args:
        model: the prepared float model, its biases not corrected.
        plan: what is quantized in it.
        scheme: which integers tensors become, and for which runtime.
        activations: final quantization parameters by source.
        weights: the integers to start from, by weight.
        feeds: some dozens of samples, in batches.
        progress: receives the steps.
        rounding: whether integers may change.
        biases: whether biases may change.
        threads: threads inside an operator; 0 is one per core.
        stop: called before each layer; True ends the reconstruction with the layers done so far.

    Raises:
        RuntimeRefusedError: onnxruntime does not load or run a part of the graph.
    """
    layers = layer_inputs(model, plan.integer_nodes)
    reconstruction = _LayerByLayer(model, plan, scheme, activations, weights, layers, feeds, threads)
    with progress.task("fitting layers", len(layers)) as advance:
        for layer in layers:
            if stop():
                break
            reconstruction.visit(layer, rounding=rounding, biases=biases)
            advance(1)
    return Reconstruction(weights=reconstruction.weights, biases=reconstruction.biases, fits=reconstruction.fits)


class _LayerByLayer:
    """Runs the float model and the quantized one side by side, up to the same layer."""

    def __init__(
        self,
        model: ir.Model,
        plan: Plan,
        scheme: Scheme,
        activations: Mapping[str, AffineParams],
        weights: Mapping[str, QuantizedWeight],
        layers: Sequence[LayerInput],
        feeds: Sequence[Feed],
        threads: int,
    ) -> None:
        quantized = model.clone()
        insert_qdq(quantized, plan, activations, weights)
        backend_named(scheme.backend).finish(quantized, scheme)
        self._plan = plan
        self._activations = activations
        self._given = weights
        self._masks = [mask_of(feed) for feed in feeds]
        self._graph = quantized.graph
        self._float_nodes = {node.name: node for node in model.graph}
        self._nodes = {node.name: node for node in quantized.graph}
        cuts = [layer.node for layer in layers]
        self._float = SegmentedRunner(model, cuts, feeds, threads=threads)
        # Segments begin after DequantizeLinear, so no integer kernel can be fused anyway.
        self._quantized = SegmentedRunner(quantized, cuts, feeds, threads=threads, level="basic")
        self.weights: dict[str, QuantizedWeight] = {}
        self.biases: dict[str, npt.NDArray[np.float32]] = {}
        self.fits: dict[str, LayerReconstruction] = {}

    def visit(self, layer: LayerInput, *, rounding: bool, biases: bool) -> None:
        """Advances to ``layer`` and fits it."""
        self._float.advance()
        self._quantized.advance()
        node, original = self._nodes[layer.node], self._float_nodes[layer.node]
        values, array = original.inputs[1], constant_array(original.inputs[1])
        source = node.inputs[0]
        if values is None or array is None or source is None:
            raise AssertionError(f"{layer.node} is a layer with stored weights")
        weight_plan = self._plan.weights[layer.weight]
        fewer = 1 if rounding else _FEWER_FOR_MEANS
        wanted = layer_columns(layer, [batch[layer.tensor] for batch in self._float.held], self._masks, fewer)
        given = layer_columns(layer, [batch[source.name or ""] for batch in self._quantized.held], self._masks, fewer)
        # Padding may be NaN in the float model, which integers never are.
        sound = np.isfinite(wanted).all(axis=(0, 1))
        if not sound.any():
            return
        task = LayerTask(
            layer=layer,
            weight=array,
            rounded=self._given[layer.weight],
            orders=weight_plan.orders,
            largest_pair=weight_plan.largest_pair,
            wanted=wanted if sound.all() else wanted[:, :, sound],
            given=given if sound.all() else given[:, :, sound],
            moves_bias=biases and self._has_bias(original, array.shape[layer.output_axis]),
        )
        fit = reconstruct_layer(task, rounding=rounding)
        self.fits[layer.node] = fit
        if fit.weight is not None:
            self.weights[layer.weight] = fit.weight
            self._store_weight(node, fit.weight)
        if fit.bias_change is not None or fit.weight is not None:
            weight = task.rounded if fit.weight is None else fit.weight
            self._store_bias(node, original, weight, fit.bias_change)

    def _has_bias(self, original: ir.Node, channels: int) -> bool:
        place = bias_place(original, channels)
        if place is None:
            return False
        stored = place[0].inputs[place[1]]
        # An Add on integers has its constant on a grid of its own.
        return stored is None or stored.name not in self._plan.weights

    def _store_weight(self, node: ir.Node, weight: QuantizedWeight) -> None:
        value = node.inputs[1]
        dequantize = None if value is None else value.producer()
        if dequantize is None:
            raise AssertionError(f"{node.name} reads integers")
        for index, array in enumerate((weight.integers, weight.params.scale, weight.params.zero_point)):
            _store(dequantize.inputs[index], array)

    def _store_bias(
        self, node: ir.Node, original: ir.Node, weight: QuantizedWeight, change: npt.NDArray[np.float64] | None
    ) -> None:
        """Stores the bias with its change; on integers, its scale follows that of the weight."""
        name = node.name or ""
        place = bias_place(original, weight.params.scale.size if change is None else change.size)
        if place is None:
            return
        reader, index, stored = place
        bias = (stored if change is None else stored + change).astype(np.float32)
        if change is not None:
            self.biases[name] = bias
        target, planned = self._nodes[reader.name], self._plan.biases.get(name)
        if planned is None:
            target.replace_input_with(index, add_constant(self._graph, f"{name}_fitted_bias", bias))
            return
        value = target.inputs[index]
        dequantize = None if value is None else value.producer()
        if dequantize is None:
            raise AssertionError(f"the bias of {name} is stored as integers")
        scale = float(self._activations[self._plan.activations[planned.activation].source].scale)
        integers, product_scale = quantize_bias(bias, weight.params.scale, scale)
        _store(dequantize.inputs[0], integers)
        _store(dequantize.inputs[1], product_scale)


def _store(value: ir.Value | None, array: npt.NDArray[Any]) -> None:
    if value is None or value.const_value is None:
        raise AssertionError("what DequantizeLinear reads of a constant is stored")
    shape = value.const_value.shape.numpy()
    value.const_value = ir.tensor(np.asarray(array, order="C").reshape(shape), name=value.name)
