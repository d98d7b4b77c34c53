"""Splits a model into files that run one after the other, and compares them with the whole."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from qtool.atomic import staged
from qtool.backends.onnxruntime_cpu.coverage import coverage_in, optimized_nodes
from qtool.calib.specs import Array, Feed
from qtool.errors import InputError, OutputError, RuntimeRefusedError, UsageError
from qtool.fingerprint import file_sha256
from qtool.formats.onnx.onnx_file import LARGEST_MESSAGE_BYTES, OnnxFile, weights_nbytes
from qtool.formats.onnx.shape_inference import infer_shapes
from qtool.formats.torch.example_inputs import first_sizes, make_feeds
from qtool.graph.specs import model_specs
from qtool.progress import Progress
from qtool.runtime.graphs import open_graph, watching
from qtool.runtime.part_chain import PartChain
from qtool.runtime.parts import Parts
from qtool.runtime.session import Level, Session
from qtool.runtime.steady_draws import DRAWN_ALIKE, draws, with_steady_draws
from qtool.splitting.groups import Group, groups_at_borders, groups_at_tensors
from qtool.splitting.part_models import Part, part_model, parts_of
from qtool.splitting.split_manifest import PartFile, SplitManifest, read_split_manifest
from qtool.workflows.convert.half_precision import input_specs
from qtool.workflows.convert.random_inputs import on_random_inputs
from qtool.workflows.diagnose.graph_names import find
from qtool.workflows.diagnose.overflow import warn_of_overflow
from qtool.workflows.diagnose.verify import onnx_path
from qtool.workflows.quantize.data_request import DataRequest

# What rounding makes of it where onnxruntime fuses otherwise.
LARGEST_DIFFERENCE = 1e-6
_SAMPLES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitRequest:
    """What to split, and where.

    Attributes:
        model: an ONNX graph.
        folder: where the parts go.
        cuts: each some tensors, a part ends where all of them are made.
        at_borders: whether to cut where integers and floats meet instead.
        data: what to compare on; None for random inputs.
        tolerance: how far outputs may be apart, as a share of the largest value.
        force: whether files in the folder may be replaced.
    """

    model: Path
    folder: Path
    cuts: tuple[tuple[str, ...], ...] = ()
    at_borders: bool = False
    data: DataRequest | None = None
    tolerance: float = LARGEST_DIFFERENCE
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitReport:
    """What came of it.

    Attributes:
        manifest: the file that says in which order the parts run.
        parts: the parts.
        nbytes: the size of each, with its data file.
        difference: by how much outputs differ from those of the whole, as a share of the largest value.
        samples: what both ran on, in words.
    """

    manifest: Path
    parts: tuple[PartFile, ...]
    nbytes: tuple[int, ...]
    difference: float
    samples: str


def split(request: SplitRequest, progress: Progress) -> SplitReport:
    """Writes the parts and their manifest, once all of them together do what the whole does.

    With nothing rewritten by onnxruntime the outputs have to be the same bit by bit; as it runs them usually, they may
    differ by rounding, where a cut keeps it from fusing what it fuses in the whole.

    Raises:
        FormatError: the model cannot be read.
        UsageError: the cuts make no sense.
        InputError: there is no such tensor, or the parts do something else than the whole.
        RuntimeRefusedError: onnxruntime does not run the whole or a part.
        OutputError: the folder cannot be written.
    """
    path = onnx_path(request.model)
    manifest_path = request.folder / f"{path.stem}.split.json"
    _check_folder(request.folder, manifest_path, force=request.force)
    warn_of_overflow(path, path.name, progress)
    model = OnnxFile().read(path)
    common.NameFixPass()(model)
    infer_shapes(model)
    parts = parts_of(model.graph, _groups(model, request))
    _know_types(model, parts)
    old = _old_parts(manifest_path)
    with _made(request.folder), staged(manifest_path) as staged_manifest:
        files = _written(model, parts, path.stem, staged_manifest.parent, progress)
        inputs = tuple(value.name or "" for value in model.graph.inputs if not value.is_initializer())
        outputs = tuple(value.name or "" for value in model.graph.outputs)
        SplitManifest(model=path.name, inputs=inputs, outputs=outputs, parts=files).write(staged_manifest)
        if draws(model):
            progress.note(DRAWN_ALIKE)
        with progress.task("comparing"):
            difference, samples = _compare(model, path, staged_manifest, request)
        nbytes = tuple(_nbytes(staged_manifest.parent / file.file) for file in files)
        for name in old:
            (request.folder / name).unlink(missing_ok=True)
    return SplitReport(manifest=manifest_path, parts=files, nbytes=nbytes, difference=difference, samples=samples)


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Makes a folder, which goes again where nothing came of it."""
    folder.mkdir(exist_ok=True)
    try:
        yield
    finally:
        if not any(folder.iterdir()):
            folder.rmdir()


def _written(
    model: ir.Model, parts: Sequence[Part], stem: str, folder: Path, progress: Progress
) -> tuple[PartFile, ...]:
    files = []
    with progress.task("writing parts", len(parts)) as advance:
        for number, part in enumerate(parts, start=1):
            files.append(_write(model, part, folder / f"{stem}.part{number:0{len(str(len(parts)))}}.onnx"))
            advance(1)
    return tuple(files)


def _check_folder(folder: Path, manifest: Path, *, force: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"the output {folder} is a file", fix="name a folder with -o")
    if not folder.exists() and not folder.absolute().parent.is_dir():
        raise OutputError(f"the folder {folder.parent} does not exist", fix=f"create it: mkdir -p {folder.parent}")
    if manifest.exists() and not force:
        raise OutputError(
            f"the output {manifest} exists already", fix="pass --force to replace it, or name another folder with -o"
        )


def _groups(model: ir.Model, request: SplitRequest) -> tuple[Group, ...]:
    if not request.at_borders:
        cuts = tuple(tuple(_tensor(model, name) for name in cut) for cut in request.cuts)
        return groups_at_tensors(model.graph, cuts)
    with optimized_nodes(model.clone()) as kept:
        integer = {row.node for row in coverage_in(model, kept).nodes if row.kernel is not None}
    groups = groups_at_borders(model.graph, integer)
    if len(groups) < 2:
        raise UsageError(
            f"{request.model} has no border between integers and floats", fix="name tensors to split it at: --at TENSOR"
        )
    return groups


def _tensor(model: ir.Model, name: str) -> ir.Value:
    found = find(model, {}, name)
    if found.tensor is None and found.node is not None:
        return found.node.outputs[0]
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    value = values.get(found.tensor or name)
    if value is None or value.producer() is None:
        raise UsageError(f"nothing in the graph computes '{name}'", fix="name a tensor that a node makes")
    return value


def _know_types(model: ir.Model, parts: Sequence[Part]) -> None:
    """Finds the types of tensors that parts hand over in a run, where shape inference does not tell."""
    for value in (value for part in parts for value in part.takes):
        if isinstance(value.type, ir.SequenceType | ir.OptionalType):
            raise UsageError(f"'{value.name}' is no tensor, which no file can hand over", fix="cut somewhere else")
    # Files give the outputs of ZipMap their types.
    handed = {value for part in parts for value in (*part.takes, *part.gives) if value.dtype is None}
    unknown = {value for value in handed if (node := value.producer()) is None or node.op_type != "ZipMap"}
    if not unknown:
        return
    names = [value.name or "" for value in unknown]
    specs = input_specs(model)
    with (
        watching(model, names) as watched,
        open_graph(watched, level="none") as session,
        on_random_inputs(fix="cut behind tensors whose types the graph declares"),
    ):
        arrays = session.run(make_feeds(specs, first_sizes(specs, None), None))
    for value in unknown:
        value.dtype = ir.DataType.from_numpy(arrays[value.name or ""].dtype)


def _write(model: ir.Model, part: Part, path: Path) -> PartFile:
    file = OnnxFile()
    file.write(part_model(model, part), path)
    file.check(path)
    return PartFile(
        file=path.name,
        kind=part.kind,
        nodes=len(part.nodes),
        inputs=part.inputs,
        outputs=part.outputs,
        sha256=file_sha256(path),
    )


def _compare(model: ir.Model, whole: Path, manifest: Path, request: SplitRequest) -> tuple[float, str]:
    """Returns the largest difference as onnxruntime runs both usually, and what they ran on, in words."""
    feeds = list(_feeds(model, request.data))
    samples = "random inputs" if request.data is None else f"samples of {request.data.source}"
    if weights_nbytes(model) > LARGEST_MESSAGE_BYTES:
        # One stretch of nodes, or one part, is in memory at a time; the kernels read weights in another way then.
        chain = PartChain(manifest, level="none", one_at_a_time=True)
        return _differences(Parts(model), chain, feeds, request.tolerance), samples
    if draws(model):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            whole, manifest = _drawing_alike(whole, manifest, Path(folder))
            return _at_every_level(whole, manifest, feeds, request.tolerance), samples
    return _at_every_level(whole, manifest, feeds, request.tolerance), samples


def _drawing_alike(whole: Path, manifest: Path, folder: Path) -> tuple[Path, Path]:
    """Writes copies of a model and of its parts that draw the same random numbers."""
    parts = [manifest.parent / part.file for part in read_split_manifest(manifest).parts]
    for path, name in [(whole, f"whole of {whole.name}"), *((part, part.name) for part in parts)]:
        ir.save(with_steady_draws(ir.load(path)), folder / name, external_data=f"{name}.data")
    shutil.copy(manifest, folder / manifest.name)
    return folder / f"whole of {whole.name}", folder / manifest.name


def _at_every_level(whole: Path, manifest: Path, feeds: Sequence[Feed], tolerance: float) -> float:
    """Compares as onnxruntime runs both, as they are and rewritten."""
    worst = 0.0
    levels: Mapping[Level, float] = {"none": 0.0, "all": tolerance}
    for level, most in levels.items():
        worst = _differences(Session(whole, level=level), PartChain(manifest, level=level), feeds, most)
    return worst


def _feeds(model: ir.Model, data: DataRequest | None) -> Iterator[Feed]:
    if data is None:
        specs = input_specs(model)
        yield make_feeds(specs, first_sizes(specs, None), None)
        return
    inputs, outputs = model_specs(model)
    for count, feed in enumerate(data.feeds(data.open(), inputs, outputs)):
        if count == _SAMPLES:
            return
        yield feed


def _differences(whole: Session | Parts, parts: PartChain, feeds: Sequence[Feed], tolerance: float) -> float:
    worst = 0.0
    for feed in feeds:
        expected = _run_whole(whole, feed)
        found = parts.run(feed)
        for name, array in expected.items():
            difference = _difference(array, found[name])
            if not difference <= tolerance:
                raise InputError(
                    f"the parts give another output '{name}' than the whole: {difference:.1e} of its largest value",
                    fix="cut elsewhere, such as behind a node that is not fused with the next, or raise --tolerance",
                )
            worst = max(worst, difference)
    return worst


def _run_whole(whole: Session | Parts, feed: Feed) -> dict[str, Array]:
    try:
        return whole.run(feed)
    except RuntimeRefusedError as error:
        raise InputError(
            f"the model does not run: {error.problem}", fix="give samples that it takes: --data"
        ) from error


def _difference(expected: Array, found: Array) -> float:
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return float("inf")
    if expected.dtype.kind != "f":
        return 0.0 if np.array_equal(expected, found) else float("inf")
    if np.array_equal(expected, found, equal_nan=True):
        return 0.0
    distance = np.abs(expected.astype(np.float64) - found.astype(np.float64))
    largest = max(float(np.abs(expected).max()), float(np.finfo(np.float32).tiny))
    return float(distance.max()) / largest if np.isfinite(distance).all() else float("inf")


def _nbytes(path: Path) -> int:
    data = path.with_name(f"{path.name}.data")
    return path.stat().st_size + (data.stat().st_size if data.exists() else 0)


def _old_parts(manifest: Path) -> set[str]:
    """Returns the files that an earlier split of the same name left."""
    with suppress(InputError, json.JSONDecodeError):
        if manifest.exists():
            return {part.file for part in read_split_manifest(manifest).parts}
    return set()
