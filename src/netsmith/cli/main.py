"""The entry of the command line: verbs, and one place where every failure becomes a message and an exit code."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Sequence

from netsmith import __version__
from netsmith.distributed import launched
from netsmith.errors import ConfigError, did_you_mean

from . import (
    compare,
    demo,
    dissect,
    evaluate,
    explore,
    export,
    morph,
    presets,
    reassemble,
    report,
    sample,
    shrink,
    train,
    zoo,
)
from .console import Console, open_missing_streams, start_logging, stop_logging
from .failures import USER_ERROR, interrupted_message, message_of
from .parser import Parser, UsageError, examples
from .session import Session

VERBS = (
    demo,
    shrink,
    reassemble,
    morph,
    sample,
    explore,
    export,
    train,
    evaluate,
    dissect,
    compare,
    zoo,
    presets,
    report,
)

_DESCRIPTION = "Turns the trained networks you have into the network you need."


def build_parser() -> Parser:
    """The whole command line; light, since a verb imports the library when it runs."""
    parser = Parser(
        prog="netsmith",
        description=_DESCRIPTION,
        epilog=examples(
            ("netsmith demo --out runs/demo", "the whole story on small images, offline, in a few minutes"),
            ("netsmith dissect timm:resnet50 --random-weights", "the units of a network"),
            ("netsmith presets copy cifar10", "a config to begin with"),
            ("netsmith reassemble cifar10.yaml --out runs/cifar10 --plan", "what it would do, download and cost"),
        ),
    )
    parser.add_argument("--version", action="version", version=f"netsmith {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs", prog="netsmith", parser_class=Parser)
    for verb in VERBS:
        name = verb.__name__.rpartition(".")[2]
        child = verbs.add_parser(
            name, help=verb.SUMMARY, description=verb.__doc__, epilog=examples(*verb.EXAMPLES), add_help=True
        )
        child.set_defaults(run=verb.run, parser=child)
        verb.add_arguments(child)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code: 0, 2 for a mistake of the user's, 130 when interrupted."""
    words = tuple(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words or os.environ.get("NETSMITH_DEBUG", "") not in ("", "0")
    open_missing_streams()
    rank, fault = _rank()
    console = Console(quiet="--quiet" in words, rank=rank)
    log, notes = start_logging(console)
    session = Session(console, log, words)
    try:
        if fault is not None:
            raise fault
        return _run(words, session)
    except KeyboardInterrupt as stopped:
        kept = str(session.kept) if session.kept else None
        console.error(interrupted_message(kept, _again(session), str(stopped)))
        return 128 + getattr(stopped, "number", signal.SIGINT)
    except BrokenPipeError:
        # the reader of our output (`| head`) went away: nothing to say, and nothing to flush at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as failure:
        text = message_of(failure)
        if debug or text is None:
            raise
        console.error(text)
        if session.kept is not None:
            from .folder import take_back

            take_back(session)
        return USER_ERROR
    finally:
        if session.lock is not None:
            from .folder import let_go

            let_go(session)
        stop_logging(log, notes)


def _rank() -> tuple[int, ConfigError | None]:
    """This process's number among those launched together, and what is wrong with the environment that tells it."""
    try:
        return launched.rank(), None
    except ConfigError as fault:
        return 0, fault


def _run(words: tuple[str, ...], session: Session) -> int:
    parser = build_parser()
    verb = next((w for w in words if not w.startswith("-")), None)
    names = [v.__name__.rpartition(".")[2] for v in VERBS]
    if verb is not None and verb not in names:
        raise UsageError(f"unknown verb '{verb}'. {did_you_mean(verb, names)}\nSee `netsmith --help`.")
    try:
        arguments: argparse.Namespace = parser.parse_args(words)
    except SystemExit as left:  # --help and --version have printed what they had to
        return int(left.code or 0)
    if arguments.verb is None:
        parser.print_help()
        return 0
    return arguments.run(arguments, session)


def _again(session: Session) -> str | None:
    if session.kept is None:
        return None
    words = [w for w in session.argv if w != "--overwrite"]
    return shlex.join(["netsmith", *words])


if __name__ == "__main__":
    sys.exit(main())
