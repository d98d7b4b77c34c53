"""Splits text into tokens as a ``tokenizer.json`` says, with the package ``tokenizers``; nothing in the file is run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qtool.calib.errors import CalibError

_MOST_BYTES = 256 * 1024 * 1024
_INSTALL = 'install it: pip install "qtool-onnx[llm]"'


class Tokenizer:
    """A tokenizer of a language model.

    Attributes:
        path: its file.
        prefix: the tokens that it puts before a text.
        suffix: the tokens that it puts behind one.
    """

    def __init__(self, path: Path) -> None:
        """Reads the file.

        Raises:
            CalibError: it is missing, or is no tokenizer, or the package ``tokenizers`` is not installed.
        """
        try:
            import tokenizers
        except ImportError as error:
            raise CalibError("text needs the package tokenizers, which is not installed", fix=_INSTALL) from error
        if not path.is_file():
            raise CalibError(f"there is no tokenizer {path}", fix="name a tokenizer.json, or the folder that has one")
        if path.stat().st_size > _MOST_BYTES:
            raise CalibError(f"{path} is too large for a tokenizer", fix="give the tokenizer.json of the model")
        self.path = path
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
            # Files keep the lengths that somebody once trained with.
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            probe = self._tokenizer.encode("a")
        except Exception as error:  # tokenizers raises Exception itself
            raise CalibError(
                f"{path} is not a tokenizer that tokenizers {tokenizers.__version__} reads: "
                f"{' '.join(str(error).split())[:200]}",
                fix="give the tokenizer.json that belongs to the model",
            ) from error
        ids, special = probe.ids, probe.special_tokens_mask
        first = special.index(0) if 0 in special else len(ids)
        last = len(ids) - (special[::-1].index(0) if 0 in special else 0)
        self.prefix: tuple[int, ...] = tuple(ids[:first])
        self.suffix: tuple[int, ...] = tuple(ids[last:])

    def tokens(self, text: str) -> list[int]:
        """Returns the tokens of a text alone."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def prompt(self, text: str) -> list[int]:
        """Returns the tokens of a text that a model is to go on with."""
        return [*self.prefix, *self.tokens(text)]

    def text(self, tokens: Sequence[int]) -> str:
        """Returns the text of tokens, without those that only mark something.

        Raises:
            CalibError: the tokenizer does not know one.
        """
        try:
            return str(self._tokenizer.decode(list(tokens)))
        except (OverflowError, ValueError) as error:
            raise CalibError(f"{self.path} does not fit the model's tokens", fix="give its own tokenizer") from error
