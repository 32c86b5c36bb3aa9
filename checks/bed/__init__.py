"""The test bed: throw-away Debian hosts with systemd as PID 1, for tests of real units, D-Bus and machined.

`images` makes and caches what is booted, `guest` boots it with systemd-nspawn. Needs root, and a network for
the making only. `python -m checks.bed` is the way in for people, `tests/support/bed.py` the one for tests.
"""
