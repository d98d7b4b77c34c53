"""Runs the parts of a split model one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from qtool.calib.specs import Array
from qtool.errors import InputError
from qtool.runtime.session import Level, Session
from qtool.splitting.split_manifest import read_split_manifest


class PartChain:
    """Runs a split model as ``Session`` runs a whole one.

    Attributes:
        manifest: the parts, in order.
    """

    def __init__(self, manifest: Path, *, threads: int = 0, level: Level = "all", one_at_a_time: bool = False) -> None:
        """Reads the manifest and opens the parts.

        Args:
            manifest: the JSON file that ``qtool split`` wrote beside the parts.
            threads: threads inside an operator; 0 lets onnxruntime take one per core.
            level: how far onnxruntime may rewrite each part.
            one_at_a_time: whether each part is opened again when its turn comes, so that only one is in memory.

        Raises:
            InputError: the file is not a manifest, or a part is missing.
            RuntimeRefusedError: onnxruntime does not load a part.
        """
        self.manifest = read_split_manifest(manifest)
        self._folder, self._threads, self._level = manifest.parent, threads, level
        files = [part.file for part in self.manifest.parts]
        self._sessions = {} if one_at_a_time else {file: self._open(file) for file in files}
        self._last_use = {
            name: place for place, part in enumerate(self.manifest.parts) for name in (*part.inputs, *part.outputs)
        }

    def run(self, feeds: Mapping[str, Array], outputs: Iterable[str] | None = None) -> dict[str, Array]:
        """Returns the named outputs of the whole (default: all) for one batch of inputs.

        Raises:
            InputError: an input is missing.
            RuntimeRefusedError: onnxruntime stops while it runs a part.
        """
        missing = [name for name in self.manifest.inputs if name not in feeds]
        if missing:
            raise InputError(f"there is no array for the input '{missing[0]}'", fix="feed every input of the model")
        wanted = list(self.manifest.outputs if outputs is None else outputs)
        values = dict(feeds)
        for place, part in enumerate(self.manifest.parts):
            session = self._sessions.get(part.file) or self._open(part.file)
            values |= session.run({name: values[name] for name in part.inputs})
            for name in (*part.inputs, *part.outputs):
                if self._last_use[name] == place and name not in wanted:
                    values.pop(name, None)
        return {name: values[name] for name in wanted}

    def _open(self, file: str) -> Session:
        return Session(self._folder / file, threads=self._threads, level=self._level)
