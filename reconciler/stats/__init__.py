"""Figures of agents and of the hive, counted by the host.

`catalogue` says what there is, `counting` makes rows of what the host saw (pure), `recorder` writes them,
`series` makes answers of rows (pure), `service` answers.
"""
