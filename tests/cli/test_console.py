import json
from pathlib import Path
from typing import Any

import pytest

from qtool.cli.console import Console

ESCAPE = "\x1b"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def use(console: Console) -> None:
    console.say("said")
    console.warn("warned")
    console.table("title", ["name", "value"], [["first", "1.50 ms"], ["second", "12 ms"]], "caption")
    progress = console.progress()
    progress.note("noted")
    with progress.task("working", 2) as advance:
        advance(1)


def test_results_go_to_stdout_and_remarks_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    use(Console())
    out, err = capsys.readouterr()
    assert "said" in out
    assert "title" in out
    assert "caption" in out
    assert err == "warning: warned\nnoted\n"


def test_json_is_alone_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(json=True)
    use(console)
    console.json({"größe": [1, None]})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"größe": [1, None]}
    assert "said" in err
    assert "title" in err


def test_quiet_leaves_warnings_errors_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(json=True, quiet=True)
    use(console)
    console.fail("it broke", "mend it")
    console.json([])
    out, err = capsys.readouterr()
    assert out == "[]\n"
    assert err == "warning: warned\nerror: it broke\n  fix: mend it\n"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_has_null_for_nan_and_infinity(value: float, capsys: pytest.CaptureFixture[str]) -> None:
    Console(json=True).json({"x": value, "y": (1.5, value), "path": Path("a") / "b"})
    shown = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert shown == {"x": None, "y": [1.5, None], "path": str(Path("a") / "b")}


def test_there_is_no_colour_and_no_bar_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    use(console)
    console.fail("it broke", "mend it")
    out, err = capsys.readouterr()
    assert ESCAPE not in out + err
    assert "working" not in out + err


def test_numbers_with_units_are_set_flush_right(capsys: pytest.CaptureFixture[str]) -> None:
    Console().table(
        "",
        ["name", "size", "ratio", "word"],
        [["a", "8,000.5 MB", "1.62x (1.60 to 1.65)", "12"], ["b", "9 MB", "0.9x", "many"]],
    )
    short = next(line for line in capsys.readouterr().out.splitlines() if "9 MB" in line)
    cells = short.strip("│").split("│")
    assert [cell.endswith("9 MB ") for cell in cells][1]
    assert cells[2].endswith("0.9x ")
    assert cells[2].startswith("   ")
    assert cells[3].startswith(" many")


def test_wide_tables_are_never_folded_into_a_file(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    Console().table("", ["x"], [["w" * 400]])
    assert "w" * 400 in capsys.readouterr().out
