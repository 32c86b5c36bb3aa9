"""Which tool calls the model may make: decided on parsed commands and resolved paths, and refused when in
doubt.

This is a guard rail for the model, not the boundary: the container is. A program that a pattern allows can do
whatever that program can do. `engine.Policy` is the entry; the other modules are its pure parts.
"""
