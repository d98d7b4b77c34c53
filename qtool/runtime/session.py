"""Opens models in onnxruntime's CPU provider and runs them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from qtool.calib.specs import Array, Dim, TensorSpec
from qtool.errors import RuntimeRefusedError
from qtool.formats.onnx.map_types import without_map_types
from qtool.formats.onnx.onnx_outline import read_outline
from qtool.graph.decoder_caches import head_sizes
from qtool.image_layout import image_layouts
from qtool.runtime.plain_values import plain

Level = Literal["none", "basic", "extended", "all"]

_LEVELS: Mapping[Level, ort.GraphOptimizationLevel] = {
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_DTYPES: Mapping[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(int8)": np.dtype(np.int8),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(int16)": np.dtype(np.int16),
    "tensor(uint16)": np.dtype(np.uint16),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(uint32)": np.dtype(np.uint32),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(uint64)": np.dtype(np.uint64),
    "tensor(bool)": np.dtype(np.bool_),
    "tensor(string)": np.dtype(np.object_),
}

_INNERMOST = re.compile(r"\w+")

NO_WEIGHTS: Mapping[str, Array] = MappingProxyType({})

# Images have four axes, with the batch, and one of these lengths only in the axis of channels.
_IMAGE_AXES = 4
_CHANNELS = (1, 3)
_CACHE_AXES = 4

# The error of versions before 1.27 for weights with per-channel zero points.
_UNEQUAL_ZERO_POINTS = "zero point of per-channel filter must be same"
_FIX_OF_ZERO_POINTS = "quantize with --per-tensor or without --weights-asymmetric, or install onnxruntime 1.27 or newer"


def providers() -> tuple[str, ...]:
    """Returns the execution providers that the installed onnxruntime has; qtool uses the CPU's."""
    return tuple(ort.get_available_providers())


# onnxruntime's errors for files and operators newer than itself.
_NEWER_THAN_THE_RUNTIME = ("Unsupported model IR version", "under development")
_FIX_OF_NEW_FILES = "bring it to an older opset with `qtool convert --opset 21`, or install a newer onnxruntime"


class Session:
    """An inference session of onnxruntime's CPU provider.

    Attributes:
        outputs: the graph's outputs.
    """

    def __init__(
        self,
        model: Path | bytes,
        *,
        threads: int = 0,
        level: Level = "all",
        optimized_to: Path | None = None,
        profile_to: Path | None = None,
        mapped: bool = False,
        weights: Mapping[str, Array] = NO_WEIGHTS,
        in_place: Collection[str] = (),
        reuses_memory: bool = True,
        fuses_signed: bool = False,
        prepacks: bool | None = None,
    ) -> None:
        """Opens ``model``, a path or the serialized model itself.

        Args:
            model: the file, or its bytes (under 2 GiB, no external data).
            threads: threads inside an operator; 0 lets onnxruntime take one per core.
            level: how far onnxruntime may rewrite the graph.
            optimized_to: where to write the optimized graph.
            profile_to: prefix of the file to write the times of kernels to.
            mapped: whether weights in external files are memory-mapped, which takes little memory and more time; the
                graph is not rewritten then.
            weights: C-contiguous initializers that the model's bytes only name, as external data.
            in_place: those of them that kernels read where they are; others are copied. onnxruntime must not rewrite
                them, as it does with constants that a Transpose passes.
            reuses_memory: whether memory of tensors is planned in advance, which takes time proportional to the square
                of the number of nodes.
            fuses_signed: whether s8 activations are fused as they are, which is the default on ARM; on x86, Q and DQ
                are first rewritten to u8, and where they cannot be, operators stay float.
            prepacks: whether weights are copied into the form that kernels read fastest; otherwise memory of tensors is
                not kept either. None for where they are not mapped.

        Raises:
            RuntimeRefusedError: onnxruntime does not load the model.
        """
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        options.graph_optimization_level = _LEVELS[level]
        options.enable_mem_reuse = reuses_memory
        # Idle worker threads of one session would keep the cores of another one busy, and times wrong.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if fuses_signed:
            options.add_session_config_entry("session.qdqisint8allowed", "1")
        if mapped:
            options.graph_optimization_level = _LEVELS["none"]
        packed = not mapped if prepacks is None else prepacks
        if mapped or not packed:
            # The arena grows in powers of two.
            options.enable_cpu_mem_arena = False
        if not packed:
            options.add_session_config_entry("session.disable_prepacking", "1")
        if optimized_to is not None:
            options.optimized_model_filepath = str(optimized_to)
            if weights:
                # They may not fit into the message.
                data = f"{optimized_to.name}.data"
                options.add_session_config_entry("session.optimized_model_external_initializers_file_name", data)
        if profile_to is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile_to)
        # They must outlive the session that reads them.
        self._weights = {name: _ort_value(array) for name, array in weights.items()}
        if self._weights:
            options.add_external_initializers(list(self._weights), list(self._weights.values()))
        for name in in_place:
            options.add_initializer(name, self._weights[name])
        try:
            self._session = ort.InferenceSession(
                model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's own errors share no base class of their own
            what = "the model" if isinstance(model, bytes) else str(model)
            raise RuntimeRefusedError(
                f"onnxruntime does not load {what}: {_first_line(error)}",
                fix=_FIX_OF_NEW_FILES
                if any(said in str(error) for said in _NEWER_THAN_THE_RUNTIME)
                else "check the file with `qtool inspect`, or export it again with another opset",
            ) from error
        inputs = tuple(_spec(node) for node in self._session.get_inputs())
        # Files may be gone later; graphs in memory are only looked at where somebody asks.
        self._message: bytes | None = model if isinstance(model, bytes) and _hides_facts(inputs) else None
        self._inputs = _with_graph_facts(inputs, model) if self._message is None else inputs
        self.outputs = tuple(_spec(node) for node in self._session.get_outputs())
        self._has_other_outputs = any(not node.type.startswith("tensor(") for node in self._session.get_outputs())

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The graph's inputs."""
        if self._message is not None:
            self._inputs, self._message = _with_graph_facts(self._inputs, self._message), None
        return self._inputs

    def run(self, feeds: Mapping[str, Array], outputs: Iterable[str] | None = None) -> dict[str, Array]:
        """Returns the named outputs (default: all) for one batch of inputs, each as one array; see ``plain``.

        Raises:
            RuntimeRefusedError: onnxruntime stops while it runs the model.
        """
        names = [spec.name for spec in self.outputs] if outputs is None else list(outputs)
        with _running(feeds):
            values = self._session.run(names, dict(feeds))
        return {name: plain(value) for name, value in zip(names, values, strict=True)}

    def end_profiles(self) -> list[Path]:
        """Returns the files with the times of every kernel so far; only for a session with ``profile_to``."""
        return [Path(self._session.end_profiling())]

    def run_uncopied(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """Returns the named outputs as read-only views of onnxruntime's own memory, where it has them as numbers.

        Raises:
            RuntimeRefusedError: onnxruntime stops while it runs the model.
        """
        with _running(feeds):
            if self._has_other_outputs or any(feed.dtype.kind not in "fiu" for feed in feeds.values()):
                return [plain(value) for value in self._session.run(list(outputs), dict(feeds))]
            bound = {
                name: ort.OrtValue.ortvalue_from_numpy(np.asarray(value, order="C")) for name, value in feeds.items()
            }
            values = self._session.run_with_ort_values(list(outputs), bound)
            return [_view(value) for value in values]


class Watcher:
    """Runs a session without copying its outputs, which are read-only."""

    def __init__(self, session: Session) -> None:
        """Watches every output of ``session``."""
        self._session = session
        self._names = [spec.name for spec in session.outputs]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Returns every output for one batch of inputs.

        Raises:
            RuntimeRefusedError: onnxruntime stops while it runs the model.
        """
        values = self._session.run_uncopied(feeds, self._names)
        return dict(zip(self._names, values, strict=True))


def _spec(node: Any) -> TensorSpec:
    is_tensor = node.type.startswith("tensor(")
    shape = None if node.shape is None or not is_tensor else tuple(node.shape)
    # The last type that a sequence or a map names is that of its values.
    kind = node.type if is_tensor else f"tensor({_INNERMOST.findall(node.type)[-1]})"
    return TensorSpec(node.name, _DTYPES.get(kind, np.dtype(np.object_)), shape)


def _with_graph_facts(inputs: tuple[TensorSpec, ...], model: Path | bytes) -> tuple[TensorSpec, ...]:
    """Adds facts about inputs that onnxruntime does not report, from the graph.

    These are whether an input without dimensions is a scalar or of unknown rank, the layout of images where lengths
    do not show it, and the length of heads in a cache.
    """
    if not _hides_facts(inputs):
        return inputs
    proto = onnx.load_model_from_string(model) if isinstance(model, bytes) else read_outline(model)
    unknown = {value.name for value in proto.graph.input if not value.type.tensor_type.HasField("shape")}
    without_map_types(proto.graph, Path("model"))
    graph = ir.from_proto(proto)
    layouts, heads = image_layouts(graph), head_sizes(graph)
    return tuple(
        replace(
            spec,
            shape=None if spec.name in unknown else _with_head(spec.shape, heads.get(spec.name)),
            layout=layouts.get(spec.name),
        )
        for spec in inputs
    )


def _hides_facts(inputs: Sequence[TensorSpec]) -> bool:
    return not all(spec.shape and not _hides_layout(spec.shape) and not _hides_heads(spec.shape) for spec in inputs)


def _hides_heads(shape: Sequence[int | str | None]) -> bool:
    return len(shape) == _CACHE_AXES and not isinstance(shape[-1], int)


def _with_head(shape: tuple[Dim, ...] | None, size: int | None) -> tuple[Dim, ...] | None:
    return shape if shape is None or size is None else (*shape[:-1], size)


def _hides_layout(shape: Sequence[int | str | None]) -> bool:
    return len(shape) == _IMAGE_AXES and (shape[1] in _CHANNELS) == (shape[3] in _CHANNELS)


def _ort_value(array: Array) -> ort.OrtValue:
    if array.dtype.name == "bfloat16":  # numpy itself has no such type
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), onnx.TensorProto.BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(array)


def _view(value: Any) -> Array:
    if value.data_type() == "tensor(float)" and hasattr(value, "__dlpack__"):
        return np.from_dlpack(value)
    copied: Array = value.numpy()
    return copied


@contextmanager
def _running(feeds: Mapping[str, Array]) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # onnxruntime's own errors share no base class of their own
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in feeds.items())
        raise RuntimeRefusedError(
            f"onnxruntime stops while running the model on {shapes}: {_first_line(error)}",
            fix=_FIX_OF_ZERO_POINTS
            if _UNEQUAL_ZERO_POINTS in str(error)
            else "check that the data has the shapes that the model takes (`qtool inspect` shows them)",
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
