"""`python -m checks.bed build|path|boot [SUITE…]`: make the images, tell their places, look into one."""

from __future__ import annotations

import argparse
import subprocess
import sys

from checks.bed import images, vm
from checks.bed.guest import Bed
from reconciler.demo import terminal
from reconciler.errors import HiveError


def main(arguments: list[str]) -> int:
    """The command line; exit status 1 when something could not be made, else that of the shell inside."""
    parser = argparse.ArgumentParser(prog="python -m checks.bed", description=__doc__)
    parser.add_argument("verb", choices=("build", "path", "boot"))
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"default: {' '.join(images.SUITES)}")
    parser.add_argument("--vm", action="store_true", help="build the virtual machine, too")
    options = parser.parse_intermixed_args(arguments)
    unknown = set(options.suites) - set(images.SUITES)
    if unknown:
        parser.error(f"no such suite: {' '.join(sorted(unknown))}")
    suites = [suite for suite in images.SUITES if suite in (options.suites or images.SUITES)]
    try:
        made = [images.ensure(suite) for suite in suites]
        if options.vm:
            for suite in suites:
                vm.ensure(suite)
    except HiveError as error:
        terminal.complain(error.message, error.hint)
        return 1
    if options.verb == "path":
        print("\n".join(str(image.root) for image in made))
    return _look_around(made[0]) if options.verb == "boot" else 0


def _look_around(image: images.Image) -> int:
    """A shell in a booted bed on this terminal; everything is gone when it ends."""
    with Bed(image) as bed:
        return subprocess.run(bed.enter("/bin/bash"), check=False, env=bed.environment()).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
