"""``--method`` and the parameters of range methods, as ``RANGE_METHODS`` and ``RANGE_PARAMETERS`` have them."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from qtool.calib.ranges import RANGE_METHODS, RANGE_PARAMETERS, range_method
from qtool.cli.options.groups import CALIBRATION
from qtool.errors import UsageError

if TYPE_CHECKING:
    from qtool.calib.ranges import RangeMethod

# Chooses among the methods by the outputs.
AUTO = "auto"
METHODS = (AUTO, *RANGE_METHODS)


def _method_names() -> list[str]:
    return list(METHODS)


def _known_method(value: str) -> str:
    if value not in METHODS:
        names = ", ".join(f"'{name}'" for name in METHODS)
        raise typer.BadParameter(f"'{value}' is not one of {names}.")
    return value


MethodOption: TypeAlias = Annotated[
    str,
    typer.Option(
        "--method",
        metavar="NAME",
        callback=_known_method,
        autocompletion=_method_names,
        help=f"Range method: {', '.join(METHODS)}.",
        rich_help_panel=CALIBRATION,
    ),
]


def with_range_parameters(command: Callable[..., None]) -> Callable[..., None]:
    """Returns ``command`` with an option for each entry of ``RANGE_PARAMETERS``, which it finds in its context."""
    added: dict[str, Any] = {}
    for method, parameter in RANGE_PARAMETERS.items():
        option = typer.Option(
            f"--{parameter.option}",
            metavar="N",
            help=f"{method}: {parameter.meaning}. Default: {parameter.default:g}.",
            rich_help_panel=CALIBRATION,
        )
        added[_name(parameter.option)] = Annotated[type(parameter.default) | None, option]

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        command(*arguments, **{name: value for name, value in options.items() if name not in added})

    hints = typing.get_type_hints(command, include_extras=True)
    parameters = []
    for name, own in inspect.signature(command).parameters.items():
        parameters.append(own.replace(annotation=hints[name]))
        if name == "method":
            parameters += [own.replace(name=new, annotation=hint, default=None) for new, hint in added.items()]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    vars(run)["__signature__"] = inspect.Signature(parameters, return_annotation=None)
    return run


def chosen_range_method(name: str, options: Mapping[str, Any]) -> RangeMethod:
    """Returns the method of that name with its parameter; for ``auto`` the one that the others are compared with.

    Args:
        name: one of ``METHODS``.
        options: the parameters of the command by name, among them those of ``with_range_parameters``.

    Raises:
        UsageError: a parameter of another method is given.
        CalibError: the parameter makes no sense.
    """
    value = None
    for owner, parameter in RANGE_PARAMETERS.items():
        given = options.get(_name(parameter.option))
        if given is None:
            continue
        if owner != name:
            raise UsageError(
                f"--{parameter.option} has no effect with --method {name}",
                fix=f"add --method {owner}, or drop --{parameter.option}",
            )
        value = given
    return range_method("minmax" if name == AUTO else name, value)


def _name(option: str) -> str:
    return option.replace("-", "_")
