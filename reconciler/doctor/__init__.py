"""Whether all that must be true of a hive is true, and what to do where it is not.

`facts` is what was found, `hive` and `host` judge it (pure), `disk` and `gather` find it, `service` does all
of it inside hived. Without a hived, `hive doctor` judges what the disk tells.
"""
