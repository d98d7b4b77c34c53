"""Chooses the tokenizer and the length of rows for texts that a model is run on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qtool.calib.datasets.text_file import USUAL_TOKENS, TextOptions
from qtool.errors import InputError, UsageError
from qtool.llm.decoder_folder import find_decoder_folder, is_decoder_folder

TOKENIZER_NAME = "tokenizer.json"


def graph_of(path: Path) -> Path:
    """Returns the graph of a decoder folder; any other path as it is.

    Raises:
        InputError: the folder's configuration cannot be read, or names no graph.
    """
    return find_decoder_folder(path).model if path.is_dir() and is_decoder_folder(path) else path


def text_options(
    models: Sequence[Path], tokenizer: Path | None, tokens: int | None, *, usual: int = USUAL_TOKENS
) -> TextOptions | None:
    """Returns how text becomes tokens for ``models``; None where no tokenizer is named, and none stands beside them.

    Args:
        models: files, or decoder folders.
        tokenizer: a ``tokenizer.json``, or a folder that has one; None for that beside the first model that has one.
        tokens: tokens a row; None for ``usual``, or fewer where a model's context is shorter.
        usual: the usual number.

    Raises:
        UsageError: the folder has no tokenizer.
        InputError: the configuration of a folder cannot be read.
    """
    file = _beside(models) if tokenizer is None else _named(tokenizer)
    if file is None:
        return None
    return TextOptions(tokenizer=file, tokens=tokens or min([usual, *_contexts(models)]))


def _beside(models: Sequence[Path]) -> Path | None:
    files = ((model if model.is_dir() else model.parent) / TOKENIZER_NAME for model in models)
    return next((file for file in files if file.is_file()), None)


def _named(tokenizer: Path) -> Path:
    file = tokenizer / TOKENIZER_NAME if tokenizer.is_dir() else tokenizer
    if not file.is_file():
        raise UsageError(
            f"there is no tokenizer at {tokenizer}", fix="name a tokenizer.json, or the folder of the model that has it"
        )
    return file


def _contexts(models: Sequence[Path]) -> list[int]:
    lengths = []
    for model in models:
        if is_decoder_folder(model):
            try:
                lengths.append(find_decoder_folder(model).context_length)
            except InputError:
                continue  # which matters where the folder itself is opened
    return lengths
