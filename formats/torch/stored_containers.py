"""Replaces the output container classes of an exported program, whose code is not in the file.

Source: ``treespec_dumps`` of torch.utils._pytree (protocol 1): each container is an object of ``type``, ``context`` and
``children_spec``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.utils import _pytree as pytree

from qtool.formats.containers.zip_layout import open_zip, read_member

_LARGEST_TEXT_BYTES = 256 << 20


def register_containers(path: Path) -> None:
    """Registers a dictionary for each class of the program in ``path`` that torch does not know.

    Torch keeps a class that is registered until the process ends. An audit must have found the file harmless.
    """
    with open_zip(path) as archive:
        texts = [
            read_member(archive, member, limit=_LARGEST_TEXT_BYTES)
            for member in archive.infolist()
            if member.filename.endswith(".json")
        ]
    for text in texts:
        for name in _types(json.loads(text)):
            if name not in pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE:
                _register(name)


def _types(stored: Any) -> Iterator[str]:
    """Yields the names of all containers in the treespecs, which are JSON inside of JSON."""
    waiting = [stored]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str) and '"children_spec"' in value:
            value = json.loads(value)
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            if isinstance(value.get("type"), str) and "children_spec" in value:
                yield value["type"]
            waiting += value.values()


def _register(name: str) -> None:
    kind = type("StoredContainer", (dict,), {})

    def from_parts(values: Any, context: Any) -> Any:
        fields = context[0] if isinstance(context, list) and context and isinstance(context[0], list) else []
        parts = list(values)
        names = fields if len(fields) == len(parts) else range(len(parts))
        return kind(zip(map(str, names), parts, strict=True))

    pytree.register_pytree_node(
        kind,
        lambda held: (list(held.values()), [list(held), []]),
        from_parts,
        serialized_type_name=name,
        to_dumpable_context=json.dumps,
        from_dumpable_context=json.loads,
    )
