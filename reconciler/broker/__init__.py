"""What agents and the operator say to each other: messages under leases, turns, questions, orders, events."""
