"""Tables of the reference are complete, and figures in the README are those that were measured."""

from __future__ import annotations

import re
import tomllib

import pytest

from qtool.calib.datasets.images import PRESETS, Preprocess
from qtool.reporting.figures import FIGURES
from tests.docs.conftest import ROOT, Page, code_blocks

_LONGEST_README = 150


def _rows(text: str) -> list[str]:
    """Returns the first cells of tables that stand in code."""
    return re.findall(r"^\| `([^`]+)`", text, re.MULTILINE)


def _cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]


def test_the_readme_is_short(page: Page) -> None:
    assert len(page("README.md").splitlines()) <= _LONGEST_README


def test_the_settings_are_toml(page: Page) -> None:
    (settings,) = [text for language, text in code_blocks(page("docs/quickstart.md")) if language == "toml"]
    assert tomllib.loads(settings)["model"] == "samples/mnist_cnn.pth"


def test_every_figure_is_described(page: Page) -> None:
    assert _rows(page("docs/reference/figures.md")) == list(FIGURES)


@pytest.mark.parametrize("names", [PRESETS, Preprocess.__dataclass_fields__], ids=["presets", "keys"])
def test_every_preset_and_key_of_images_is_described(page: Page, names: dict[str, object]) -> None:
    assert not set(names) - set(_rows(page("docs/guides/data.md")))


def test_every_schema_of_json_is_listed(page: Page) -> None:
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "qtool").rglob("*.py")]
    used = {schema for text in sources for schema in re.findall(r'"(qtool\.[a-z-]+/\d+)"', text)}
    assert len(used) > 10
    assert set(_rows(page("docs/reference/json.md"))) >= used


def test_the_readme_compares_by_what_was_measured(page: Page) -> None:
    measured = page("docs/processors.md").partition("### AVX-512 with VNNI\n")[2]
    titles, _, *rows = [row for row in _cells(measured) if len(row) == 6] + [[]]
    by_model = {row[0]: dict(zip(titles, row, strict=True)) for row in rows if row}
    shown, _, *models = _cells(page("README.md"))
    assert len(models) >= 5
    for row in models:
        assert dict(zip(shown, row, strict=True)).items() <= by_model[row[0]].items()


def test_the_readme_names_what_people_search_for(page: Page) -> None:
    words = ("post-training quantization", "QDQ", "GPTQ", "SmoothQuant", "cross-layer equalization", "LoRA")
    assert not [word for word in words if word not in page("README.md").partition("\n## ")[0]]
