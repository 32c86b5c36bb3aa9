"""What runs inside an agent's container: the turn loop around the genuine Claude Code.

Everything here is untrusted from the host's side. It holds no policy of its own but what the host's `hello`
told, and imports nothing of the host.
"""
