"""Functions that yield feeds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qtool.calib.dataset import open_dataset
from qtool.calib.specs import TensorSpec

Floats = Callable[..., TensorSpec]
Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a Python file and returns the source that names its function ``feeds``."""

    def write_file(body: str) -> str:
        path = tmp_path / "loader.py"
        path.write_text(f"import numpy as np\n\n{body}\n", encoding="utf-8")
        return f"{path}:feeds"

    return write_file


def test_what_a_function_yields_is_fed_sample_by_sample(write: Write, floats: Floats) -> None:
    source = write(
        """
def feeds():
    for number in range(3):
        yield {"x": np.full((2, 4), number, "float32"), "ignored": None}
"""
    )
    data = open_dataset(source)
    feeds = list(data.feeds([floats("x", "n", 4)], batch_size=4))
    assert [feed["x"][:, 0].tolist() for feed in feeds] == [[0, 0, 1, 1], [2, 2]]
    assert data.count is None


def test_each_pass_calls_the_function_anew(write: Write, floats: Floats) -> None:
    source = write('def feeds():\n    return [{"x": np.zeros((1, 4), "float32")}] * 3')
    data = open_dataset(source)
    assert [len(list(data.feeds([floats("x", "n", 4)]))) for _ in range(2)] == [3, 3]


def test_an_endless_function_is_read_as_far_as_the_limit(write: Write, floats: Floats) -> None:
    source = write(
        """
def feeds():
    number = 0
    while True:
        yield {"x": np.full(4, number, "float32")}
        number += 1
"""
    )
    feeds = open_dataset(source).feeds([floats("x", "n", 4)], limit=5, skip=3)
    assert [int(feed["x"][0, 0]) for feed in feeds] == [3, 4, 5, 6, 7]


def test_bare_arrays_feed_the_only_input(write: Write, floats: Floats, refuses: Any) -> None:
    data = open_dataset(write('def feeds():\n    yield np.zeros((2, 4), "float32")'))
    assert [feed["x"].shape for feed in data.feeds([floats("x", "n", 4)], batch_size=2)] == [(2, 4)]
    with refuses("holds one input, the model has 2", fix="by name"):
        data.feeds([floats("x", "n", 4), floats("y", "n", 4)])


def test_torch_tensors_and_lists_are_arrays_too(write: Write) -> None:
    source = write('import torch\ndef feeds():\n    yield {"x": torch.ones(1, 2), "ids": [[1, 2]]}')
    inputs = [TensorSpec("x", np.dtype("f4"), ("n", 2)), TensorSpec("ids", np.dtype("i8"), ("n", 2))]
    (feed,) = open_dataset(source).feeds(inputs)
    assert feed["x"].tolist() == [[1, 1]]
    assert feed["ids"].tolist() == [[1, 2]]


def test_specs_come_from_the_first_step(write: Write) -> None:
    data = open_dataset(write('def feeds():\n    yield {"x": np.zeros((2, 4), "float32"), "_label": np.zeros(2)}'))
    assert data.specs() == (TensorSpec("x", np.dtype("f4"), (None, 4)),)


def test_labels_join_over_the_steps(write: Write, refuses: Any) -> None:
    data = open_dataset(
        write('def feeds():\n    for n in range(3):\n        yield {"x": np.zeros((2, 4)), "_label": [n, n]}')
    )
    label = data.array("_label")
    assert label is not None
    assert label.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.array("_none") is None
    with refuses("gives no '_label' at step 1", fix="every step"):
        open_dataset(write('def feeds():\n    yield {"_label": [1]}\n    yield {"x": [1]}')).array("_label")


def test_modules_of_the_working_folder_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, floats: Floats
) -> None:
    (tmp_path / "my_calibration_loader.py").write_text("def feeds():\n    yield {'x': [[1.0, 2.0]]}\n")
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    (feed,) = open_dataset("my_calibration_loader:feeds").feeds([floats("x", "n", 2)])
    assert feed["x"].tolist() == [[1, 2]]
    assert sys.path == path


def test_a_file_may_import_what_lies_beside_it(tmp_path: Path, write: Write, floats: Floats) -> None:
    (tmp_path / "calibration_values_beside.py").write_text("VALUES = [[3.0, 4.0]]\n")
    source = write("from calibration_values_beside import VALUES\ndef feeds():\n    yield {'x': VALUES}")
    (feed,) = open_dataset(source).feeds([floats("x", "n", 2)])
    assert feed["x"].tolist() == [[3, 4]]


@pytest.mark.parametrize(
    ("source", "problem", "fix"),
    [
        ("no_such_module_here:feeds", "no module 'no_such_module_here'", "path/to/file.py:function"),
        ("no/such/file.py:feeds", "no file no/such/file.py", "check the path"),
        ("json:lodas", "no 'lodas' in json", "did you mean json:loads?"),
        ("string:digits", "string:digits is a str", "a function"),
    ],
)
def test_a_function_that_is_not_there_is_named(source: str, problem: str, fix: str, refuses: Any) -> None:
    with refuses(problem, fix=fix):
        open_dataset(source)


@pytest.mark.parametrize(
    ("body", "problem", "fix"),
    [
        ("import no_such_package_here\ndef feeds(): ...", "needs the module 'no_such_package_here'", "pip install"),
        ("raise OSError('no disk')", "raises OSError: no disk", "correct it"),
        ("def feeds(:", "raises SyntaxError", "correct it"),
    ],
)
def test_a_module_that_cannot_be_imported_says_why(
    write: Write, refuses: Any, body: str, problem: str, fix: str
) -> None:
    with refuses(problem, fix=fix):
        open_dataset(write(body))


@pytest.mark.parametrize(
    ("body", "problem", "fix"),
    [
        ("def feeds(path): ...", "raises TypeError", "takes no arguments"),
        ("def feeds():\n    return 3", "raises TypeError", "returns or yields"),
        ("def feeds():\n    yield from ()", "has no samples", "a few dozen"),
        ("def feeds():\n    yield {'x': np.zeros((0, 2), 'f4')}", "has no samples", "a few dozen"),
        ("def feeds():\n    yield (1, 2)", "yields a tuple at step 0", "{'input name': array}"),
        ("def feeds():\n    yield {'y': [[1.0, 2.0]]}", "no array 'x' in step 0", "rename 'y' to 'x'"),
        ("def feeds():\n    yield {'x': [[1.0]]}", "axis 1 is 1 instead of 2", "dimension left free"),
        ("def feeds():\n    yield {'x': np.zeros((1, 2), 'u1')}", "is uint8", "/ 255"),
        ("def feeds():\n    yield {'x': [[1.0, None]]}", "'x' of", "numpy.asarray"),
        ("def feeds():\n    yield {'x': [[1.0, 2.0], [1.0]]}", "is not an array", "numpy.asarray"),
        ("def feeds():\n    yield {'x': [[1.0, np.nan]]}", "sample 0, holds nan", "remove the sample"),
    ],
)
def test_a_first_step_that_cannot_be_used_is_refused_at_once(
    write: Write, floats: Floats, refuses: Any, body: str, problem: str, fix: str
) -> None:
    data = open_dataset(write(body))
    with refuses(problem, fix=fix):
        next(data.feeds([floats("x", "n", 2)]))


def test_a_failure_in_the_middle_names_the_function(write: Write, floats: Floats, refuses: Any) -> None:
    source = write("def feeds():\n    yield {'x': [[1.0, 2.0]]}\n    raise ValueError('no\\nmore')")
    feeds = open_dataset(source).feeds([floats("x", "n", 2)])
    with refuses("loader.py:feeds raises ValueError: no more", fix="correct the function"):
        list(feeds)
