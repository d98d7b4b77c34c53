"""Runs a float model over samples one by one, and does nothing with the results: what ``calibration.py`` compares with.

Run: python benchmarks/plain_inference.py MODEL.onnx DATA.npz [--threads N] [--limit N].
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

from rows import Rows, open_session


def main() -> None:
    """Opens the model, reads the data, runs."""
    parser = argparse.ArgumentParser(description="Runs a float model over samples one by one.")
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--limit", type=int, help="only the first so many samples")
    arguments = parser.parse_args()
    session = open_session(arguments.model, arguments.threads)
    for feed in islice(Rows.read(session, arguments.data).singles(), arguments.limit):
        session.run(None, feed)


if __name__ == "__main__":
    main()
