"""Converts GGUF models to decoder folders, whose weights stay the integers that they are in the file."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from qtool.errors import InputError
from qtool.formats.onnx.onnx_file import OnnxFile
from qtool.formats.weights.gguf_blocks import AFFINE_TYPES
from qtool.formats.weights.gguf_header import GgufEntry, GgufHeader, read_gguf_header
from qtool.llm.decoder_folder import find_decoder_folder
from qtool.llm.exporters.selection import installed_exporters
from qtool.llm.gguf_rows import GgufRows
from qtool.llm.huggingface_folder import find_huggingface_folder
from qtool.llm.insert_gguf_blocks import insert_gguf_blocks
from qtool.llm.offline_process import run_offline
from qtool.private_folder import private_folder
from qtool.progress import Progress
from qtool.staged_folder import copy_files, staged_folder
from qtool.workflows.convert.decoders.decoder_check import compare_with_torch
from qtool.workflows.convert.decoders.decoder_conversion import (
    ExportedDecoder,
    decoder_report,
    export_decoder,
    output_folder,
)
from qtool.workflows.convert.request import ConvertReport, ConvertRequest

# The integers are the same, so that only the order of sums differs.
LARGEST_RELATIVE_DIFFERENCE = 1e-4
_PROJECTIONS = ("attn_q.weight", "attn_k.weight", "attn_v.weight")


def convert_gguf(request: ConvertRequest, progress: Progress) -> ConvertReport:
    """Converts the GGUF file ``request.source``, and compares the result with torch before it is kept.

    Q4_0, Q4_1 and Q8_0 stay as they are; other types become float32.

    Raises:
        UsageError: an option has no effect.
        InputError: transformers or the exporters do not know the model, or the result differs.
        FormatError: the file is damaged.
        OutputError: the result cannot be written.
    """
    output = output_folder(request, request.source.stem)
    header = read_gguf_header(request.source)
    _check_model(request.source, header)
    installed_exporters()
    if importlib.util.find_spec("gguf") is None:
        raise InputError(
            "converting GGUF models needs gguf, not installed here",
            fix="install the extra: pip install 'qtool-onnx[llm]'",
        )
    # Floats need several times the room of the file, and only until the end.
    with staged_folder(output) as folder, private_folder(folder.parent) as scratch:
        clean = scratch / "source"
        clean.mkdir()
        with progress.task("reading it as transformers does"):
            run_offline(
                "qtool.llm.gguf_export",
                request.source.resolve(),
                clean,
                scratch=scratch,
                problem=f"transformers does not read {request.source}",
                fix="convert the model that it was made from; transformers may know this kind in a newer version",
            )
        floats = scratch / "floats"
        floats.mkdir()
        fuse = _alike(header.entries)
        exported = export_decoder(
            find_huggingface_folder(clean), clean, floats, scratch, progress, fuse=fuse, tie=False
        )
        packed = _packed(request.source, header, exported, clean, folder, progress)
        return decoder_report(request, packed, output, kind=_described(header))


def _check_model(path: Path, header: GgufHeader) -> None:
    if header.fields.get("general.type", "model") != "model":
        raise InputError(
            f"{path} holds no model, but a {header.fields.get('general.type')}",
            fix="merge an adapter into its model with `qtool merge-lora`",
        )
    if header.fields.get("split.count", 1) not in (0, 1):
        raise InputError(f"{path} is one of several parts of a model", fix="merge them: llama-gguf-split --merge")


def _alike(entries: Sequence[GgufEntry]) -> bool:
    """Returns whether the projections of each layer are of one type, so that they can be one product."""
    kinds: dict[str, set[int]] = {}
    for entry in entries:
        if entry.name.endswith(_PROJECTIONS):
            kinds.setdefault(entry.name.rpartition(".attn_")[0], set()).add(entry.kind)
    return all(len(found) == 1 for found in kinds.values())


def _packed(
    path: Path, header: GgufHeader, exported: ExportedDecoder, clean: Path, target: Path, progress: Progress
) -> ExportedDecoder:
    """Writes the folder again with the integers of the file, and compares it once more."""
    with progress.task("putting the stored integers into the graph"):
        rows = GgufRows(path, header.entries)
        model = OnnxFile().read(exported.folder.model)
        replaced = insert_gguf_blocks(model, rows)
        del rows
        OnnxFile().write(model, target / exported.folder.model.name)
        copy_files((exported.folder.config, *exported.folder.tokenizer_files), target)
    decoder = find_decoder_folder(target)
    stored = sum(entry.kind in AFFINE_TYPES for entry in header.entries)
    progress.note(f"{len(replaced)} products and tables compute with the integers of {stored} tensors, to the bit")
    with progress.task("comparing with torch"):
        comparisons = compare_with_torch(
            decoder,
            exported.answer,
            find_huggingface_folder(clean),
            largest_relative_difference=LARGEST_RELATIVE_DIFFERENCE,
        )
    return replace(exported, folder=decoder, comparisons=comparisons)


def _described(header: GgufHeader) -> str:
    counts = Counter(entry.type_name for entry in header.entries)
    kinds = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    return f"GGUF {header.version}, {header.fields.get('general.architecture')}, {kinds}"
