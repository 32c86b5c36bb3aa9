"""hive-ui, the operator's web: renders what the control API says and posts what the operator decides.

A process of its own under its own user that owns nothing: it knows the host by `reconciler.control.models`
and `.client` only, and every call it makes carries the browser's session, so that hived decides who may do
what.
"""
