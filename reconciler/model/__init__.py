"""Frozen values of the hive: names, ids, states, the agent's spec. No I/O, no clock, no randomness."""
