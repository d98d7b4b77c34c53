"""``qtool calibrate --shard`` and ``--merge``: parts of the data, and the whole of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper


def _shard(run: Any, model: Path, data: Path, shard: str, *options: object) -> Path:
    path = Path(f"{shard.replace('/', '-of-')}{len(options)}.stats.npz")
    outcome = run("calibrate", model, "--calib-data", data, "--shard", shard, "-o", path, "--quiet", *options)
    assert outcome.code == 0, outcome.err
    return path


def test_merged_shards_are_the_bytes_of_one_pass_and_quantize_alike(run: Any, model: Path, data: Path) -> None:
    assert run("calibrate", model, "--calib-data", data, "-o", "one.npz").code == 0
    parts = [_shard(run, model, data, f"{number}/3") for number in (2, 3, 1)]
    outcome = run("calibrate", "--merge", *parts, "-o", "all.npz", "--json")
    assert outcome.code == 0, outcome.err
    assert (outcome.json["samples"], outcome.json["batches"]) == (40, 10)
    assert Path("all.npz").read_bytes() == Path("one.npz").read_bytes()
    for name in ("one", "all"):
        outcome = run(
            *("quantize", model, "--calib-stats", f"{name}.npz", "--method", "entropy", "-o", f"{name}.int8.onnx")
        )
        assert outcome.code == 0, outcome.err
    assert Path("all.int8.onnx").read_bytes() == Path("one.int8.onnx").read_bytes()


def test_shards_share_the_samples(run: Any, model: Path, data: Path) -> None:
    seen = []
    for number in range(1, 5):
        outcome = run("calibrate", model, "--calib-data", data, "--shard", f"{number}/4", "--json")
        assert Path(outcome.json["output"]).name == f"net.{number}-of-4.stats.npz"
        seen.append(outcome.json["samples"])
    # Ten batches of four.
    assert seen == [8, 12, 8, 12]


def test_more_shards_than_batches_leave_some_empty(run: Any, model: Path, data: Path) -> None:
    options = ("--limit", 6)
    assert run("calibrate", model, "--calib-data", data, "-o", "one.npz", *options).code == 0
    parts = [_shard(run, model, data, f"{number}/4", *options) for number in range(1, 5)]
    assert run("calibrate", "--merge", *parts, "-o", "all.npz").code == 0
    assert Path("all.npz").read_bytes() == Path("one.npz").read_bytes()


def test_data_of_unknown_length_has_shards_too(run: Any, model: Path, data: Path) -> None:
    Path("feeds.py").write_text(
        "import numpy as np\n\n\ndef feeds():\n    for image in np.load('data.npz')['image'][:11]:\n"
        "        yield {'image': image[None]}\n"
    )
    assert run("calibrate", model, "--calib-data", "feeds.py:feeds", "-o", "one.npz").code == 0
    parts = [_shard(run, model, Path("feeds.py:feeds"), f"{number}/2") for number in (1, 2)]
    assert run("calibrate", "--merge", *parts, "-o", "all.npz").code == 0
    assert Path("all.npz").read_bytes() == Path("one.npz").read_bytes()


def _refusal(run: Any, *files: Path) -> str:
    Path("all.npz").write_bytes(b"kept")
    outcome = run("calibrate", "--merge", *files, "-o", "all.npz", "--force")
    assert outcome.code == 2
    assert Path("all.npz").read_bytes() == b"kept"
    return " ".join(str(outcome.err).split())


def test_a_missing_shard_is_named(run: Any, model: Path, data: Path) -> None:
    parts = [_shard(run, model, data, shard) for shard in ("1/4", "3/4")]
    assert "shards are missing: 2/4, 4/4" in _refusal(run, *parts)


def test_a_doubled_shard_is_named(run: Any, model: Path, data: Path) -> None:
    first, second = (_shard(run, model, data, shard) for shard in ("1/2", "2/2"))
    again = Path("again.npz")
    again.write_bytes(first.read_bytes())
    assert f"{again} and {first} both hold shard 1/2" in _refusal(run, first, second, again)


def test_a_shard_of_another_count_is_named(run: Any, model: Path, data: Path) -> None:
    parts = [_shard(run, model, data, shard) for shard in ("1/3", "2/3", "3/4")]
    assert f"{parts[2]} is shard 3/4, one of 4 and not of 3 as {parts[0]}" in _refusal(run, *parts)


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (("--batch-size", 2), "was made with batch size 2, not 4 as"),
        (("--limit", 30), "was made with limit 30, other than"),
        (("--exact",), "was made with histograms exact, not sampled as"),
    ],
)
def test_a_shard_with_other_settings_is_named(
    run: Any, model: Path, data: Path, options: tuple[object, ...], difference: str
) -> None:
    parts = [_shard(run, model, data, shard) for shard in ("1/3", "2/3")]
    foreign = _shard(run, model, data, "3/3", *options)
    assert f"{foreign} {difference} {parts[0]}" in _refusal(run, foreign, *parts)


def test_a_shard_of_another_model_or_other_data_is_named(run: Any, model: Path, data: Path) -> None:
    parts = [_shard(run, model, data, shard) for shard in ("1/3", "2/3")]
    other = onnx.load(model)
    other.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(other.graph.initializer[0]) + 1, other.graph.initializer[0].name)
    )
    onnx.save(other, "other.onnx")
    foreign = _shard(run, Path("other.onnx"), data, "3/3")
    assert f"{foreign} is of another model than {parts[0]}" in _refusal(run, *parts, foreign)
    foreign.unlink()
    np.savez("other.npz", image=np.load(data)["image"] + 1)
    foreign = _shard(run, model, Path("other.npz"), "3/3")
    assert f"{foreign} is of other data than {parts[0]}" in _refusal(run, *parts, foreign)


def test_files_that_are_no_shards_are_named(run: Any, model: Path, data: Path) -> None:
    assert run("calibrate", model, "--calib-data", data, "-o", "one.npz").code == 0
    part = _shard(run, model, data, "1/2")
    assert "one.npz is no shard" in _refusal(run, part, Path("one.npz"))
    Path("torn.npz").write_bytes(part.read_bytes()[:1000])
    assert "torn.npz is not a complete statistics file" in _refusal(run, part, Path("torn.npz"))
    assert "none.npz does not exist" in _refusal(run, part, Path("none.npz"))


@pytest.mark.parametrize("shard", ["0/3", "4/3", "3", "a/b", "1/0", "-1/3"])
def test_a_shard_that_cannot_be_is_refused(run: Any, model: Path, data: Path, shard: str) -> None:
    outcome = run("calibrate", model, "--calib-data", data, f"--shard={shard}")
    assert outcome.code == 2
    assert "shard" in outcome.err
    assert not list(Path().glob("*.stats.npz"))


def test_merge_takes_files_and_a_name_and_nothing_else(run: Any, model: Path, data: Path) -> None:
    part = _shard(run, model, data, "1/1")
    for arguments, problem in (
        (("--merge", part), "the joined statistics have no name"),
        (("--merge", part, "-o", "a.npz", "--calib-data", data), "--calib-data has no effect with --merge"),
        (("--merge", part, "-o", "a.npz", "--shard", "1/2"), "--shard has no effect with --merge"),
        (("--merge", "-o", "a.npz"), "no statistics are given"),
        ((model, part, "--calib-data", data), "one file too many"),
    ):
        outcome = run("calibrate", *arguments)
        assert outcome.code == 2
        assert problem in outcome.err
    # What the settings say of other runs is no matter.
    Path("qtool.toml").write_text(f'model = "net.onnx"\ncalib_data = {json.dumps(str(data))}\n')
    assert run("calibrate", "--merge", part, "-o", "a.npz").code == 0
    assert run("calibrate", "-o", "b.npz").code == 0
    assert Path("a.npz").read_bytes() == Path("b.npz").read_bytes()
