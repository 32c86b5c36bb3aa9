"""The machine's own Debian mirrors, asked for another release: nothing here names a host.

Only archives of Debian itself are taken (component `main`, a suite named after the machine's own release):
vendors' repositories that happen to be configured have nothing for a test bed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from reconciler.errors import PermanentError

_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def for_suite(suite: str, etc: Path = Path("/etc")) -> str:
    """One-line entries of apt for `suite`, made from what `etc` configures; `PermanentError` without any."""
    own = _codename(etc)
    lines = []
    for uris, suites, components, signed_by in _entries(etc / "apt"):
        if "main" not in components or (signed_by and "debian-archive" not in signed_by):
            continue
        for name in suites:
            matched = re.fullmatch(rf"{own}(|-updates|-security)/?", name)
            if matched:
                option = f"[signed-by={_KEYRING}] " if Path(_KEYRING).exists() else ""
                lines += [f"deb {option}{uri} {suite}{matched[1]} main" for uri in uris]
    if not lines:
        raise PermanentError(
            f"{etc}/apt names no archive of Debian {own}",
            hint="the test bed is made from the machine's own apt sources, with the release swapped",
        )
    return "\n".join(dict.fromkeys(lines)) + "\n"


def _codename(etc: Path) -> str:
    for line in (etc / "os-release").read_text().splitlines():
        key, _, value = line.partition("=")
        if key == "VERSION_CODENAME":
            return value.strip('"')
    raise PermanentError("this machine is no Debian release", hint="the test bed needs Debian's packages")


def _entries(apt: Path) -> Iterator[tuple[list[str], list[str], list[str], str]]:
    """URIs, suites, components, signed-by of every enabled binary entry, in both of apt's formats."""
    files = [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]
    for file in files:
        if file.suffix == ".list" and file.is_file():
            yield from _one_line(file.read_text())
        elif file.suffix == ".sources":
            yield from _stanzas(file.read_text())


def _one_line(text: str) -> Iterator[tuple[list[str], list[str], list[str], str]]:
    for line in text.splitlines():
        matched = re.fullmatch(
            r"\s*deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)((?:\s+[^\s#]+)*)\s*(?:#.*)?", line
        )
        if matched:
            options = dict(option.partition("=")[::2] for option in (matched[1] or "").split())
            yield [matched[2]], [matched[3]], matched[4].split(), options.get("signed-by", "")


def _stanzas(text: str) -> Iterator[tuple[list[str], list[str], list[str], str]]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for stanza in re.split(r"\n\s*\n", "\n".join(lines)):
        fields = {
            key.strip().lower(): value.strip()
            for key, _, value in (x.partition(":") for x in re.sub(r"\n\s+", " ", stanza).splitlines())
        }
        if "deb" in fields.get("types", "").split() and fields.get("enabled", "yes").lower() != "no":
            yield (
                fields.get("uris", "").split(),
                fields.get("suites", "").split(),
                fields.get("components", "").split(),
                fields.get("signed-by", ""),
            )
