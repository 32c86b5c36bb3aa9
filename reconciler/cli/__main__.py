"""`python -m reconciler.cli` is `hive`."""

import sys

from reconciler.cli.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
