"""`hive`, the operator's command line: a thin client of the control API on `control.sock`.

It starts fast (standard library only; no pydantic, no aiohttp), decides nothing itself, and shows hostile
text only after making its control characters visible.
"""
