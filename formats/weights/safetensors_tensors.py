"""Reads and writes the tensors of ``.safetensors`` files.

Source: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import safetensors
import torch

from qtool.formats.base import Weights
from qtool.formats.errors import FormatError
from qtool.formats.mapped_tensors import few_at_a_time, tied_names
from qtool.formats.odd_tensors import oddity
from qtool.formats.unreserved_mapping import mapping_unreserved
from qtool.formats.weights.safetensors_header import PREFIX_BYTES, read_header

if TYPE_CHECKING:
    from qtool.formats.base import Change

_TIED_KEY = "tied"
_METADATA_KEY = "__metadata__"
_DTYPES: Mapping[torch.dtype, str] = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float32: "F32",
    torch.int64: "I64",
    torch.uint64: "U64",
    torch.float64: "F64",
    torch.complex64: "C64",
}


def read_tensors(path: Path) -> Weights:
    """Maps the tensors, and ties those that the metadata says are one.

    Raises:
        FormatError: the file is damaged or holds no tensors.
    """
    header = read_header(path)
    if not header.tensors:
        raise FormatError(f"{path} holds no tensors", fix="save the weights again")
    metadata = dict(header.metadata)
    tied = _stored_ties(metadata.pop(_TIED_KEY, "{}"))

    def mapped() -> dict[str, torch.Tensor]:
        return _mapped(path, header.tensors, tied)

    tensors = few_at_a_time(mapped, path.stat().st_size)
    return Weights(tensors=tensors, metadata=metadata, source=f"{len(tensors)} tensors")


def write_tensors(weights: Weights, path: Path, change: Change | None) -> None:
    """Writes one tensor after the other, as ``change`` gives them.

    Raises:
        FormatError: the format cannot hold a tensor, or it has the name of the metadata.
    """
    if _METADATA_KEY in weights.tensors:
        raise FormatError(
            f"tensor '{_METADATA_KEY}' has the name that .safetensors keeps for something else",
            fix="rename it, or convert to .pth",
        )
    codes = {name: _code(name, tensor) for name, tensor in weights.tensors.items()}
    # Wide elements first: every tensor then begins at a multiple of its element size.
    order = sorted(weights.tensors, key=lambda name: (-weights.tensors[name].element_size(), name))
    metadata = dict(weights.metadata)
    tied = tied_names(weights.tensors)
    if tied:
        metadata[_TIED_KEY] = json.dumps(tied, sort_keys=True)
    fields: dict[str, object] = {_METADATA_KEY: dict(sorted(metadata.items()))} if metadata else {}
    position = 0
    for name in order:
        tensor = weights.tensors[name]
        end = position + tensor.numel() * tensor.element_size()
        fields[name] = {"dtype": codes[name], "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    header = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    header += b" " * (-len(header) % PREFIX_BYTES)
    with path.open("wb") as stream:
        stream.write(len(header).to_bytes(PREFIX_BYTES, "little"))
        stream.write(header)
        for name in order:
            tensor = weights.tensors[name]
            for part in (tensor,) if change is None else change(name, tensor):
                stream.write(_bytes(part).data)


def _mapped(path: Path, names: Iterable[str], tied: Mapping[str, str]) -> dict[str, torch.Tensor]:
    try:
        with mapping_unreserved(path), safetensors.safe_open(path, framework="pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in names}
    except (safetensors.SafetensorError, AttributeError, KeyError) as error:
        raise FormatError(f"{path} cannot be read: {error}", fix="save the weights again") from error
    for name, first in tied.items():
        if name in tensors and first in tensors and _same(tensors[name], tensors[first]):
            tensors[name] = tensors[first]
    return tensors


def _code(name: str, tensor: torch.Tensor) -> str:
    kind = oddity(tensor)
    if kind is None and tensor.dtype not in _DTYPES:
        kind = str(tensor.dtype)
    if kind is not None:
        fix = "save it again with its values" if tensor.is_meta else "convert to .pth, or change the tensor"
        raise FormatError(f"tensor '{name}' is {kind}, which .safetensors does not have", fix=fix)
    return _DTYPES[tensor.dtype]


def _bytes(tensor: torch.Tensor) -> npt.NDArray[np.uint8]:
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    values: npt.NDArray[np.uint8] = flat.view(torch.uint8).numpy()
    return values


def _stored_ties(text: str) -> dict[str, str]:
    try:
        tied = json.loads(text)
    except json.JSONDecodeError:
        return {}  # another program's entry of the same name
    return tied if isinstance(tied, dict) else {}


def _same(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    return tensor.dtype == other.dtype and tensor.shape == other.shape and np.array_equal(_bytes(tensor), _bytes(other))
