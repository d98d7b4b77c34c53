"""The options of data that is text. Nothing heavy may be imported here."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from qtool.cli.options.groups import DATA, MEASUREMENTS
from qtool.errors import UsageError

TokenizerOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--tokenizer",
        metavar="PATH",
        help="tokenizer.json of text. Default: the model's.",
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


def check_text(sources: Iterable[str], tokenizer: Path | None, tokens: int | None, *, prompts: bool = False) -> None:
    """Refuses options for text where there is none.

    Raises:
        UsageError: one is given.
    """
    from qtool.calib.datasets.listing import TEXT_SUFFIXES

    if any(Path(source).suffix.lower() in TEXT_SUFFIXES for source in sources):
        return
    for option, given in (("--tokenizer", tokenizer is not None and not prompts), ("--tokens", tokens is not None)):
        if given:
            raise UsageError(f"{option} has no effect without text", fix="drop it, or give data that is a .txt file")
