"""What a person decides about quantization, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from qtool.calib.grid import Grid
from qtool.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """Says which integers tensors become.

    Attributes:
        activations: the grid of activations, always one scale a tensor.
        weights: the grid of weights.
        per_channel: whether weights get one scale an output channel, where the operator can read that.
        integer_biases: whether biases are stored as int32, or stay float.
        placement: where Q/DQ go, a key of ``PLACEMENTS``.
        largest_pair: what two neighbouring weights of one sign may add up to, so that sums of 16 bits hold their
            products; None where sums have 32 bits.
        unsigned_layers: layers whose weights are u8 instead, whose sums have 32 bits everywhere.
        offers_unsigned: whether that is a choice for single layers; with VNNI it gains nothing and takes longer.
        target: the preset that it comes from.
        machine: what that preset is for, in words.
    """

    activations: Grid
    weights: Grid
    per_channel: bool = True
    integer_biases: bool = True
    placement: str = "onnxruntime-cpu"
    largest_pair: int | None = None
    unsigned_layers: frozenset[str] = frozenset()
    offers_unsigned: bool = False
    target: str = "x86"
    machine: str = "any x86"

    def weights_of(self, layer: str) -> Grid:
        """The grid of the weights of one layer."""
        return _U8_SYMMETRIC if layer in self.unsigned_layers else self.weights

    @property
    def for_cpu(self) -> bool:
        """Whether it is for onnxruntime's CPU provider, whose kernels are there to be seen."""
        return self.placement == "onnxruntime-cpu"

    @property
    def integers_between_layers(self) -> bool:
        """Whether operators between layers run on integers, and clamps inside of them, wherever there are kernels."""
        return self.for_cpu and not self.activations.symmetric

    @property
    def description(self) -> str:
        """The scheme in words, such as ``u8 asymmetric activations, s8 symmetric per-channel weights``."""
        spread = "per-channel" if self.per_channel else "per-tensor"
        return f"{_described(self.activations)} activations, {_described(self.weights)} {spread} weights"


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicScheme:
    """Says which integers weights become when activations are quantized as the model runs.

    Activations are then u8 with a zero point of their own at every run, as DynamicQuantizeLinear makes them.

    Attributes:
        weights: the grid of weights.
        per_channel: whether weights get one scale an output channel, where the kernel can read that.
        largest_pair: as in ``Scheme``.
        target: the preset that it comes from.
    """

    weights: Grid
    per_channel: bool = True
    largest_pair: int | None = None
    target: str = "x86"

    @property
    def description(self) -> str:
        """The scheme in words, such as ``u8 dynamic activations, s8 symmetric per-channel weights``."""
        spread = "per-channel" if self.per_channel else "per-tensor"
        return f"u8 dynamic activations, {_described(self.weights)} {spread} weights"


_U8 = Grid(bits=8, signed=False, symmetric=False)
_U8_SYMMETRIC = Grid(bits=8, signed=False, symmetric=True)
_S8 = Grid(bits=8, signed=True, symmetric=False)
_S8_SYMMETRIC = Grid(bits=8, signed=True, symmetric=True)

# Without VNNI onnxruntime multiplies u8 by s8 with VPMADDUBSW, which saturates at 16 bits
# (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html, Data type selection).
_LARGEST_PAIR = 32767 // 255

# What `--target` takes beside `auto`; README.md and the tests go through it row by row.
PRESETS: Mapping[str, Scheme] = {
    # What holds 16-bit sums is exact with 32 bits, too: one file for a fleet of both kinds.
    "x86": Scheme(
        target="x86",
        machine="any x86, with VNNI or without",
        activations=_U8,
        weights=_S8_SYMMETRIC,
        largest_pair=_LARGEST_PAIR,
    ),
    # u8 activations by s8 weights run 1.6 to 2.4 times faster than float; s8 by s8 hardly faster than float.
    "x86-vnni": Scheme(target="x86-vnni", machine="x86 with VNNI", activations=_U8, weights=_S8_SYMMETRIC),
    "x86-avx2": Scheme(
        target="x86-avx2",
        machine="x86 with AVX2 or AVX-512, but no VNNI",
        activations=_U8,
        weights=_S8_SYMMETRIC,
        largest_pair=_LARGEST_PAIR,
        offers_unsigned=True,
    ),
    # SDOT multiplies s8 by s8 as it is; u8 by s8 flips the weights first, or without dot products the activations
    # (https://github.com/microsoft/onnxruntime/pull/9902). Kernels for symmetric convolutions want s8 weights around 0.
    "arm64": Scheme(target="arm64", machine="64-bit ARM", activations=_S8, weights=_S8_SYMMETRIC),
    # INT8 is signed and symmetric. Q/DQ stand before what layers read, not behind what they compute, and before both
    # sides of a residual Add; biases stay float
    # (https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html).
    "tensorrt": Scheme(
        target="tensorrt",
        machine="TensorRT on NVIDIA GPUs",
        activations=_S8_SYMMETRIC,
        weights=_S8_SYMMETRIC,
        integer_biases=False,
        placement="layer-inputs",
    ),
    # The HTP runs whole groups of Q/DQ only, so that every tensor needs them; u8 is what onnxruntime's own
    # configuration for QNN gives activations, s8 around 0 what per-channel weights need
    # (https://onnxruntime.ai/docs/execution-providers/QNN-ExecutionProvider.html, Generating a quantized model;
    # https://github.com/onnxruntime/onnxruntime-qnn/issues/650).
    "qnn": Scheme(
        target="qnn",
        machine="Qualcomm NPUs through QNN",
        activations=_U8,
        weights=_S8_SYMMETRIC,
        placement="every-tensor",
    ),
    # The preset "mixed" of NNCF: asymmetric activations, symmetric weights, float biases
    # (https://docs.openvino.ai/2025/openvino-workflow/model-optimization-guide/quantizing-models-post-training/basic-quantization-flow.html).
    "openvino": Scheme(
        target="openvino",
        machine="OpenVINO on Intel CPUs with VNNI, GPUs and NPUs",
        activations=_U8,
        weights=_S8_SYMMETRIC,
        integer_biases=False,
        placement="layer-inputs",
    ),
}
AUTO = "auto"


def preset(name: str) -> Scheme:
    """Returns the preset of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in PRESETS:
        near = get_close_matches(name, (AUTO, *PRESETS), n=1, cutoff=0.0)
        raise UsageError(
            f"there is no target '{name}'", fix=f"did you mean '{near[0]}'? all of them: {', '.join((AUTO, *PRESETS))}"
        )
    return PRESETS[name]


def as_dynamic(scheme: Scheme) -> DynamicScheme:
    """Returns what is left of ``scheme`` for activations that are quantized as the model runs."""
    return DynamicScheme(
        weights=scheme.weights,
        per_channel=scheme.per_channel,
        largest_pair=scheme.largest_pair,
        target=scheme.target,
    )


def _described(grid: Grid) -> str:
    return f"{grid.name[0]}{grid.bits} {'symmetric' if grid.symmetric else 'asymmetric'}"
