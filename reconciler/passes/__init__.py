"""Passes: read the world, plan, apply the first step, say how it ended. Crash-only and level-triggered."""
