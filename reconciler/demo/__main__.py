"""`python3 -m reconciler.demo`: says so, rather than failing on a line of syntax, when Python is too old."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - this runs on whatever interpreter the machine has
    sys.exit(f"error: hyperhive needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}")

from reconciler.demo.main import main

sys.exit(main(sys.argv[1:]))
