"""The control API: one set of objects for CLI, web and tests (`models`), a client and the server."""
