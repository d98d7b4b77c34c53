"""Shows what held-back samples let one expect of other data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from qtool.cli.console import Console
from qtool.metrics.outlook import Outlook


def show_outlooks(console: Console, outlooks: Mapping[str, Outlook]) -> None:
    """Prints what to expect of each output on other data, and warns where the samples say little about it."""
    for name, outlook in outlooks.items():
        console.say(f"'{name}' on other data like these: {outlook.low_db:.1f} to {outlook.high_db:.1f} dB")
        if outlook.says_little:
            console.warn(
                f"the samples are inconclusive for '{name}': its {outlook.gate} is undecided for {outlook.undecided} "
                f"of {outlook.samples}; expect {outlook.low_db:.1f} dB on undecided ones, or give more data"
            )


def outlook_as_json(outlook: Outlook | None) -> dict[str, object] | None:
    """Returns what to expect of one output as values for JSON."""
    if outlook is None:
        return None
    return {**asdict(outlook), "says_little": outlook.says_little}
