"""argparse with short errors, nearest names, and examples at the end of every verb's help.

The standard library's parser rather than tyro: tyro has no room for examples after a verb's options, boxes its errors,
and takes four times as long to import.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from typing import NoReturn

from netsmith.errors import NetsmithError, did_you_mean


class UsageError(NetsmithError):
    """The command line itself is wrong: an unknown verb or option, a missing argument, a value that does not parse."""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str, **settings) -> None:
        super().__init__(prog, max_help_position=28, width=min(110, shutil.get_terminal_size().columns), **settings)

    def add_argument(self, action: argparse.Action) -> None:
        """Leave room for the verbs, which argparse indents without counting that."""
        super().add_argument(action)
        if action.nargs == argparse.PARSER:
            self._action_max_length += 2

    def _format_action(self, action: argparse.Action) -> str:
        text = super()._format_action(action)
        # the line above a list of verbs repeats their metavar and says nothing
        return text.partition("\n")[2] if action.nargs == argparse.PARSER else text


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `UsageError` instead of leaving the process, and suggests what was meant."""

    def __init__(self, **settings) -> None:
        settings.setdefault("formatter_class", _Formatter)
        settings.setdefault("allow_abbrev", False)
        if sys.version_info >= (3, 14):
            settings.setdefault("color", False)
        super().__init__(**settings)

    def error(self, message: str) -> NoReturn:
        """Raise `UsageError`: what is wrong, and the help to read."""
        raise UsageError(f"{message}\nSee `{self.prog} --help`.")

    def _check_value(self, action: argparse.Action, value) -> None:
        if action.choices is not None and value not in action.choices:
            names = [str(c) for c in action.choices]
            what = action.metavar if isinstance(action.metavar, str) else (action.dest or "value")
            raise UsageError(
                f"unknown {what.lower()} '{value}'. {did_you_mean(str(value), names)}\nSee `{self.prog} --help`."
            )

    def parse_args(self, args=None, namespace=None):  # type: ignore[override]
        """Parse `args`; an option that is not known is an error that names the nearest one of the chosen verb."""
        parsed, rest = self.parse_known_args(args, namespace)
        if rest:
            parser: Parser = getattr(parsed, "parser", self)
            word = rest[0].split("=")[0]
            if word.startswith("-"):
                hint = did_you_mean(word, sorted(parser._option_string_actions))
                parser.error(f"unknown option {word}. {hint}")
            parser.error(f"one argument too many: '{rest[0]}'")
        return parsed


def examples(*lines: tuple[str, str]) -> str:
    """The end of a verb's help: command lines, each with what it does."""
    width = max(len(command) for command, _ in lines)
    if width + 2 + max(len(what) for _, what in lines) <= 116:
        return "examples:\n" + "\n".join(f"  {command:<{width}}  {what}".rstrip() for command, what in lines)
    return "examples:\n" + "\n".join(f"  # {what}\n  {command}" for command, what in lines)
