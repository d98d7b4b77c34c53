"""Graph passes that make a float model smaller and faster without changing what it computes, in order.

A new pass is a new file and an entry in ``PASSES``. Fusions match decomposed functions, and run before the passes
that rewrite arithmetic, which would hide these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Runs(StrEnum):
    """When a pass is part of the pipeline without being named."""

    ALWAYS = "always"
    ON_ONNXRUNTIME = "for targets that run onnxruntime's own operators"
    ELSEWHERE = "for targets that do not"
    FOR_INTEGERS = "with --passes integers"
    NAMED = "only when named"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One pass of the pipeline.

    Attributes:
        location: ``module:class`` of the pass.
        effect: what it does, in one line.
        runs: when it runs without being named.
        takes_operators: whether it is constructed with the ``Operators`` that it may use.
        comes_last: whether it runs once, after all others, which would undo its changes.
    """

    location: str
    effect: str
    runs: Runs = Runs.ALWAYS
    takes_operators: bool = False
    comes_last: bool = False


PASSES: Mapping[str, Entry] = {
    "inline-functions": Entry(
        location="qtool.passes.normalization.normalize:InlineFunctions",
        effect="inlines the model's own functions",
    ),
    "lift-constants": Entry(
        location="qtool.passes.optimization.lift_constants:LiftConstants",
        effect="stores every constant as an initializer",
    ),
    "infer-shapes": Entry(
        location="qtool.passes.optimization.infer_shapes:InferShapes", effect="finds types and shapes of all tensors"
    ),
    "fold-constants": Entry(
        location="qtool.passes.optimization.evaluate_constants:EvaluateConstants",
        effect="folds constants, and replaces an If with a known condition by its branch",
    ),
    "unroll-loops": Entry(
        location="qtool.passes.optimization.unroll_loops:UnrollLoops",
        effect="unrolls loops with a small constant number of iterations",
    ),
    "remove-no-ops": Entry(
        location="qtool.passes.optimization.remove_no_ops:RemoveNoOps",
        effect="removes Identity, Dropout and other operators that return their input unchanged",
    ),
    "known-shapes": Entry(
        location="qtool.passes.optimization.known_shapes:KnownShapes",
        effect="stores known shapes as constants, and removes reshapes without effect",
    ),
    "merge-views": Entry(
        location="qtool.passes.optimization.merge_views:MergeViews",
        effect="merges consecutive Reshape, Flatten, Squeeze and Unsqueeze into one",
    ),
    "merge-neighbours": Entry(
        location="qtool.passes.optimization.merge_neighbours:MergeNeighbours",
        effect="merges two consecutive Transpose, Cast, Slice, Concat or clamps into one",
    ),
    "fuse-layer-norm": Entry(
        location="qtool.passes.fusion.fuse_normalization:FuseLayerNormalization",
        effect="recognizes LayerNormalization (opset 17)",
        takes_operators=True,
    ),
    "fuse-rms-norm": Entry(
        location="qtool.passes.fusion.fuse_normalization:FuseRmsNormalization",
        effect="recognizes RMSNormalization (opset 23)",
        takes_operators=True,
    ),
    "fuse-gelu": Entry(
        location="qtool.passes.fusion.fuse_gelu:FuseGelu",
        effect="recognizes Gelu (opset 20, or onnxruntime's) in its forms with Erf, Tanh and Sigmoid",
        takes_operators=True,
    ),
    "fuse-hard-swish": Entry(
        location="qtool.passes.fusion.fuse_swish:FuseHardSwish",
        effect="recognizes HardSwish (opset 14)",
        takes_operators=True,
    ),
    "fuse-swish": Entry(
        location="qtool.passes.fusion.fuse_swish:FuseSwish",
        effect="recognizes SiLU (Swish of opset 24, or onnxruntime's), also as part of SwiGLU",
        takes_operators=True,
    ),
    "fuse-attention": Entry(
        location="qtool.passes.fusion.fuse_attention:FuseAttention",
        effect="recognizes scaled dot-product attention (Attention of opset 23)",
        takes_operators=True,
    ),
    "fuse-for-onnxruntime": Entry(
        location="qtool.passes.fusion.fuse_for_onnxruntime:FuseForOnnxruntime",
        effect="fuses attention, residual normalizations and biased activations into onnxruntime's own operators",
        runs=Runs.ON_ONNXRUNTIME,
    ),
    "fuse-rope": Entry(
        location="qtool.passes.fusion.fuse_rope:FuseRope",
        effect="recognizes rotary embeddings of both layouts (RotaryEmbedding of opset 23, or onnxruntime's)",
        takes_operators=True,
    ),
    "decompose-rope": Entry(
        location="qtool.passes.fusion.decompose_rope:DecomposeRope",
        effect="decomposes RotaryEmbedding into Slice, Mul, Add and Concat",
        runs=Runs.ELSEWHERE,
    ),
    "fold-weight-transposes": Entry(
        location="qtool.passes.quantization.fold_weight_transposes:FoldWeightTransposes",
        effect="stores weights the way their layer reads them",
    ),
    "pad-into-conv": Entry(
        location="qtool.passes.optimization.pad_into_conv:PadIntoConv",
        effect="folds zero padding into Conv",
    ),
    "fold-affine": Entry(
        location="qtool.passes.quantization.fold_affine:FoldAffine",
        effect="folds BatchNormalization, Mul and Add into the Conv, ConvTranspose or Gemm before them",
    ),
    "canonical-arithmetic": Entry(
        location="qtool.passes.quantization.arithmetic:CanonicalArithmetic",
        effect="replaces subtraction of and division by constants by addition and multiplication",
    ),
    "join-constants": Entry(
        location="qtool.passes.quantization.constant_chains:JoinConstantChains",
        effect="merges consecutive Add or Mul with constants, and moves factors towards the next layer",
    ),
    "fold-into-next": Entry(
        location="qtool.passes.quantization.fold_into_next:FoldIntoNext",
        effect="folds Mul and Add with constants into the weights of the next layer",
    ),
    "fold-scales-back": Entry(
        location="qtool.passes.quantization.fold_scales_back:FoldScalesBack",
        effect="folds scalar factors, such as that of attention scores, into the layer before",
    ),
    "matmul-add-to-gemm": Entry(
        location="qtool.passes.quantization.matmul_add_to_gemm:MatMulAddToGemm",
        effect="fuses a MatMul of matrices and its bias into Gemm",
    ),
    "spell-out-hard-swish": Entry(
        location="qtool.passes.quantization.hard_swish:SpellOutHardSwish",
        effect="decomposes HardSwish and HardSigmoid into Mul, Add and Clip, which run on integers",
        runs=Runs.FOR_INTEGERS,
    ),
    "einsum-to-matmul": Entry(
        location="qtool.passes.quantization.einsum_to_matmul:EinsumToMatMul",
        effect="replaces Einsum that is a matrix product by MatMul",
        runs=Runs.FOR_INTEGERS,
    ),
    "prelu-to-leaky-relu": Entry(
        location="qtool.passes.quantization.prelu_to_leaky_relu:PReluToLeakyRelu",
        effect="replaces PRelu with a scalar slope by LeakyRelu, which runs on integers",
        runs=Runs.FOR_INTEGERS,
    ),
    "mean-to-pool": Entry(
        location="qtool.passes.quantization.mean_to_pool:MeanToGlobalAveragePool",
        effect="replaces means over all positions of an image by GlobalAveragePool, which runs on integers",
        runs=Runs.FOR_INTEGERS,
    ),
    "hoist-clamps": Entry(
        location="qtool.passes.quantization.hoist_clamps:HoistClamps",
        effect="moves Relu and Clip before operators that only move values, next to the layer that absorbs them",
        runs=Runs.FOR_INTEGERS,
    ),
    "share-subexpressions": Entry(
        location="qtool.passes.optimization.share_subexpressions:ShareSubexpressions",
        effect="eliminates common subexpressions, and stores equal constants once",
    ),
    "remove-unused": Entry(
        location="qtool.passes.optimization.remove_unused:RemoveUnused",
        effect="removes nodes, outputs of nodes, constants and operator sets that nothing uses",
    ),
    "to-nchw": Entry(
        location="qtool.passes.layout.to_nchw:ToNchw",
        effect="moves Transpose nodes towards the outputs until they cancel, as around the layers of TensorFlow models",
        runs=Runs.NAMED,
    ),
    "to-nhwc": Entry(
        location="qtool.passes.layout.to_nhwc:ToNhwc",
        effect="keeps channels last between layers, for runtimes that fuse a layer with the Transpose around it",
        runs=Runs.NAMED,
        comes_last=True,
    ),
    "reorder-for-memory": Entry(
        location="qtool.scheduling.reorder_for_memory:ReorderForMemory",
        effect="reorders nodes to minimize the peak memory of activations",
        runs=Runs.NAMED,
        comes_last=True,
    ),
}
