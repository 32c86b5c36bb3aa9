"""One file that holds a hive: written of a live one (`hive backup`), and made a hive again (`hive restore`).

`format` says what the file is, `walk` reads hostile trees, `writing` and `reading` are the two ends of the
file, `picture` and `service` make it inside hived, `restore` fills an empty host.
"""
