"""hive-harness, what runs inside an agent's container: the turn loop around the genuine Claude Code."""
