"""A Messages API that plays scenarios: what the demo and the tests use in place of a real model.

    python -m reconciler.scripted --socket PATH --scenarios DIR
 Scenarios are YAML files (`reconciler.scripted.scenario`, schema in `scenario.schema.json`). Which step
answers a request is read from the conversation in the request itself, never counted here: a restart, a
retry or another agent cannot confuse it.
"""
