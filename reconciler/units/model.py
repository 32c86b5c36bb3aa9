"""What a unit is made of, and how it is written. Pure.

Values may hold `@names@` of the host's places and users (`Host.values`); everything else is written as it is,
so that `%` and `$` of a path mean themselves and not a specifier.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

MARK = "# Made by `hive install-units`"  # how what we wrote is known again
HEADER = f"{MARK}; changes belong into a drop-in (systemctl edit)."
_PLACEHOLDER = re.compile(r"@([a-z_]+)@")


@dataclass(frozen=True, slots=True)
class Setting:
    """One key. Several values are several lines, none resets the key. `why` stands above it."""

    key: str
    values: tuple[str, ...]
    why: str = ""


@dataclass(frozen=True, slots=True)
class Unit:
    """One unit file: section → its settings, in order."""

    name: str
    sections: Mapping[str, tuple[Setting, ...]]

    def text(self, values: Mapping[str, str]) -> str:
        """The file, with the host's `values` in it."""
        lines = [HEADER]
        for section, settings in self.sections.items():
            lines += ["", f"[{section}]"]
            for setting in settings:
                lines += [f"# {setting.why}"] if setting.why else []
                lines += [f"{setting.key}={filled(value, values)}" for value in setting.values or ("",)]
        return "\n".join(lines) + "\n"


def settings(**given: str | Sequence[str]) -> tuple[Setting, ...]:
    """Settings without a reason of their own."""
    return tuple(setting(key, value) for key, value in given.items())


def setting(key: str, value: str | Sequence[str], why: str = "") -> Setting:
    """One setting."""
    return Setting(key, (value,) if isinstance(value, str) else tuple(value), why)


def changed(base: Sequence[Setting], *changes: Setting) -> tuple[Setting, ...]:
    """`base` with the settings of `changes` in the place of those with their key; new ones after it. Every
    change says why."""
    assert all(change.why for change in changes), "a relaxation without a reason"
    by_key = {change.key: change for change in changes}
    known = {one.key for one in base}
    return (*(by_key.get(one.key, one) for one in base), *(c for c in changes if c.key not in known))


def without(base: Sequence[Setting], **keys: str) -> tuple[Setting, ...]:
    """`base` less these keys, each with the reason, which stands in the file in the key's place."""
    assert keys.keys() <= {one.key for one in base}
    return tuple(replace(one, values=("no",), why=keys[one.key]) if one.key in keys else one for one in base)


def filled(text: str, values: Mapping[str, str]) -> str:
    """`text` with the host's values; a name that is not among them is a bug."""
    return _PLACEHOLDER.sub(lambda found: values[found[1]], text)


def word(text: str) -> str:
    """A path or argument as one word of a unit file, meaning itself."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if re.search(r"[\s'\"\\;]", escaped) else escaped
