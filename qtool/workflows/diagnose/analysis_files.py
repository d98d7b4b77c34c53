"""The files of an analysis: its figures as JSON or CSV, and a picture of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from qtool.atomic import check_output, staged
from qtool.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalysisFiles:
    """Where the figures of an analysis go.

    Attributes:
        output: a .json or .csv file; None for none.
        plot: a .png file; None for none.
        force: whether files that exist may be overwritten.
    """

    output: Path | None
    plot: Path | None
    force: bool

    def check(self, *, figures: str, picture: str) -> None:
        """Refuses names that cannot be written; the arguments are words for names that could be.

        Raises:
            UsageError: a name has another ending, or the file exists.
        """
        if self.output is not None:
            if self.output.suffix not in (".json", ".csv"):
                raise UsageError(f"{self.output} is neither .json nor .csv", fix=f"name a file such as -o {figures}")
            check_output(self.output, force=self.force)
        if self.plot is not None:
            if self.plot.suffix != ".png":
                raise UsageError(f"{self.plot} is no .png", fix=f"name a picture such as --plot {picture}")
            check_output(self.plot, force=self.force)

    def write(
        self, figures: Mapping[str, object], rows: Iterable[Iterable[object]], draw: Callable[[Path], None]
    ) -> None:
        """Writes what is asked for: ``figures`` as JSON, or ``rows`` as CSV, and what ``draw`` draws."""
        if self.output is not None:
            with staged(self.output) as path:
                if self.output.suffix == ".json":
                    text = json.dumps(figures, indent=2, ensure_ascii=False, allow_nan=False)
                    path.write_text(f"{text}\n", encoding="utf-8")
                else:
                    with path.open("w", encoding="utf-8", newline="") as file:
                        csv.writer(file).writerows(rows)
        if self.plot is not None:
            with staged(self.plot) as path:
                draw(path)
