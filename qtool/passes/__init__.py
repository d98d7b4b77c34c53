"""Graph passes that get a float model ready to be quantized, in order; each keeps what the model computes.

A new pass is a new file and a line in ``PREPARE_PASSES``.
"""

from __future__ import annotations

from collections.abc import Mapping

# What each does stands at the top of its file. The order matters: constants must be initializers before they fold, and
# subtractions must be additions before they are looked for.
PREPARE_PASSES: Mapping[str, str] = {
    "inline-functions": "qtool.passes.normalize:InlineFunctions",
    "raise-opset": "qtool.passes.raise_opset:RaiseOpset",
    "constants-to-initializers": "qtool.passes.normalize:ConstantsToInitializers",
    "half-to-float": "qtool.passes.half_to_float:HalfToFloat",
    "fold-constants": "qtool.passes.fold_constants:FoldConstants",
    "einsum-to-matmul": "qtool.passes.einsum_to_matmul:EinsumToMatMul",
    "fold-weight-transposes": "qtool.passes.fold_weight_transposes:FoldWeightTransposes",
    "untie-tables": "qtool.passes.untie_tables:UntieTables",
    "arithmetic": "qtool.passes.arithmetic:CanonicalArithmetic",
    "prelu-to-leaky-relu": "qtool.passes.prelu_to_leaky_relu:PReluToLeakyRelu",
    "hard-swish": "qtool.passes.hard_swish:SpellOutHardSwish",
    "fold-gemm-factors": "qtool.passes.fold_gemm_factors:FoldGemmFactors",
    "join-constant-chains": "qtool.passes.constant_chains:JoinConstantChains",
    "fold-affine": "qtool.passes.fold_affine:FoldAffine",
    "fold-scales-back": "qtool.passes.fold_scales_back:FoldScalesBack",
    "transposed-conv": "qtool.passes.transposed_conv:TransposedConvToConv",
    "fold-into-next": "qtool.passes.fold_into_next:FoldIntoNext",
    "matmul-add-to-gemm": "qtool.passes.matmul_add_to_gemm:MatMulAddToGemm",
    "mean-to-pool": "qtool.passes.mean_to_pool:MeanToGlobalAveragePool",
    "hoist-clamps": "qtool.passes.hoist_clamps:HoistClamps",
    "join-relus": "qtool.passes.join_relus:JoinRelus",
    "tidy": "qtool.passes.normalize:Tidy",
    "pad-all-axes": "qtool.passes.pad_all_axes:PadAllAxes",
    "explicit-bias": "qtool.passes.explicit_bias:ExplicitBias",
}
# They pay only where onnxruntime's CPU provider carries integers from layer to layer, with clamps inside of them.
FOR_INTEGERS_BETWEEN_LAYERS = frozenset({"hard-swish", "transposed-conv"})
