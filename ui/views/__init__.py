"""Between the control API's objects and the templates: pure functions that decide what is said and in which
order."""
