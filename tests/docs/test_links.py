"""Links between the pages lead somewhere, and every page can be found."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.conftest import ROOT, pages

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.DOTALL | re.MULTILINE)


def _links(path: Path) -> list[str]:
    """Returns the targets of the links that stay inside of the repository."""
    return [link for link in _LINK.findall(_CODE.sub("", path.read_text(encoding="utf-8"))) if "://" not in link]


def _anchors(path: Path) -> set[str]:
    """Returns the anchors of the headings, as GitHub and mkdocs both make them of plain titles."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings(path: Path) -> None:
    for link in _links(path):
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link


@pytest.mark.parametrize("path", pages()[1:], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_pages_of_the_site_link_to_nothing_outside_of_it(path: Path) -> None:
    assert not [link for link in _links(path) if not _target(path, link).is_relative_to(ROOT / "docs")]


def _target(path: Path, link: str) -> Path:
    return (path.parent / link.partition("#")[0]).resolve() if not link.startswith("#") else path


def test_the_navigation_of_the_site_has_every_page() -> None:
    named = re.findall(r"[\w\-/]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2])
    assert sorted(named) == sorted(path.relative_to(ROOT / "docs").as_posix() for path in pages()[1:])


def test_every_page_is_reached_from_the_readme() -> None:
    seen, left = set(), [ROOT / "README.md"]
    while left:
        path = left.pop()
        if path not in seen and path.suffix == ".md" and path.exists():
            seen.add(path)
            left += [_target(path, link) for link in _links(path)]
    assert set(pages()) <= seen
