"""The outside world behind Protocols: nix, git, containers, users of the host, clock. Only this package
runs programs."""
