"""The times that a search depends on: measured, given, or recorded to repeat a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any

from qtool.backends.machine_profile import MachineProfile, profile_from_json
from qtool.errors import InputError
from qtool.search.layer_times import LayerTime


class Stage(IntEnum):
    """How much of the model stays float for speed."""

    NOTHING = 0
    SLOW_LAYERS = 1
    DOUBTFUL_LAYERS = 2
    EVERYTHING = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedChoice:
    """A choice of float layers that was timed beside integers everywhere.

    Attributes:
        layers: those in float.
        slowdown: how much longer a run takes than with integers everywhere, as a fraction; below 0 where it is shorter.
        saved: how much longer the float model takes than integers everywhere, as a fraction; 0 where it is faster, None
            where that decides nothing and was not timed.
    """

    layers: tuple[str, ...]
    slowdown: float
    saved: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The source of the times of a search.

    Attributes:
        profile: the cost of kernels; None to time them on this machine, with the model's own layers and the result.
        layers: the time of each layer; None to predict it from ``profile``, or to time it.
        stage: how much stays float; None to choose it.
        for_size: whether layers stay on integers also where that saves no time.
        choices: the choices that were timed, in order; None to time them, or to trust predictions of ``profile``.
    """

    profile: MachineProfile | None = None
    layers: Mapping[str, LayerTime] | None = None
    stage: Stage | None = None
    for_size: bool = False
    choices: tuple[TimedChoice, ...] | None = None

    @property
    def is_open(self) -> bool:
        """Whether times are measured on this machine."""
        return self.profile is None

    def as_json(self) -> dict[str, Any]:
        """Returns everything needed to repeat the choices, for a manifest."""
        return {
            "profile": None if self.profile is None else self.profile.as_json(),
            "layers": None if self.layers is None else {name: asdict(time) for name, time in self.layers.items()},
            "stage": None if self.stage is None else int(self.stage),
            "for_size": self.for_size,
            "choices": None if self.choices is None else [asdict(choice) for choice in self.choices],
        }


def timing_from_json(document: Any, source: str) -> Timing:
    """Reads what ``as_json`` wrote.

    Raises:
        InputError: it is something else.
    """
    try:
        layers, profile, choices = document["layers"], document["profile"], document.get("choices")
        return Timing(
            profile=None if profile is None else profile_from_json(profile, source, kinds=()),
            layers=None if layers is None else {str(name): LayerTime(**time) for name, time in layers.items()},
            stage=None if document["stage"] is None else Stage(document["stage"]),
            for_size=bool(document["for_size"]),
            choices=None if choices is None else tuple(_choice(**choice) for choice in choices),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{source} does not record the times of its run", fix="quantize again") from error


def _choice(layers: Sequence[str], slowdown: float, saved: float | None) -> TimedChoice:
    return TimedChoice(
        layers=tuple(map(str, layers)), slowdown=float(slowdown), saved=None if saved is None else float(saved)
    )
