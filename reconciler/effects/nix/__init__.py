"""Nix: hostile code evaluated in a sandbox, roots built through a daemon, generations as profiles."""

from reconciler.effects.nix.client import RealNix

__all__ = ["RealNix"]
