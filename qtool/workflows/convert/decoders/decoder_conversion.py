"""Converts decoders of language models to folders with a KV cache, for onnxruntime and onnxruntime-genai."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from qtool.errors import InputError, QtoolError, UsageError
from qtool.fingerprint import path_bytes
from qtool.formats.onnx.external_data import Storage
from qtool.formats.onnx.onnx_file import OnnxFile
from qtool.llm.decoder_folder import (
    CONFIG_NAME,
    TOKENIZER_NAMES,
    DecoderFolder,
    find_decoder_folder,
    is_decoder_folder,
)
from qtool.llm.exporters import EXPORTERS
from qtool.llm.exporters.selection import installed_exporters, load_exporter
from qtool.llm.huggingface_folder import HuggingFaceFolder, find_huggingface_folder
from qtool.llm.json_files import read_json
from qtool.llm.offline_process import run_offline
from qtool.llm.tied_table import share_tied_table
from qtool.private_folder import private_folder
from qtool.progress import Progress
from qtool.staged_folder import check_output_folder, staged_folder
from qtool.workflows.convert.conversion_result import described, folder_bytes
from qtool.workflows.convert.decoders.decoder_check import TorchAnswer, compare_with_torch, torch_answer
from qtool.workflows.convert.program_check import ProgramComparison
from qtool.workflows.convert.request import ConvertReport, ConvertRequest
from qtool.workflows.convert.target_format import TargetFormat
from qtool.workflows.convert.tensorflow_import import TensorFlowOptions

FOLDER_SUFFIX = "-onnx"
_KEPT = ("model.onnx", CONFIG_NAME, *TOKENIZER_NAMES)
_FIX = "run again with --debug, and see whether a newer version of the exporter knows the model"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedDecoder:
    """A decoder folder that was compared with torch.

    Attributes:
        folder: what it says of itself.
        exporter: what wrote it.
        answer: what torch says.
        comparisons: how its logits differ from that.
    """

    folder: DecoderFolder
    exporter: str
    answer: TorchAnswer
    comparisons: tuple[ProgramComparison, ...]


def convert_folder(request: ConvertRequest, progress: Progress) -> ConvertReport:
    """Converts the transformers folder ``request.source``, and compares the result with torch before it is kept.

    Raises:
        UsageError: an option has no effect.
        InputError: it holds no decoder that an exporter knows, brings code, or the result differs.
        FormatError: its weights are damaged.
        OutputError: the result cannot be written.
    """
    output = output_folder(request, request.source.resolve().name)
    source = find_huggingface_folder(request.source)
    installed_exporters()
    with staged_folder(output) as folder, private_folder() as scratch:
        clean = scratch / "source"
        clean.mkdir()
        source.link_into(clean)
        exported = export_decoder(source, clean, folder, scratch, progress)
        return decoder_report(request, exported, output, kind=f"{source.kind}, a decoder of transformers")


def output_folder(request: ConvertRequest, name: str) -> Path:
    """Returns where the result goes, and passes where it may.

    Raises:
        UsageError: an option has no effect with decoders.
        OutputError: the place is taken.
    """
    if request.target is not TargetFormat.ONNX:
        raise UsageError(f"{request.source} is a language model, which becomes ONNX only", fix="give --to onnx")
    misplaced = {
        "--model": request.architecture is not None,
        "--input-shape": request.input_shapes is not None,
        "--calib-data": request.calib_data is not None,
        "--opset": request.opset is not None,
        "--fp16 or --bf16": request.precision is not None,
        "--external-data or --max-shard-mb": request.storage.external or request.storage.max_shard_bytes is not None,
        "--inputs, --outputs, --signature or --nchw": request.tensorflow != TensorFlowOptions(),
    }
    for option, without_effect in misplaced.items():
        if without_effect:
            raise UsageError(f"{option} has no effect when a language model becomes ONNX", fix=f"drop {option}")
    output = request.output or (request.output_dir or request.source.resolve().parent) / f"{name}{FOLDER_SUFFIX}"
    if output.resolve() == request.source.resolve():
        raise UsageError("the result would replace the model itself", fix="name another folder with -o")
    check_output_folder(output, replaceable=is_decoder_folder, force=request.force)
    return output


def export_decoder(
    source: HuggingFaceFolder,
    clean: Path,
    target: Path,
    scratch: Path,
    progress: Progress,
    *,
    fuse: bool = True,
    tie: bool = True,
) -> ExportedDecoder:
    """Lets the first exporter write ``target`` whose result computes the same as torch.

    Args:
        source: the model.
        clean: the folder with its files and no others.
        target: an empty folder.
        scratch: a folder for files.
        progress: receives the steps.
        fuse: whether projections may become one product.
        tie: whether a head that is tied to the table reads the same rows.

    Raises:
        InputError: no exporter's result does; what each said is told.
    """
    said: list[str] = []
    answered: TorchAnswer | None = None
    for name in installed_exporters():
        written = scratch / f"written-{len(said)}"
        written.mkdir()
        try:
            with progress.task(f"exporting with {name}"):
                _run_exporter(name, clean, written, scratch, source, fuse=fuse)
                decoder = find_decoder_folder(written)
                if tie:
                    _share_table(decoder.model)
            if answered is None:
                with progress.task("running the model in torch"):
                    answered = torch_answer(source, clean, decoder.vocabulary, scratch)
            with progress.task("comparing with torch"):
                comparisons = compare_with_torch(decoder, answered, source)
        except QtoolError as error:
            said.append(f"{name}: {error.problem}")
            progress.note(f"{name} did not serve: {error.problem}")
            shutil.rmtree(written)
            continue
        for file in written.iterdir():
            if file.name in _KEPT or file.name.startswith("model.onnx"):
                shutil.move(file, target / file.name)
        folder = find_decoder_folder(target)
        return ExportedDecoder(folder=folder, exporter=name, answer=answered, comparisons=comparisons)
    raise InputError(
        f"no exporter writes {source.folder} ({source.kind}) as torch computes it: {'; '.join(said)}",
        fix=_fix_without_exporter(),
    )


def _share_table(graph: Path) -> None:
    model = OnnxFile().read(graph)
    if not share_tied_table(model):
        return
    # The tensors are read from the files that are there, and those go afterwards.
    old = [file for file in graph.parent.iterdir() if file.name.startswith(graph.name)]
    shared = graph.parent / "shared"
    shared.mkdir()
    OnnxFile().write(model, shared / graph.name, Storage(external=True))
    del model
    for file in old:
        file.unlink()
    for file in shared.iterdir():
        file.rename(graph.parent / file.name)
    shared.rmdir()


def _fix_without_exporter() -> str:
    missing = {load_exporter(name).distribution for name in EXPORTERS if name not in installed_exporters()}
    if missing:
        return f"install what may know this kind: pip install {' '.join(sorted(missing))}"
    return "use a version of the model of another kind; newer versions of the exporters may know this one"


def _run_exporter(
    name: str, clean: Path, written: Path, scratch: Path, source: HuggingFaceFolder, *, fuse: bool
) -> None:
    own = scratch / f"for-{written.name}"
    own.mkdir()
    arguments = (name, clean, written, own, "fuse" if fuse else "apart")
    problem = f"it does not export '{source.kind}'"
    run_offline("qtool.llm.exporters.process", *arguments, scratch=own, problem=problem, fix=_FIX)
    if not (written / CONFIG_NAME).is_file():
        raise InputError(f"{problem}: it wrote no {CONFIG_NAME}", fix=_FIX)
    _correct_config(written / CONFIG_NAME, source, generic=not load_exporter(name).knows_genai_types)


def _correct_config(file: Path, source: HuggingFaceFolder, *, generic: bool) -> None:
    config: dict[str, Any] = dict(read_json(file, fix=_FIX))
    model, search = config.get("model"), config.get("search")
    if not isinstance(model, dict) or not isinstance(search, dict):
        raise InputError(f"the exporter wrote no usable {CONFIG_NAME}", fix=_FIX)
    if generic:
        # onnxruntime-genai has names for some decoders, runs all alike, and refuses names that it does not know.
        model["type"] = "decoder"
        search["do_sample"] = False
    if source.context_length is not None:
        model["context_length"] = search["max_length"] = source.context_length
    file.write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")


def decoder_report(request: ConvertRequest, exported: ExportedDecoder, output: Path, *, kind: str) -> ConvertReport:
    """Describes a folder that is going to be moved to ``output``."""
    graph, folder = OnnxFile().read(exported.folder.model).graph, exported.folder
    return ConvertReport(
        source=request.source,
        source_kind=f"{kind}, exported with {exported.exporter}",
        source_bytes=path_bytes(request.source),
        output=output,
        output_bytes=folder_bytes(exported.folder.folder),
        target=request.target,
        opset=graph.opset_imports.get(""),
        inputs=_described(graph.inputs, {*folder.past_keys, *folder.past_values}),
        outputs=_described(graph.outputs, {*folder.present_keys, *folder.present_values}),
        comparisons=exported.comparisons,
    )


def _described(values: Sequence[ir.Value], caches: set[str]) -> tuple[str, ...]:
    """Describes inputs or outputs; all caches in one."""
    found = [value for value in values if value.name in caches]
    plain = tuple(described(value) for value in values if value.name not in caches)
    return (*plain, *(f"{described(value)} and {len(found) - 1} more caches" for value in found[:1]))
