"""Every kind of operator people build with goes through all of qtool, and the documentation says what comes out."""

from __future__ import annotations

from pathlib import Path

import pytest

from qtool.errors import InputError
from tests.operators.all_kinds import KINDS
from tests.operators.kinds import Kind, Scheme
from tests.operators.measuring import Subject, quantized_every_way
from tests.operators.support_table import PAGE, Row, row_of, rows_in, table_in, versions

# Graphs in float32 beside torch: rounding in another order.
_LEAST_DB_OF_FLOATS = 110.0
# Sums in another order make some values round the other way, on another processor.
_DB_BETWEEN_MACHINES, _PERCENT_BETWEEN_MACHINES = 1, 0.5


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_kind_of_operator_stays_near_to_torch_on_the_integers_that_the_table_tells(
    kind: Kind, tmp_path: Path
) -> None:
    subject = Subject(kind, tmp_path)
    assert subject.error(subject.exported).db > _LEAST_DB_OF_FLOATS
    assert subject.error(subject.model).db > _LEAST_DB_OF_FLOATS
    ways = quantized_every_way(subject)
    for scheme, way in ways.items():
        if way is not None:
            bound = kind.bounds[scheme]
            assert way.error.db >= bound.least_db, scheme
            assert way.error.largest <= bound.largest_error, scheme
    if Scheme.DYNAMIC not in kind.bounds:
        with pytest.raises(InputError, match="quantized dynamically"):
            subject.dynamically()
    table = table_in(PAGE.read_text(encoding="utf-8"))
    if versions() in table:
        _assert_same(row_of(ways), rows_in(table)[kind.name])


def _assert_same(measured: Row, told: Row) -> None:
    assert measured.floats == told.floats
    for scheme, cell in measured.cells.items():
        other = told.cells[scheme]
        assert (cell is None) == (other is None), scheme
        if cell is None or other is None:
            continue
        assert (cell.integer, cell.total) == (other.integer, other.total), scheme
        assert abs(cell.db - other.db) <= _DB_BETWEEN_MACHINES, scheme
        assert abs(cell.percent - other.percent) <= _PERCENT_BETWEEN_MACHINES, scheme


def test_the_table_has_a_row_for_every_kind_and_no_other() -> None:
    table = table_in(PAGE.read_text(encoding="utf-8"))
    assert list(rows_in(table)) == [kind.name for kind in KINDS]
    assert table.startswith("Measured with onnxruntime ")
