"""``qtool report`` of several quantized models at once, and beside an earlier report."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner, Result

from qtool.cli.app import app

Pair = Any  # the dataclass in conftest.py, which tests cannot import

pytestmark = pytest.mark.usefixtures("without_memory")


@pytest.fixture
def coarse(pair: Pair, tmp_path: Path, classifier: Callable[..., onnx.ModelProto]) -> Path:
    """A second quantized model, with worse weights."""
    random = np.random.default_rng(1)
    worse = pair.weights + 0.5 * random.normal(size=pair.weights.shape).astype(np.float32)
    onnx.save(classifier(worse, quantized=True), tmp_path / "coarse.onnx")
    return tmp_path / "coarse.onnx"


def report(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def test_each_model_has_the_figures_that_it_has_alone(pair: Pair, coarse: Path) -> None:
    options = ("--data", pair.data, "--no-latency", "--json")
    both = json.loads(report(pair.float_model, pair.quantized_model, coarse, *options).stdout)
    for place, model in enumerate((pair.quantized_model, coarse)):
        alone = json.loads(report(pair.float_model, model, *options).stdout)["figures"]
        together = both["quantized_models"][place]["figures"]
        for figure in ("sqnr_db", "agreement", "top1", "top1_drop", "size_mb"):
            assert together[figure] == alone[figure]
    names = [model["name"] for model in both["quantized_models"]]
    assert names == ["quantized.onnx", "coarse.onnx"]


def test_a_gate_names_the_model_that_misses_it(pair: Pair, coarse: Path) -> None:
    options = ("--data", pair.data, "--no-latency")
    result = report(pair.float_model, pair.quantized_model, coarse, *options, "--fail-if", "sqnr_db < 15")
    assert result.exit_code == 1
    assert "a figure misses its gate: coarse.onnx: sqnr_db is" in result.stderr


def test_all_models_are_timed_together(pair: Pair, coarse: Path) -> None:
    result = report(pair.float_model, pair.quantized_model, coarse, "--data", pair.data, "--rounds", 3, "--json")
    first, second = json.loads(result.stdout)["quantized_models"]
    assert first["figures"]["latency_float_ms"] == second["figures"]["latency_float_ms"] > 0
    for model in (first, second):
        low, high = model["intervals"]["speedup"]
        assert low < model["figures"]["speedup"] < high


def test_a_regression_is_1_with_both_values(pair: Pair, coarse: Path, tmp_path: Path) -> None:
    earlier = tmp_path / "before.json"
    options = ("--data", pair.data, "--no-latency")
    assert report(pair.float_model, pair.quantized_model, *options, "-o", earlier).exit_code == 0
    assert report(pair.float_model, pair.quantized_model, *options, "--baseline", earlier).exit_code == 0
    result = report(pair.float_model, coarse, *options, "--baseline", earlier)
    assert result.exit_code == 1
    assert "sqnr_db is" in result.stderr
    assert "in before.json" in result.stderr
    other = report(pair.float_model, coarse, *options, "--limit", 5, "--baseline", earlier)
    assert other.exit_code == 2
    assert "same data" in other.stderr


def test_memory_does_not_grow_with_the_samples(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
        import numpy as np

        def {name}():
            random = np.random.default_rng(0)
            for _ in range({steps}):
                yield {{"x": random.normal(size=(1024, 8)).astype(np.float32)}}
    """
    source = "".join(code.format(name=name, steps=steps) for name, steps in (("few", 8), ("many", 200)))
    (tmp_path / "feeds.py").write_text("\n".join(line[8:] for line in source.splitlines()))
    monkeypatch.chdir(tmp_path)

    def peak(name: str) -> int:
        tracemalloc.start()
        result = report(
            pair.float_model, pair.quantized_model, "--data", f"feeds.py:{name}", "--batch-size", 1024, "--no-latency"
        )
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert result.exit_code == 0, result.stderr
        return found

    few = peak("few")
    assert peak("many") < few + 1_000_000  # 192 batches of 1024 samples and their outputs would be 14 MB
