"""Writes GGUF files, and quantizes as ggml's formats say."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_ALIGNMENT = 32
Raw = tuple[int, tuple[int, ...], bytes]


def write_gguf(path: Path, fields: Mapping[str, Any], tensors: Mapping[str, Raw]) -> Path:
    """Writes tensors of (type, shape in the order of numpy, bytes)."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(fields))
    for key, value in fields.items():
        head += _text(key) + _value(value)
    place = 0
    for name, (kind, shape, raw) in tensors.items():
        head += _text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape[::-1])
        head += struct.pack("<IQ", kind, place)
        place += len(raw) + -len(raw) % _ALIGNMENT
    body = b"".join(raw + bytes(-len(raw) % _ALIGNMENT) for _, _, raw in tensors.values())
    path.write_bytes(head + bytes(-len(head) % _ALIGNMENT) + body)
    return path


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    match value:
        case bool():
            return struct.pack("<I?", 7, value)
        case int():
            return struct.pack("<Ii", 5, value)
        case float():
            return struct.pack("<If", 6, value)
        case str():
            return struct.pack("<I", 8) + _text(value)
        case list():
            item = _value(value[0])[:4]
            return (
                struct.pack("<I", 9) + item + struct.pack("<Q", len(value)) + b"".join(_value(one)[4:] for one in value)
            )
    raise TypeError(type(value))


def f32(matrix: np.ndarray) -> Raw:
    return 0, matrix.shape, matrix.astype("<f4").tobytes()


def q4_0(matrix: np.ndarray) -> Raw:
    raw = b""
    for block in matrix.reshape(-1, 32):
        scale = np.float16(block[np.abs(block).argmax()] / -8 or 1e-4)
        integers = np.clip(np.rint(block / np.float32(scale)) + 8, 0, 15).astype(np.uint8)
        raw += scale.tobytes() + (integers[:16] | integers[16:] << 4).tobytes()
    return 2, matrix.shape, raw


def q4_1(matrix: np.ndarray) -> Raw:
    raw = b""
    for block in matrix.reshape(-1, 32):
        scale, least = np.float16((block.max() - block.min()) / 15), np.float16(block.min())
        divisor = np.float32(scale) or np.float32(1)
        integers = np.clip(np.rint((block - np.float32(least)) / divisor), 0, 15).astype(np.uint8)
        raw += scale.tobytes() + least.tobytes() + (integers[:16] | integers[16:] << 4).tobytes()
    return 3, matrix.shape, raw


def q8_0(matrix: np.ndarray) -> Raw:
    raw = b""
    for block in matrix.reshape(-1, 32):
        scale = np.float16(np.abs(block).max() / 127 or 1e-4)
        raw += scale.tobytes() + np.clip(np.rint(block / np.float32(scale)), -127, 127).astype(np.int8).tobytes()
    return 8, matrix.shape, raw


def dequantized(tensor: Raw) -> np.ndarray:
    """Returns the numbers, block by block, in float32."""
    kind, shape, raw = tensor
    if kind == 0:
        return np.frombuffer(raw, "<f4").reshape(shape)
    length = {2: 18, 3: 20, 8: 34}[kind]
    found = []
    for begin in range(0, len(raw), length):
        block = raw[begin : begin + length]
        scale = np.float32(np.frombuffer(block[:2], "<f2")[0])
        if kind == 8:
            found.append(np.frombuffer(block[2:], np.int8).astype(np.float32) * scale)
            continue
        least = np.float32(np.frombuffer(block[2:4], "<f2")[0]) if kind == 3 else np.float32(-8) * scale
        pairs = np.frombuffer(block[4 if kind == 3 else 2 :], np.uint8)
        integers = np.concatenate([pairs & 15, pairs >> 4]).astype(np.float32)
        found.append((integers - 8) * scale if kind == 2 else integers * scale + least)
    return np.concatenate(found).reshape(shape)
