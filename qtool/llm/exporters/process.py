"""Runs one exporter: ``python -m qtool.llm.exporters.process NAME SOURCE TARGET SCRATCH FUSE``."""

from __future__ import annotations

import sys
from pathlib import Path

from qtool.llm.exporters.selection import load_exporter


def main(name: str, source: str, target: str, scratch: str, fuse: str) -> None:
    """Lets the exporter ``name`` write the folder."""
    load_exporter(name).export(Path(source), Path(target), Path(scratch), fuse=fuse == "fuse")


if __name__ == "__main__":
    main(*sys.argv[1:])
