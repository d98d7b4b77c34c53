from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import pytest
import typer

from qtool.cli.app import app
from qtool.cli.options.settings import defaults, parameters
from qtool.config import SHARED
from qtool.errors import UsageError

Fixes = Callable[[str], UsageError]


def quantize(
    model: Annotated[Path, typer.Argument(metavar="MODEL")],
    factory: Annotated[str | None, typer.Option("--model")] = None,
    calib_data: Annotated[str | None, typer.Option("--calib-data")] = None,
    per_channel: Annotated[bool, typer.Option("--per-channel/--per-tensor")] = True,
    exclude: Annotated[list[str] | None, typer.Option("--exclude", "-x")] = None,
    keep: Annotated[float, typer.Option("--keep")] = 0.5,
    threads: Annotated[int, typer.Option()] = 0,
    output_dir: Annotated[Path | None, typer.Option("--output-dir", "-d")] = None,
) -> None:
    """Stands for a command."""


def verify(model: Annotated[Path, typer.Argument(metavar="MODEL")]) -> None:
    """Stands for a command that takes a quantized model."""


def report(
    float_model: Annotated[Path | None, typer.Argument(metavar="FLOAT")] = None,
    data: Annotated[str | None, typer.Option("--data")] = None,
) -> None:
    """Stands for a command with evaluation data."""


COMMANDS = {"quantize": quantize, "verify": verify, "report": report}


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., dict[str, dict[str, object]]]:
    def write_and_read(text: str, file: str = "qtool.toml") -> dict[str, dict[str, object]]:
        (tmp_path / file).write_text(text, encoding="utf-8")
        return defaults(tmp_path, COMMANDS)

    return write_and_read


Read = Callable[..., dict[str, dict[str, object]]]


def test_keys_at_the_top_reach_every_command_that_has_a_use_for_them(read: Read) -> None:
    values = read('model = "m.pth"\ncalib_data = "c.npz"\neval-data = "e.npz"\noutput_dir = "build"\n')
    assert values == {
        "quantize": {"model": "m.pth", "calib_data": "c.npz", "output_dir": "build"},
        "verify": {},
        "report": {"data": "e.npz"},
    }


def test_a_commands_table_gives_its_options_with_dashes_or_underscores(read: Read) -> None:
    values = read(
        '[quantize]\nper-channel = false\nexclude = ["Conv", "re:^h"]\nkeep = 1\nthreads = 2\noutput_dir = "o"\n'
    )
    assert values["quantize"] == {
        "per_channel": False,
        "exclude": ["Conv", "re:^h"],
        "keep": 1,
        "threads": 2,
        "output_dir": "o",
    }


def test_a_flag_may_be_set_by_its_opposite(read: Read) -> None:
    assert read("[quantize]\nper-tensor = true\n")["quantize"] == {"per_channel": False}


def test_one_text_is_a_list_of_one(read: Read) -> None:
    assert read('[quantize]\nexclude = "Conv"\n')["quantize"] == {"exclude": ["Conv"]}


def test_a_table_wins_over_the_top_wherever_it_stands(read: Read) -> None:
    assert read('eval_data = "a.npz"\n[report]\ndata = "b.npz"\n')["report"] == {"data": "b.npz"}
    assert read('report = {data = "b.npz"}\neval_data = "a.npz"\n')["report"] == {"data": "b.npz"}


def test_in_a_table_an_option_wins_over_an_argument_of_its_name(read: Read) -> None:
    values = read(
        'model = "m.pth"\n[quantize]\nmodel = "zoo:net"\n[verify]\nmodel = "q.onnx"\n[report]\nfloat = "f.onnx"\n'
    )
    assert values["quantize"] == {"model": "m.pth", "factory": "zoo:net"}
    assert values["verify"] == {"model": "q.onnx"}
    assert values["report"] == {"float_model": "f.onnx"}


def test_settings_may_stand_in_pyproject(read: Read) -> None:
    assert read('[tool.qtool]\neval_data = "e.npz"\n', "pyproject.toml")["report"] == {"data": "e.npz"}


def test_qtool_toml_counts_where_both_exist(read: Read) -> None:
    read('[tool.qtool]\neval_data = "project.npz"\n', "pyproject.toml")
    assert read('eval_data = "own.npz"\n')["report"] == {"data": "own.npz"}


@pytest.mark.parametrize(
    "text", ['[project]\nname = "x"\n', "this is no TOML at all", '[tool.other]\nname = "qtool"\n']
)
def test_a_pyproject_of_others_is_left_alone(read: Read, text: str) -> None:
    assert read(text, "pyproject.toml") == {}


def test_no_settings_are_no_defaults(tmp_path: Path) -> None:
    assert defaults(tmp_path, COMMANDS) == {}


@pytest.mark.parametrize(
    ("text", "problem", "fix"),
    [
        ("modell = 1", "qtool.toml: no setting 'modell'", "did you mean 'model'"),
        ("[quantise]\n", "qtool.toml: no setting 'quantise'", "did you mean 'quantize'"),
        ("[quantize]\nper-chanel = true", "quantize has no setting 'per-chanel'", "did you mean 'per-channel'"),
        ("[verify]\nthreads = 1", "verify has no setting 'threads'", "all of them: model"),
        ('[quantize]\nper-channel = "yes"', "quantize.per-channel is 'yes'", "per-channel = true"),
        ("[quantize]\nthreads = 1.5", "quantize.threads is 1.5, it takes a whole number", "threads = 1"),
        ("[quantize]\nthreads = true", "quantize.threads is true", "threads = 1"),
        ('[quantize]\nkeep = "much"', "quantize.keep is 'much', it takes a number", "keep = 0.5"),
        ("[quantize]\ncalib-data = 3", "quantize.calib-data is 3, it takes a text", 'calib-data = "..."'),
        ("[quantize]\nexclude = [1]", "quantize.exclude is 1, it takes a text", 'exclude = "..."'),
        ('[quantize]\ncalib-data = ["a"]', "quantize.calib-data is a list", 'calib-data = "..."'),
        ("[quantize]\nper-channel = true\nper_tensor = true", "per_tensor is set twice", "keep one"),
        ("model = 5", "qtool.toml: model is 5, it takes a text", 'model = "..."'),
        ("quantize = true", "quantize is true, and qtool quantize is a command", "[quantize]"),
        ("a = \n", "qtool.toml is not valid TOML", "correct it"),
    ],
)
def test_wrong_settings_name_the_file_the_key_and_the_way_out(read: Read, text: str, problem: str, fix: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(text)
    assert problem in caught.value.problem
    assert fix in caught.value.fix


def test_tool_qtool_must_be_a_table(read: Read) -> None:
    with pytest.raises(UsageError, match="is not a table"):
        read("[tool]\nqtool = 1\n", "pyproject.toml")


def test_every_option_of_every_command_can_be_set() -> None:
    for info in app.registered_commands:
        assert info.callback is not None
        found = parameters(info.callback)
        assert {parameter.name for parameter in found} >= {"json", "quiet", "debug"}, info.callback
        assert all(parameter.keys for parameter in found), info.callback


def test_every_shared_key_reaches_a_command() -> None:
    commands = {info.callback.__name__: parameters(info.callback) for info in app.registered_commands if info.callback}
    for key, shared in SHARED.items():
        receivers = [
            name
            for name, found in commands.items()
            for parameter in found
            if parameter.is_argument == shared.is_argument and set(parameter.keys) & set(shared.keys)
        ]
        assert receivers, key
        assert set(shared.commands or ()) <= set(commands), key
