"""The options of data that is text. Nothing heavy may be imported here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from qtool.cli.options.groups import DATA

TokenizerOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--tokenizer",
        metavar="PATH",
        help="For text: tokenizer.json, or its folder. Default: that beside the model.",
        rich_help_panel=DATA,
    ),
]
TokensOption: TypeAlias = Annotated[
    int | None,
    typer.Option("--tokens", metavar="N", min=2, help="For text: tokens per row. Default: 128.", rich_help_panel=DATA),
]
