"""modules/units.json: the units for the NixOS module, made from the same description. `python -m
reconciler.units.nixos > modules/units.json` writes it; a test compares both."""

from __future__ import annotations

import json
import sys

from reconciler.units import catalogue
from reconciler.units.model import Setting

DRIVERS: tuple[catalogue.Driver, ...] = ("shim", "systemd")


def document() -> dict[str, object]:
    """Driver → unit → section → key → the values, with `@names@` that the module fills in."""
    return {
        driver: {
            unit.name: {
                section: _merged(found) for section, found in unit.sections.items() if section != "Install"
            }
            for unit in catalogue.units(driver)
        }
        for driver in DRIVERS
    }


def _merged(found: tuple[Setting, ...]) -> dict[str, list[str]]:
    """A key that comes twice (Environment) has all its values."""
    merged: dict[str, list[str]] = {}
    for one in found:
        merged.setdefault(one.key, []).extend(one.values)
    return merged


def text() -> str:
    """The file."""
    return json.dumps(document(), indent=1) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
