"""The option of commands whose tasks other processes can do, and the workers that it names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from qtool.cli.options.groups import SPEED

if TYPE_CHECKING:
    from qtool.cluster.work import Workers
    from qtool.progress import Progress

ClusterOption: TypeAlias = Annotated[
    str | None,
    typer.Option("--cluster", metavar="PLACE", help="Ray's workers: local, local:N or ADDRESS.", rich_help_panel=SPEED),
]


@contextmanager
def chosen_workers(cluster: str | None, progress: Progress, *, threads: int) -> Iterator[Workers]:
    """Yields the workers of ``--cluster``, whose results are kept until they end well; without it, this process.

    Raises:
        UsageError: Ray is not installed, or the option makes no sense.
        InputError: the cluster cannot be reached.
    """
    from qtool.cluster.work import IN_THIS_PROCESS, KeepingWorkers

    if cluster is None:
        yield IN_THIS_PROCESS
        return
    from qtool.cluster.kept_results import results_kept
    from qtool.cluster.ray_cluster import ray_workers

    with results_kept() as place, ray_workers(cluster, threads=threads) as workers:
        each = f"{workers.threads} thread{'s' if workers.threads != 1 else ''}"
        progress.note(f"{workers.count} worker{'s' if workers.count != 1 else ''} of {each}")
        yield KeepingWorkers(workers, place)
