"""hived as a real subprocess over fakes that outlive it, with faults at every call of an effect.

`forks` starts it fast, `hived` is what runs there, `points` are its faults; `world` is one hive with its
harnesses and operator, `scenarios` what is done in it, `endstate` what must be true afterwards.
"""
