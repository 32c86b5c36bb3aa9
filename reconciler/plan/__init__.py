"""From desired and actual facts to steps. Pure: no I/O, no clock, no randomness, no logging."""
