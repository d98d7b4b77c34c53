"""Where the result of a decoder folder goes: another folder, with the files that belong to the graph."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qtool.llm.decoder_folder import find_decoder_folder, is_decoder_folder
from qtool.llm.json_files import read_json
from qtool.staged_folder import check_output_folder, copy_files


@contextmanager
def decoder_output(
    given: Path, output: Path | None, output_dir: Path | None, *, suffix: str, force: bool, writes: bool = True
) -> Iterator[Path | None]:
    """Yields the graph to write, in a folder of its own where ``given`` is a decoder folder, and ``output`` otherwise.

    The folder is made now, and goes again at the end if nothing came into it.

    Args:
        given: the model that was named.
        output: the result that was named; None for a folder beside the model.
        output_dir: the folder for a result without a name.
        suffix: what the name of that one ends with.
        force: whether a folder of a decoder that exists may be written into.
        writes: whether anything is going to be written.

    Raises:
        InputError: the folder's configuration cannot be read.
        OutputError: the place is taken.
    """
    names_file = output is not None and output.suffix == ".onnx"
    if names_file or not given.is_dir() or not is_decoder_folder(given):
        yield output
        return
    graph = find_decoder_folder(given).model
    folder = output or (output_dir or given.resolve().parent) / f"{given.resolve().name}{suffix}"
    if writes:
        check_output_folder(folder, replaceable=is_decoder_folder, force=force)
        folder.mkdir(exist_ok=True)
    try:
        yield folder / graph.name
    finally:
        with suppress(OSError):
            folder.rmdir()


def bring_decoder_files(source: Path, staged: Path, output: Path) -> None:
    """Copies what belongs to the decoder ``source`` beside ``staged``, which is going to be ``output``.

    That is its configuration and its tokenizer, where the result has the same name in another folder.

    Raises:
        InputError: the configuration cannot be read.
    """
    moves = output.name == source.name and output.resolve().parent != source.resolve().parent
    if not moves or not is_decoder_folder(source):
        return
    decoder = find_decoder_folder(source)
    copy_files((*decoder.tokenizer_files,), staged.parent)
    config = dict(read_json(decoder.config, fix="make the folder again"))
    config["model"]["decoder"]["filename"] = output.name
    (staged.parent / decoder.config.name).write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")
