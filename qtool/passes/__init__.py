"""Graph passes that prepare a float model for quantization, in order; each preserves the model's outputs.

A new pass is a new file and a line in ``PREPARE_PASSES``.
"""

from __future__ import annotations

from collections.abc import Mapping

# Each is described at the top of its file. The order matters: constants must be initializers before they fold, and
# subtractions must become additions before those are matched.
PREPARE_PASSES: Mapping[str, str] = {
    "inline-functions": "qtool.passes.normalization.normalize:InlineFunctions",
    "raise-opset": "qtool.passes.normalization.raise_opset:RaiseOpset",
    "constants-to-initializers": "qtool.passes.normalization.normalize:ConstantsToInitializers",
    "half-to-float": "qtool.passes.half.half_to_float:HalfToFloat",
    "fold-constants": "qtool.passes.quantization.fold_constants:FoldConstants",
    "separate-constant-outputs": "qtool.passes.normalization.separate_outputs:SeparateConstantOutputs",
    "einsum-to-matmul": "qtool.passes.quantization.einsum_to_matmul:EinsumToMatMul",
    "fold-weight-transposes": "qtool.passes.quantization.fold_weight_transposes:FoldWeightTransposes",
    "untie-tables": "qtool.passes.quantization.untie_tables:UntieTables",
    "arithmetic": "qtool.passes.quantization.arithmetic:CanonicalArithmetic",
    "prelu-to-leaky-relu": "qtool.passes.quantization.prelu_to_leaky_relu:PReluToLeakyRelu",
    "hard-swish": "qtool.passes.quantization.hard_swish:SpellOutHardSwish",
    "fold-gemm-factors": "qtool.passes.quantization.fold_gemm_factors:FoldGemmFactors",
    "join-constant-chains": "qtool.passes.quantization.constant_chains:JoinConstantChains",
    "fold-affine": "qtool.passes.quantization.fold_affine:FoldAffine",
    "fold-scales-back": "qtool.passes.quantization.fold_scales_back:FoldScalesBack",
    "transposed-conv": "qtool.passes.quantization.transposed_conv:TransposedConvToConv",
    "fold-into-next": "qtool.passes.quantization.fold_into_next:FoldIntoNext",
    "matmul-add-to-gemm": "qtool.passes.quantization.matmul_add_to_gemm:MatMulAddToGemm",
    "mean-to-pool": "qtool.passes.quantization.mean_to_pool:MeanToGlobalAveragePool",
    "hoist-clamps": "qtool.passes.quantization.hoist_clamps:HoistClamps",
    "join-relus": "qtool.passes.quantization.join_relus:JoinRelus",
    "tidy": "qtool.passes.normalization.normalize:Tidy",
    "pad-all-axes": "qtool.passes.quantization.pad_all_axes:PadAllAxes",
    "explicit-bias": "qtool.passes.quantization.explicit_bias:ExplicitBias",
}
# They help only where onnxruntime's CPU provider passes integers from layer to layer, with fused clamps.
FOR_INTEGERS_BETWEEN_LAYERS = frozenset({"hard-swish", "transposed-conv"})
