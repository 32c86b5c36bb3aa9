"""hived, the host side of a hive: reconciler, broker, approvals, gateway, command line, demo."""

__version__ = "0.1.0"
