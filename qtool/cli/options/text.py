"""The options of data that is text. Nothing heavy may be imported here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from qtool.cli.options.groups import DATA, MEASUREMENTS

TokenizerOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--tokenizer",
        metavar="PATH",
        help="For text: tokenizer.json, or its folder. Default: that beside the model.",
        rich_help_panel=DATA,
    ),
]
PromptOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--prompt",
        metavar="TEXT",
        help="Show how the models go on with it; repeatable.",
        rich_help_panel=MEASUREMENTS,
    ),
]
NewTokensOption: TypeAlias = Annotated[
    int,
    typer.Option(
        "--new-tokens", metavar="N", min=1, help="Tokens to add to each prompt.", rich_help_panel=MEASUREMENTS
    ),
]
ReportTokensOption: TypeAlias = Annotated[
    int | None,
    typer.Option("--tokens", metavar="N", min=2, help="For text: tokens per row. Default: 512.", rich_help_panel=DATA),
]
TokensOption: TypeAlias = Annotated[
    int | None,
    typer.Option("--tokens", metavar="N", min=2, help="For text: tokens per row. Default: 128.", rich_help_panel=DATA),
]
