"""Tables of the classes and the samples that a quantized model changes."""

from __future__ import annotations

from qtool.reporting.model import ModelComparison
from qtool.reporting.table_form import NONE, Table, number

_MOST_CLASSES = 10


def classes_table(comparison: ModelComparison, about: str) -> Table:
    """Lays out the classes that change, those that lose most first."""
    shown = comparison.classes[:_MOST_CLASSES]
    return Table(
        title=f"Classes that change most{about}",
        columns=("class", "samples", "float", "quantized", "change"),
        rows=tuple(
            (
                str(change.label),
                str(change.samples),
                f"{100 * change.float_right / change.samples:.2f} %",
                f"{100 * change.quantized_right / change.samples:.2f} %",
                f"{change.quantized_right - change.float_right:+d} samples",
            )
            for change in shown
        ),
        caption=f"{len(shown)} of {len(comparison.classes)} classes that change",
    )


def samples_table(comparison: ModelComparison, about: str) -> Table:
    """Lays out the samples that change most; classes stand there where the models name one."""
    has_classes = any(sample.float_class is not None for sample in comparison.samples)
    columns = ("sample", "SQNR", "class, float", "class, quantized")
    rows = (
        (
            str(sample.index),
            number(sample.sqnr_db, ".2f", " dB"),
            NONE if sample.float_class is None else str(sample.float_class),
            NONE if sample.quantized_class is None else str(sample.quantized_class),
        )
        for sample in comparison.samples
    )
    kept = len(columns) if has_classes else 2
    return Table(
        title=f"Samples that change most{about}",
        columns=columns[:kept],
        rows=tuple(row[:kept] for row in rows),
        caption="samples count from 0",
    )
