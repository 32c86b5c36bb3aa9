"""Entry of the container: `python -m harness`, as PID 1 on the bare platform and as a unit's process on
NixOS.

The fork comes before every larger import, so that the process that stays as PID 1 is a few megabytes.
"""

import os
import sys

if __name__ == "__main__":
    if os.getpid() == 1:
        from harness.init import split_off_init

        split_off_init()  # returns in the child only
    from harness.app import main

    sys.exit(main(dict(os.environ)))
