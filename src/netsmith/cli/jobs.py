"""Jobs of a cluster that help a run: each takes part in its shared work through the cache, and leaves (submitit)."""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from netsmith.distributed import launched
from netsmith.errors import ConfigError, MissingDependencyError

from .session import Session


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --worker, --jobs, --cluster and --slurm."""
    group = parser.add_argument_group("many processes", "beside torchrun; all of them need to see the same --cache")
    group.add_argument(
        "--worker",
        action="store_true",
        help="help a run with the same config and --cache: compute what is left of its representations and scores, "
        "write no results, leave; any number of them, at any time",
    )
    group.add_argument("--jobs", type=int, default=0, metavar="N", help="start N such workers as jobs of the cluster")
    group.add_argument(
        "--cluster", choices=("slurm", "local"), default="slurm", help="where jobs run; local: processes here"
    )
    group.add_argument(
        "--slurm",
        dest="parameters",
        action="append",
        default=[],
        type=_parameter,
        metavar="KEY=VALUE",
        help="a parameter of the jobs, e.g. partition=gpu, time=120, gpus_per_node=1; may be given many times",
    )


def _parameter(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"KEY=VALUE was expected, such as partition=gpu; '{text}' came")
    return key, int(value) if value.isdigit() else value


_LOOK, _PATIENCE = 2.0, 30.0  # seconds between two looks at the jobs, and to wait for the last one


@contextmanager
def helpers(
    words: Sequence[str], count: int, cluster: str, parameters: Mapping[str, Any], folder: Path, session: Session
) -> Iterator[None]:
    """Meanwhile `count` jobs run `netsmith WORDS`; those that are still there at the end are cancelled.

    Of a job that fails the user is told when it happens, since the run goes on without it.

    Args:
        words: of a worker's command line.
        count: how many; 0 for none.
        cluster: slurm, or local for processes on this machine.
        parameters: of the jobs, as slurm names them.
        folder: of the jobs' logs.
        session: told what was started.

    Raises:
        MissingDependencyError: without the `slurm` extra.
        ConfigError: there is no such cluster here, or it does not know a parameter.
    """
    first = launched.rank() == 0  # of processes that were launched together, one asks for help
    jobs = _submitted(words, count, cluster, parameters, folder) if count and first else []
    leaving = threading.Event()
    watcher = threading.Thread(target=_watch, args=(jobs, leaving, session), daemon=True)
    if jobs:
        ids = ", ".join(str(job.job_id) for job in jobs)
        session.console.note(f"{count} jobs of {cluster} help: {ids}; their logs are in {folder}")
        watcher.start()
    try:
        yield
    finally:
        leaving.set()
        if jobs:
            watcher.join(_PATIENCE)
        for job in jobs:
            with suppress(Exception):  # a job that has ended by itself cannot be cancelled
                if not job.done():
                    job.cancel()


def _watch(jobs: Sequence[Any], leaving: threading.Event, session: Session) -> None:
    """Tell of every job that fails, until all have ended or the run is leaving."""
    left, last = list(jobs), False
    while left and not last:
        last = leaving.wait(_LOOK)
        for job in [job for job in left if _ended(job)]:
            left.remove(job)
            if _failed(job):
                session.console.note(f"warning: job {job.job_id} failed and helps no more; why is in {_log_of(job)}")


def _ended(job: Any) -> bool:
    with suppress(Exception):  # a cluster that does not answer now is asked again
        return bool(job.done())
    return False


def _failed(job: Any) -> bool:
    try:
        return job.exception() is not None
    except Exception:  # it left no result that can be read
        return True


def _log_of(job: Any) -> Path:
    return Path(job.paths.stderr)


def _submitted(
    words: Sequence[str], count: int, cluster: str, parameters: Mapping[str, Any], folder: Path
) -> Sequence[Any]:
    try:
        import submitit
        from submitit.helpers import CommandFunction
    except ImportError as error:
        raise MissingDependencyError("--jobs needs submitit: pip install 'netsmith[slurm]'") from error
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        known = {"timeout_min": int(parameters.get("time", 24 * 60))}
        others = {f"slurm_{key}": value for key, value in parameters.items() if key != "time"}
        executor.update_parameters(name="netsmith", **known, **(others if cluster == "slurm" else {}))
    except (RuntimeError, ValueError, NameError, TypeError) as error:
        raise ConfigError(f"no jobs can be started with --cluster {cluster}: {error}") from error
    command = [sys.executable, "-m", "netsmith", *words]
    return [executor.submit(CommandFunction(command, verbose=False)) for _ in range(count)]
