"""Provides graphs of the models of a report, converted where necessary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from qtool.calib.datasets.base import Dataset
from qtool.errors import UsageError
from qtool.formats.detect import detect
from qtool.private_folder import private_folder
from qtool.progress import Progress
from qtool.workflows.convert.model_source import ModelSource, save_graph


@contextmanager
def graphs_of(
    paths: Sequence[Path], source: ModelSource | None, data: Dataset, progress: Progress
) -> Iterator[tuple[Path, ...]]:
    """Yields an ``.onnx`` file for each model: itself, or its conversion, which exists until the block ends.

    Args:
        paths: the models.
        source: how to convert those that are no graphs; its own path does not count.
        data: samples, whose shapes count where ``source`` gives none.
        progress: receives the steps.

    Raises:
        FormatError: a model cannot be read, or the code, the weights and the inputs do not fit together.
        UsageError: there is nothing to convert for what ``source`` says, or no module for weights.
        InputError: a converted graph does not compute the same as its source.
    """
    # A missing file is reported when it is read.
    others = [path for path in paths if path.exists() and detect(path).format != "onnx"]
    if not others and source is not None and (source.architecture is not None or source.input_shapes is not None):
        raise UsageError(
            "all models are graphs already: --model and --input-shape have no effect with them", fix="drop them"
        )
    with private_folder() as folder:
        made = {path: folder / f"{number}.onnx" for number, path in enumerate(others)}
        for path, graph in made.items():
            asked = ModelSource(path=path) if source is None else replace(source, path=path)
            save_graph(asked.load(progress, dataset=data), graph)
        yield tuple(made.get(path, path) for path in paths)
