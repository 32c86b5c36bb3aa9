"""The hive's own bare repositories, and the way of agents' bytes into them.

`repositories` is the effect behind the Protocol `Git`; `quarantine` takes hostile bundles apart as an
unprivileged user; `trees` and `bundles` are the rules, without any I/O of their own; `reading` and
`diffs` look into commits.
"""

from reconciler.effects.git.repositories import GitRepositories

__all__ = ["GitRepositories"]
