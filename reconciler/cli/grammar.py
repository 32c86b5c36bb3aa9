"""What a verb is made of, and the argparse parser made from it. The verbs themselves stand in `verbs.py` and
the `verbs_*.py` of their groups."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from reconciler.cli.failure import Exit, Failure


class Argument(NamedTuple):
    """A positional (one name without dashes) or an option; `settings` are those of argparse."""

    names: tuple[str, ...]
    help: str
    settings: Mapping[str, Any] = {}

    @property
    def is_option(self) -> bool:
        """Whether it begins with a dash."""
        return self.names[0].startswith("-")

    @property
    def metavar(self) -> str:
        """What stands for its value in help texts; empty for switches."""
        if self.settings.get("action") in {"store_true", "store_const"}:
            return ""
        if "choices" in self.settings:
            return "{" + ",".join(self.settings["choices"]) + "}"
        return str(self.settings.get("metavar", self.names[-1].strip("-").replace("-", "_").upper()))

    @property
    def usage(self) -> str:
        """Its place in a usage line."""
        if self.is_option:
            return f"[{' '.join(filter(None, (self.names[-1], self.metavar)))}]"
        match self.settings.get("nargs"):
            case "?":
                return f"[{self.metavar}]"
            case "*":
                return f"[{self.metavar} …]"
            case _:
                return self.metavar


class Verb(NamedTuple):
    """One verb. `run` is `module:function` below `reconciler.cli`, imported when it is called."""

    name: str
    group: str
    summary: str
    run: str
    arguments: tuple[Argument, ...] = ()
    examples: tuple[tuple[str, str], ...] = ()
    details: str = ""
    json: bool = True

    @property
    def all_arguments(self) -> tuple[Argument, ...]:
        """With those that verbs have in common."""
        return (*self.arguments, JSON) if self.json else self.arguments

    @property
    def usage(self) -> str:
        """The usage line."""
        positional = [a.usage for a in self.all_arguments if not a.is_option]
        options = [a.usage for a in self.all_arguments if a.is_option]
        return " ".join(["hive", self.name, *positional, *options])


JSON = Argument(("--json",), "print the API's JSON and nothing else", {"action": "store_true"})


def positional(name: str, about: str, **settings: Any) -> Argument:
    """A positional argument."""
    return Argument((name,), about, {"metavar": name.upper(), **settings})


def option(*names: str, about: str, **settings: Any) -> Argument:
    """An option with a value."""
    return Argument(names, about, settings)


def switch(*names: str, about: str) -> Argument:
    """An option without a value."""
    return Argument(names, about, {"action": "store_true"})


DRY_RUN = switch("--dry-run", about="say what would be done and do nothing")
YES = switch("-y", "--yes", about="do not ask, even on a terminal")


def whole(text: str) -> int:
    """A whole number from 0, for argparse."""
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600}
DAY_S = 86_400


def span(text: str) -> int:
    """Seconds of a time as `90`, `90s`, `10m` or `2h`, from a second to a day, for argparse."""
    digits = text.rstrip("smh")
    unit = text[len(digits) :]
    if digits.isascii() and digits.isdigit() and len(digits) <= 5 and unit in _UNITS_S:
        seconds = int(digits) * _UNITS_S[unit]
        if 1 <= seconds <= DAY_S:
            return seconds
    raise argparse.ArgumentTypeError(f"{text!r} is no time from 1s to 24h, as 90, 90s, 10m or 2h")


def amount(text: str) -> float:
    """Dollars above zero, as `5` or `0.25`, for argparse."""
    digits = text.replace(".", "", 1)
    if not (text.isascii() and digits.isdigit() and len(text) <= 12 and float(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not an amount above zero, as 5 or 0.25")
    return float(text)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        name = self.prog.removeprefix("hive ")
        raise Failure(f"{name}: {message}", f"see `hive help {name}`", code="usage", status=Exit.USAGE)


def _formatter(prog: str) -> argparse.HelpFormatter:
    """With a width of its own: asking for the terminal's imports shutil, a seventh of the start."""
    return argparse.RawDescriptionHelpFormatter(prog, width=100)


def parser_of(verb: Verb) -> argparse.ArgumentParser:
    """The parser of one verb; wrong usage raises `Failure` with status 2."""
    epilog = "".join(f"  {line}\n      {about}\n" for line, about in verb.examples)
    parser = _Parser(
        prog=f"hive {verb.name}",
        usage=verb.usage.replace("%", "%%"),
        description=textwrap.fill(" ".join(filter(None, (verb.summary, verb.details))), 100),
        epilog=f"examples:\n{epilog}" if epilog else None,
        formatter_class=_formatter,
        allow_abbrev=False,
    )
    for argument in verb.all_arguments:
        parser.add_argument(*argument.names, help=argument.help.replace("%", "%%"), **argument.settings)
    return parser


def overview(verbs: Sequence[Verb]) -> str:
    """All verbs by group, one line each."""
    width = max(len(verb.name) for verb in verbs)
    lines = ["usage: hive VERB [ARGUMENTS]", "", "Steers a hive of coding agents.", ""]
    group = ""
    for verb in verbs:
        if verb.group != group:
            group = verb.group
            lines += ["", group] if lines[-1] else [group]
        lines.append(f"  {verb.name.ljust(width)}  {verb.summary}")
    return "\n".join([
        *lines, "",
        "`hive help VERB` says more. Exit status: 0 done, 1 failed, 2 wrong usage, 3 waits for an approval.",
        "HIVE_RUN: the folder of hived's sockets (default /run/hyperhive). NO_COLOR: no colours.",
    ])  # fmt: skip
