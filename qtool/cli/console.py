"""Puts what commands have to say on the terminal; nothing else in qtool imports rich."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from qtool.cli.log import SAID, LoggedProgress, verbose_is_on
from qtool.json_values import json_text
from qtool.progress import Advance, Progress

# Rich is imported where something is printed: help and completion do without it.
if TYPE_CHECKING:
    from rich.console import Console as Terminal
    from rich.progress import Progress as Bars
    from rich.text import Text

# Wide enough that a table which goes to a file or a pipe is never folded.
_UNFOLDED_COLUMNS = 1000
# A number with its unit, and perhaps its range in brackets: 12, 1.3e-05, 97.90 %, 8,000 /s, 1.62x (1.60 to 1.65).
_NUMBER = re.compile(r"[<>≤≥~±+−-]?\.?\d[\d,.]*(e[+-]?\d+)?(\s?(%|×|[a-zµ]{0,7}(/s)?))?( \(.*\))?$", re.IGNORECASE)


class Console:
    """Writes results to stdout, and everything else (progress, remarks, warnings, errors) to stderr.

    Colour and bars appear on a terminal only; ``NO_COLOR`` turns colour off there too.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False, debug: bool = False) -> None:
        """Chooses what goes where.

        Args:
            json: stdout carries nothing but what ``json()`` and ``document()`` print; tables and text go to stderr.
            quiet: only JSON, documents, warnings and errors are printed.
            debug: no bars, so that what libraries print stays readable.
        """
        self._quiet = quiet
        self._stderr = _stream(stderr=True)
        self._text = self._stderr if json else _stream(stderr=False)
        self._bars = self._stderr.is_terminal and not quiet and not debug and not verbose_is_on()

    def progress(self) -> Progress:
        """Returns where workflows report their steps: bars on a terminal, only the remarks elsewhere."""
        return LoggedProgress(_TerminalProgress(self._stderr, bars=self._bars, quiet=self._quiet))

    def say(self, text: str) -> None:
        """Prints one remark or result."""
        SAID.info("%s", text)
        if not self._quiet:
            _print_line(self._text, text)

    def warn(self, text: str) -> None:
        """Prints a warning to stderr, also when quiet."""
        SAID.warning("%s", text)
        _print_line(self._stderr, _labelled("warning: ", "bold yellow", text))

    def remark(self, text: str) -> None:
        """Prints one line to stderr, also when quiet."""
        SAID.info("%s", text)
        _print_line(self._stderr, text)

    def fail(self, problem: str, fix: str) -> None:
        """Prints what is wrong and how to fix it to stderr, also when quiet."""
        SAID.error("%s (%s)", problem, fix)
        _print_line(self._stderr, _labelled("error: ", "bold red", problem))
        _print_line(self._stderr, _labelled("  fix: ", "bold", fix))

    def table(
        self,
        title: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[object]],
        caption: str | None = None,
    ) -> None:
        """Prints ``rows`` under ``columns``; a column of numbers is set flush right."""
        for row in (columns, *rows):
            SAID.info("%s: %s", title, " | ".join(str(cell) for cell in row))
        if self._quiet:
            return
        from rich.table import Table
        from rich.text import Text

        cells = [[str(cell) for cell in row] for row in rows]
        table = Table(title=Text(title), title_justify="left", title_style="bold", header_style="bold")
        if caption is not None:
            table.caption = Text(caption)
            table.caption_justify = "left"
        for index, column in enumerate(columns):
            values = [row[index] for row in cells if row[index]]
            numeric = bool(values) and all(_NUMBER.match(value) for value in values)
            table.add_column(Text(column), justify="right" if numeric else "left", overflow="fold")
        for row in cells:
            table.add_row(*(Text(cell) for cell in row))
        self._text.print(table)

    def json(self, value: object) -> None:
        """Prints ``value`` as one JSON document, alone, to stdout, in the form of ``json_text``."""
        self.document(json_text(value))

    def document(self, text: str) -> None:
        """Prints ``text`` as it is, alone, to stdout, also when quiet."""
        sys.stdout.write(text)
        sys.stdout.flush()


class _TerminalProgress:
    """Draws every open step as a bar with its rate and the time left."""

    def __init__(self, console: Terminal, *, bars: bool, quiet: bool) -> None:
        self._console = console
        self._quiet = quiet
        self._draws = bars
        self._live: Bars | None = None
        self._open_steps = 0

    @contextmanager
    def task(self, label: str, total: int | None = None) -> Iterator[Advance]:
        """Shows a bar until the block ends."""
        if not self._draws:
            yield _drop
            return
        live = self._live
        if live is None:
            live = self._live = _bars(self._console)
            live.start()
        self._open_steps += 1
        step = live.add_task(label, total=total)
        try:
            yield lambda units: live.advance(step, units)
        finally:
            live.remove_task(step)
            self._open_steps -= 1
            if self._open_steps == 0:
                live.stop()
                self._live = None

    def note(self, message: str) -> None:
        """Prints one line above the bars, unless quiet."""
        if not self._quiet:
            _print_line(self._console, message)

    def warn(self, message: str) -> None:
        """Prints a warning above the bars."""
        _print_line(self._console, _labelled("warning: ", "bold yellow", message))


def _labelled(label: str, style: str, text: str) -> Text:
    from rich.text import Text

    return Text.assemble((label, style), text)


def _stream(*, stderr: bool) -> Terminal:
    from rich.console import Console as Terminal

    class Stream(Terminal):
        """Leaves it to the error boundary what happens when its reader goes away."""

        def on_broken_pipe(self) -> None:
            """Raises instead of exiting with 1, which is the code of a missed gate."""
            raise BrokenPipeError

    console = Stream(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _UNFOLDED_COLUMNS
    return console


def _bars(console: Terminal) -> Bars:
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars
    from rich.progress import Task as Step
    from rich.text import Text

    class Rate(ProgressColumn):
        """Units per second."""

        def render(self, task: Step) -> Text:
            return Text("" if task.speed is None else f"{task.speed:,.1f}/s")

    return Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
        transient=True,
    )


def _print_line(console: Terminal, text: str | Text) -> None:
    # soft_wrap: paths and messages stay in one piece, so that they can be copied and searched for.
    console.print(text, soft_wrap=True)


def _drop(units: int) -> None:
    """Ignores the units done."""
