"""The model gateway: a process of its own, between the agents' `model.sock` and the Messages API.

    python -m reconciler.gateway
 It holds the operator's credential and the ledger of spending, lets each agent use its own models and
endpoints only, and goes on while hived restarts. hived speaks to it through `reconciler.gateway.client`
alone.
"""
