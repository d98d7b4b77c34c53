"""Names the classes and functions of Keras that compute from numbers alone, of Keras 2 and 3.

None of them holds code, reads files or calls what its configuration names.
"""

from __future__ import annotations

# Layers and models.
_LAYERS = """
Activation ActivityRegularization AdaptiveAveragePooling1D AdaptiveAveragePooling2D AdaptiveAveragePooling3D
AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D Add AdditiveAttention AlphaDropout Attention
AugMix AutoContrast Average AveragePooling1D AveragePooling2D AveragePooling3D AvgPool1D AvgPool2D AvgPool3D
BatchNormalization BatchNormalizationV1 BatchNormalizationV2 Bidirectional CategoryEncoding CenterCrop
Concatenate ContrastLimitedAdaptiveHistogramEqualization Conv1D Conv1DTranspose Conv2D Conv2DTranspose
Conv3D Conv3DTranspose ConvLSTM1D ConvLSTM2D ConvLSTM3D Convolution1D Convolution1DTranspose Convolution2D
Convolution2DTranspose Convolution3D Convolution3DTranspose Cropping1D Cropping2D Cropping3D CuDNNGRU
CuDNNLSTM CutMix Dense DepthwiseConv1D DepthwiseConv2D Discretization Dot Dropout ELU EinsumDense Embedding
Equalization Flatten Functional GRU GRUCell GRUCellV2 GRUV2 GaussianDropout GaussianNoise
GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D GlobalAvgPool1D GlobalAvgPool2D
GlobalAvgPool3D GlobalMaxPool1D GlobalMaxPool2D GlobalMaxPool3D GlobalMaxPooling1D GlobalMaxPooling2D
GlobalMaxPooling3D GroupNormalization GroupQueryAttention HashedCrossing Hashing Highway Identity InputLayer
InputSpec IntegerLookup LSTM LSTMCell LSTMCellV2 LSTMV2 Layer LayerNormalization LayerScale LeakyReLU
LocallyConnected1D LocallyConnected2D Masking MaxNumBoundingBoxes MaxPool1D MaxPool2D MaxPool3D MaxPooling1D
MaxPooling2D MaxPooling3D Maximum MaxoutDense MelSpectrogram Minimum MixUp Model MultiHeadAttention Multiply
Normalization PReLU Permute Pipeline RMSNormalization RNN RandAugment RandomBrightness
RandomColorDegeneration RandomColorJitter RandomContrast RandomCrop RandomElasticTransform RandomErasing
RandomFlip RandomGaussianBlur RandomGrayscale RandomHeight RandomHue RandomInvert RandomPerspective
RandomPosterization RandomRotation RandomSaturation RandomSharpness RandomShear RandomTranslation
RandomWidth RandomZoom ReLU RepeatVector Rescaling Reshape Resizing ReversibleEmbedding STFTSpectrogram
SeparableConv1D SeparableConv2D SeparableConvolution1D SeparableConvolution2D Sequential SimpleRNN
SimpleRNNCell Softmax Solarization SpatialDropout1D SpatialDropout2D SpatialDropout3D SpectralNormalization
StackedRNNCells StringLookup Subtract SyncBatchNormalization TextVectorization ThresholdedReLU
TimeDistributed UnitNormalization UpSampling1D UpSampling2D UpSampling3D Wrapper ZeroPadding1D ZeroPadding2D
ZeroPadding3D
"""
# What layers and training are made of: initializers, losses, optimizers, policies of types and their like.
_PARTS = """
AUC AWQConfig AWQDTypePolicy AbsMaxQuantizer Accuracy Adadelta Adafactor Adagrad Adam AdamW Adamax
BinaryAccuracy BinaryCrossentropy BinaryFocalCrossentropy BinaryIoU CTC CategoricalAccuracy
CategoricalCrossentropy CategoricalFocalCrossentropy CategoricalGeneralizedCrossEntropy CategoricalHinge
Circle CompileLoss CompileMetrics ConcordanceCorrelation Constant ConstantV2 Constraint CosineDecay
CosineDecayRestarts CosineSimilarity DTypePolicy DTypePolicyMap Dice Dimension ExponentialDecay F1Score
FBetaScore FalseNegatives FalsePositives Float8QuantizationConfig FloatDTypePolicy Ftrl GPTQConfig
GPTQDTypePolicy GlorotNormal GlorotNormalV2 GlorotUniform GlorotUniformV2 HeNormal HeNormalV2 HeUniform
HeUniformV2 Hinge Huber Identity IdentityInitializer IdentityV2 Initializer Int4DTypePolicy
Int4QuantizationConfig Int8QuantizationConfig InverseTimeDecay IoU KLDivergence L1 L1L2 L2 Lamb
LearningRateSchedule LecunNormal LecunNormalV2 LecunUniform LecunUniformV2 Lion LogCosh LogCoshError Loss
LossFunctionWrapper LossScaleOptimizer MaxNorm Mean MeanAbsoluteError MeanAbsolutePercentageError MeanIoU
MeanMetricWrapper MeanSquaredError MeanSquaredLogarithmicError Metric MetricsList MinMaxNorm MultiOptimizer
Muon Nadam NonNeg OneHotIoU OneHotMeanIoU Ones OnesV2 Optimizer OptimizerMap Orthogonal
OrthogonalInitializer OrthogonalRegularizer OrthogonalV2 PearsonCorrelation PiecewiseConstantDecay Poisson
Policy PolicyV1 PolynomialDecay Precision PrecisionAtRecall QuantizationConfig QuantizedDTypePolicy
QuantizedFloat8DTypePolicy Quantizer R2Score RMSprop RandomNormal RandomNormalV2 RandomUniform
RandomUniformV2 Recall RecallAtPrecision Regularizer RootMeanSquaredError SGD STFT STFTInitializer
ScheduleFreeAdamW SeedGenerator SensitivityAtSpecificity SparseCategoricalAccuracy
SparseCategoricalCrossentropy SparseTopKCategoricalAccuracy SpecificityAtSensitivity SquaredHinge Sum
TensorShape TopKCategoricalAccuracy TrueNegatives TruePositives TruncatedNormal TruncatedNormalV2 Tversky
UnitNorm VarianceScaling VarianceScalingV2 Zeros ZerosV2 constant glorot_normal glorot_uniform he_normal
he_uniform identity l1 l1_l2 l2 lecun_normal lecun_uniform max_norm min_max_norm non_neg ones orthogonal
orthogonal_regularizer random_normal random_uniform stft truncated_normal unit_norm variance_scaling zeros
"""
# keras.ops, as layers of a functional model; without those that call functions, such as Map and Cond.
_OPERATIONS = """
Abs Absolute AdaptiveAveragePool AdaptiveMaxPool Add AffineTransform All AllClose Amax Amin Angle Any Append
Arange Arccos Arccosh Arcsin Arcsinh Arctan Arctan2 Arctanh Argmax Argmin Argpartition Argsort Array
ArraySplit Average AveragePool BatchNorm BinaryCrossentropy Bincount BitwiseAnd BitwiseInvert
BitwiseLeftShift BitwiseNot BitwiseOr BitwiseRightShift BitwiseXor BroadcastTo CDist CTCDecode CTCLoss Cast
CategoricalCrossentropy Cbrt Ceil Celu Cholesky CholeskyInverse Clip Concatenate Conj Conjugate Conv
ConvTranspose ConvertToTensor Copy Corrcoef Correlate Cos Cosh CountNonzero CropImages Cross Cumprod Cumsum
Deg2rad DepthToSpace DepthwiseConv Det Diag Diagflat Diagonal Diff Digitize Divide DivideNoNan Dot
DotProductAttention Dsplit Dstack Eig Eigh Einsum ElasticTransform Elu EmptyLike Equal Erf Erfc Erfinv Exp
Exp2 ExpandDims Expm1 ExtractPatches ExtractSequences FFT FFT2 Fabs Flip Fliplr Flipud Floor FloorDivide
Fmax Fmin Fmod Fold Full FullLike GaussianBlur Gcd Gelu Geomspace GetItem Glu Greater GreaterEqual HSVToRGB
HardShrink HardSigmoid HardSilu HardTanh Heaviside Histogram Hsplit Hstack Hypot I0 IFFT2 IRFFT ISTFT Imag
InTopK Inner Inv IsIn Isclose Isfinite Isinf Isnan Isneginf Isposinf Isreal Kron LayerNorm Lcm Ldexp
LeakyRelu LeftShift Less LessEqual Linspace Log Log10 Log1p Log2 LogSigmoid LogSoftmax Logaddexp Logaddexp2
Logdet LogicalAnd LogicalNot LogicalOr LogicalXor Logspace Logsumexp Lstsq LuFactor MapCoordinates Matmul
MatrixRank Max MaxPool Maximum Mean Median Meshgrid Min Minimum Mod Moments Moveaxis MultiHot Multiply
NanToNum Nanargmax Nanargmin Nancumprod Nancumsum Nanmax Nanmean Nanmedian Nanmin Nanpercentile Nanprod
Nanquantile Nanstd Nansum Nanvar Ndim Negative Nextafter Nonzero Norm Normalize NotEqual OneHot OnesLike
Outer PSNR Pad PadImages Percentile PerspectiveTransform Pinv Polar Power Prod Ptp Qr Quantile RFFT
RGBToGrayscale RGBToHSV RMSNorm Rad2deg Ravel Real Rearrange Reciprocal Relu Relu6 Repeat Reshape Resize
RightShift Roll Rot90 Round Rsqrt SSIM STFT SVD SaturateCast ScaleAndTranslate Scatter ScatterUpdate
SearchSorted SegmentMax SegmentMin SegmentProd SegmentReduction SegmentSum Select Selu SeparableConv Sigmoid
Sign Signbit Silu Sin Sinc Sinh Size Slice SliceUpdate Slogdet SobelEdges SoftShrink Softmax Softplus
Softsign Solve SolveTriangular Sort SpaceToDepth SparseCategoricalCrossentropy SparsePlus SparseSigmoid
Sparsemax Split Sqrt Square Squareplus Squeeze Stack Std StopGradient Subtract Sum Swapaxes Take
TakeAlongAxis Tan Tanh TanhShrink Tensordot Threshold Tile TopK Trace Transpose Trapezoid Tril Triu
TrueDivide Trunc Unfold Unique UnravelIndex Unstack Vander Var Vdot View ViewAsComplex ViewAsReal Vsplit
Vstack Where ZerosLike
"""
# Activations, losses and metrics.
_FUNCTIONS = """
accuracy adaptive_average_pool adaptive_max_pool average_pool batch_normalization bce binary_accuracy
binary_crossentropy binary_focal_crossentropy categorical_accuracy categorical_crossentropy
categorical_focal_crossentropy categorical_generalized_cross_entropy categorical_hinge celu circle
concordance_correlation conv conv_transpose cosine_proximity cosine_similarity ctc ctc_decode ctc_loss
depth_to_space depthwise_conv dice dot_product_attention elu exponential fold gelu glu hard_shrink
hard_sigmoid hard_silu hard_swish hard_tanh hinge huber kl_divergence kld layer_normalization leaky_relu
linear log_cosh log_sigmoid log_softmax logcosh mae mape max_pool mean_absolute_error
mean_absolute_percentage_error mean_squared_error mean_squared_logarithmic_error mish moments mse msle
multi_hot normalize one_hot pearson_correlation poisson polar psnr relu relu6 rms_normalization selu
separable_conv sigmoid silu soft_shrink softmax softplus softsign space_to_depth sparse_categorical_accuracy
sparse_categorical_crossentropy sparse_plus sparse_sigmoid sparse_top_k_categorical_accuracy sparsemax
squared_hinge squareplus swish tanh tanh_shrink threshold top_k_categorical_accuracy tversky unfold
"""

LAYERS: frozenset[str] = frozenset(_LAYERS.split())
PARTS: frozenset[str] = frozenset(_PARTS.split())
OPERATIONS: frozenset[str] = frozenset(_OPERATIONS.split())
FUNCTIONS: frozenset[str] = frozenset(_FUNCTIONS.split())
