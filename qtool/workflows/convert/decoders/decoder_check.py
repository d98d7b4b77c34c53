"""Compares an exported decoder with the model that transformers makes of the same weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.errors import InputError
from qtool.formats.onnx.onnx_file import OnnxFile
from qtool.graph.constants import integer_attribute
from qtool.llm.cached_feeds import DecoderInputs
from qtool.llm.decoder_folder import DecoderFolder
from qtool.llm.huggingface_folder import HuggingFaceFolder
from qtool.llm.offline_process import run_offline
from qtool.runtime.session import Session
from qtool.workflows.convert.output_differences import output_differences
from qtool.workflows.convert.program_check import LARGEST_RELATIVE_DIFFERENCE, ProgramComparison

Tokens: TypeAlias = npt.NDArray[np.int64]
Logits: TypeAlias = npt.NDArray[np.float32]

# Tokens whose logits are compared, and how many of them are fed one by one.
_COMPARED = 24
_STEPS = 8
# Longer windows would take longer to fill than to export the model.
_LONGEST_WINDOW = 1024
_FIX = "report the kind of model; another exporter may know it: pip install mobius-onnx"


@dataclass(frozen=True, slots=True)
class TorchAnswer:
    """What transformers' model says.

    Attributes:
        tokens: what it was asked, int64 (1, length).
        logits: of the last tokens, float32 (1, compared, vocabulary).
    """

    tokens: Tokens
    logits: Logits


def torch_answer(source: HuggingFaceFolder, folder: Path, vocabulary: int, scratch: Path) -> TorchAnswer:
    """Returns the logits of some random tokens, more than a layer of sliding attention sees.

    Args:
        source: the model.
        folder: where its files are, without others.
        vocabulary: how many tokens there are.
        scratch: a folder for files.

    Raises:
        InputError: transformers does not load the weights, or the model does not run.
    """
    length = _COMPARED + (source.window if source.window is not None and source.window <= _LONGEST_WINDOW else 0)
    length = min(length, source.context_length or length)
    tokens = np.random.default_rng(0).integers(0, vocabulary, (1, length), dtype=np.int64)
    asked, answered = scratch / "tokens.npy", scratch / "logits.npy"
    np.save(asked, tokens)
    run_offline(
        "qtool.llm.torch_logits",
        folder,
        asked,
        answered,
        str(min(length, _COMPARED)),
        scratch=scratch,
        problem=f"transformers does not load or run {source.folder}",
        fix="check the folder, and the version of transformers that it needs",
    )
    return TorchAnswer(tokens, np.load(answered, allow_pickle=False))


def compare_with_torch(
    decoder: DecoderFolder,
    answer: TorchAnswer,
    source: HuggingFaceFolder,
    *,
    largest_relative_difference: float = LARGEST_RELATIVE_DIFFERENCE,
) -> tuple[ProgramComparison, ...]:
    """Compares the logits of a whole prompt, and of the same tokens with the last ones fed one by one to the cache.

    Args:
        decoder: the exported folder.
        answer: what torch says.
        source: the model.
        largest_relative_difference: what is allowed, of the largest logit.

    Raises:
        InputError: they differ by more than float32 does, or the graph sees further than the model.
        RuntimeRefusedError: onnxruntime does not load or run the graph.
    """
    _check_window(decoder, source)
    session = Session(decoder.model)
    compared = answer.logits.shape[1]
    length, steps = answer.tokens.shape[1], min(_STEPS, compared - 1)
    whole = _logits(session, answer.tokens, 0)[:, -compared:]
    stepped = _logits(session, answer.tokens, steps)[:, -compared:]
    found = tuple(
        ProgramComparison(sizes=sizes, data="random", outputs=output_differences([answer.logits], {"logits": logits}))
        for sizes, logits in (
            ({"tokens": length}, whole),
            ({"tokens": length - steps, "one by one": steps}, stepped),
        )
    )
    worst = max(comparison.relative for comparison in found)
    if not worst <= largest_relative_difference:
        raise InputError(f"its logits differ from torch by {worst:.1e} of the largest one", fix=_FIX)
    return found


def _logits(session: Session, tokens: Tokens, steps: int) -> Logits:
    """Returns the logits of all tokens, the last ``steps`` fed one by one: float32 (1, length, vocabulary)."""
    inputs = DecoderInputs.of(session.inputs, session.outputs)
    row = tokens[0]
    begin = len(row) - steps
    outputs = session.run(inputs.prompt(row[:begin]))
    found = [outputs[inputs.logits]]
    for position in range(begin, len(row)):
        outputs = session.run(inputs.step(int(row[position]), position, outputs))
        found.append(outputs[inputs.logits])
    return np.concatenate(found, axis=1).astype(np.float32)


def _check_window(decoder: DecoderFolder, source: HuggingFaceFolder) -> None:
    """Looks for sliding attention where no comparison is long enough to show it."""
    window = source.window
    if window is None or window <= _LONGEST_WINDOW or window >= (source.context_length or window + 1):
        return
    graph = OnnxFile().read(decoder.model).graph
    if not any(
        integer_attribute(node, "local_window_size", -1) == window
        for node in ir.traversal.RecursiveGraphIterator(graph)
    ):
        raise InputError(f"its graph has no sliding attention over {window:,} positions, which the model has", fix=_FIX)
