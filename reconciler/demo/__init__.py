"""`make demo`: installs what is missing and runs a whole hive in a world of its own."""
