"""A file of text, as rows of tokens for a language model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from qtool.calib.datasets.base import Remark
from qtool.calib.datasets.batching import Chunk, Window, batches, wanted, window_for
from qtool.calib.datasets.tokenizing import Tokenizer
from qtool.calib.errors import CalibError
from qtool.calib.specs import Array, TensorSpec

USUAL_TOKENS = 128
# Enough for more tokens than can be run in a day, and few enough to hold.
_MOST_CHARACTERS = 64 * 1024 * 1024
_PIECE_CHARACTERS = 1024 * 1024
_MASK_AXES = 2

Role: TypeAlias = Literal["tokens", "mask", "positions", "segments"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOptions:
    """How text becomes tokens.

    Attributes:
        tokenizer: a ``tokenizer.json``.
        tokens: tokens a row, those that the tokenizer adds at its ends included; None for 128.
    """

    tokenizer: Path
    tokens: int | None = None


class TextFile:
    """Streams a text as rows of equally many tokens, one behind the other, each a sample.

    Masks are ones, positions count from 0 and segments are zeros, where a model asks for them. What the tokenizer puts
    around a text, such as a token for its begin, stands around each row. Tokens at the end that fill no row are left
    out; a text that is shorter than a row is one short row.
    """

    def __init__(self, path: Path, options: TextOptions) -> None:
        """Opens the tokenizer; the text is read when it is first needed.

        Raises:
            CalibError: there is no such tokenizer, or a row has no room for text.
        """
        self._path = path
        self._where = path.name
        self._length = options.tokens or USUAL_TOKENS
        self._asked = options.tokens is not None
        self.tokenizer = Tokenizer(options.tokenizer)
        added = len(self.tokenizer.prefix) + len(self.tokenizer.suffix)
        if self._length < added + 2:
            raise CalibError(
                f"rows of {self._length} tokens have no room for text beside the {added} that the tokenizer adds",
                fix=f"make rows of at least {added + 2} tokens",
            )
        self._body = self._length - added

    @property
    def count(self) -> int:
        """The number of rows; takes one pass over the text."""
        return max(len(self._tokens) // self._body, 1)

    def specs(self) -> tuple[TensorSpec, ...]:
        """Describes the tokens."""
        return (TensorSpec("input_ids", np.dtype(np.int64), (None, self._length)),)

    def array(self, name: str) -> Array | None:
        """Returns None: a text has no labels."""
        return None

    def feeds(
        self,
        inputs: Sequence[TensorSpec],
        *,
        batch_size: int = 1,
        limit: int | None = None,
        skip: int = 0,
        remark: Remark | None = None,
    ) -> Iterator[dict[str, Array]]:
        """Streams batches of rows; see ``Dataset.feeds``."""
        roles = self._roles(inputs)
        window = window_for(inputs, batch_size=batch_size, limit=limit, skip=skip, count=self.count, where=self._where)
        if remark is not None:
            self._tell(remark)
        return batches(self._chunks(inputs, roles, window), window, where=self._where, remark=remark)

    def _tell(self, remark: Remark) -> None:
        left = len(self._tokens) % self._body
        if len(self._tokens) > self._body and left:
            remark(f"the last {left} of {len(self._tokens)} tokens of {self._where} do not fill a row and are left out")
        if self._is_cut:
            remark(f"{self._where} is longer than {_MOST_CHARACTERS} characters: the rest of it is left out")

    def _chunks(self, inputs: Sequence[TensorSpec], roles: Sequence[Role], window: Window) -> Iterator[Chunk]:
        def rows() -> Iterator[Chunk]:
            for number in range(self.count):
                row = self._row(number)
                arrays = {
                    spec.name: role_array(role, row, spec.dtype) for spec, role in zip(inputs, roles, strict=True)
                }
                yield Chunk(arrays=arrays, rows=1)

        return wanted(rows(), window)

    def _row(self, number: int) -> npt.NDArray[np.int64]:
        body = self._tokens[number * self._body : (number + 1) * self._body]
        return np.concatenate([self.tokenizer.prefix, body, self.tokenizer.suffix]).astype(np.int64)

    @cached_property
    def _text_tokens(self) -> tuple[npt.NDArray[np.uint32], bool]:
        found, characters = [np.zeros(0, np.uint32)], 0
        try:
            with self._path.open(encoding="utf-8") as stream:
                while characters < _MOST_CHARACTERS and (piece := stream.read(_PIECE_CHARACTERS)):
                    # Words that a piece would end in the middle of have other tokens.
                    piece += stream.readline(_PIECE_CHARACTERS)
                    characters += len(piece)
                    found.append(np.asarray(self.tokenizer.tokens(piece), np.uint32))
                is_cut = bool(stream.read(1))
        except OSError as error:
            raise CalibError(f"{self._path} cannot be read: {error.strerror or error}", fix="check the path") from error
        except UnicodeDecodeError as error:
            raise CalibError(f"{self._path} is not text in UTF-8", fix="store it as UTF-8") from error
        tokens = np.concatenate(found)
        if len(tokens) < 2:
            raise CalibError(f"{self._path} has fewer than two tokens", fix="give a text of some thousand words")
        return tokens, is_cut

    @property
    def _tokens(self) -> npt.NDArray[np.uint32]:
        return self._text_tokens[0]

    @property
    def _is_cut(self) -> bool:
        return self._text_tokens[1]

    def _roles(self, inputs: Sequence[TensorSpec]) -> list[Role]:
        roles = [role_of(spec) for spec in inputs]
        names = [spec.name for spec, role in zip(inputs, roles, strict=True) if role == "tokens"]
        strange = [spec.name for spec, role in zip(inputs, roles, strict=True) if role is None]
        if len(names) != 1 or strange:
            of = f"of no known use: {', '.join(strange)}" if strange else f"for tokens: {', '.join(names) or 'none'}"
            raise CalibError(
                f"{self._where} is text, which fills one input of tokens; the model has inputs {of}",
                fix="give the inputs as arrays: numpy.savez('data.npz', input_ids=...)",
            )
        for spec in inputs:
            fixed = spec.shape[1] if spec.shape is not None else None
            length = self._length if len(self._tokens) >= self._body else len(self._row(0))
            if isinstance(fixed, int) and fixed != length:
                raise CalibError(
                    f"the model takes rows of exactly {fixed} tokens, and those of {self._where} have {length}",
                    fix=f"give --tokens {fixed}"
                    if len(self._tokens) >= fixed
                    else f"give a text of {fixed} tokens or more",
                )
        return [role for role in roles if role is not None]


def role_of(spec: TensorSpec) -> Role | None:
    """Returns what an input is for, by the names that exporters give; None where text has nothing for it."""
    if spec.shape is not None and len(spec.shape) != _MASK_AXES:
        return None
    name = spec.name.lower()
    if "mask" in name:
        return "mask"
    if spec.dtype.kind not in "iu":
        return None
    if "position" in name:
        return "positions"
    if "type" in name or "segment" in name:
        return "segments"
    return "tokens"


def role_array(role: Role, row: npt.NDArray[np.int64], dtype: np.dtype[np.generic]) -> Array:
    """Returns what an input of this role takes for one row of tokens, (1, positions)."""
    values: Array = {
        "tokens": row,
        "mask": np.ones_like(row),
        "positions": np.arange(len(row)),
        "segments": np.zeros_like(row),
    }[role]
    return values.astype(dtype)[np.newaxis]
