"""A program that writes to the databases as hived does and says what it was told is committed.

Run under strace by `tests/crash/test_power_cut.py`: `committed N` on standard output after the N-th message,
`leased N` after its lease, which does not wait for the disk, and `begun N` after a turn over it has begun.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from reconciler.broker.outbox import Outbox
from reconciler.effects.clock import SystemClock
from reconciler.store import leases, messages, turns
from reconciler.store.db import Store
from reconciler.store.messages import NewMessage

MESSAGES = 24
BOOT = "b" * 32
BEGUN = range(2, MESSAGES + 1, 2)
CHECKPOINT_PAGES = 24  # instead of 1000: so that a short run has many


async def main(directory: Path) -> None:
    """Messages of many sizes, decisions in the audit chain, and the outbox carried to the history."""
    store = await Store.open(directory)
    for database in (store.state, store.events):
        await database._writer.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    outbox = Outbox(store, SystemClock(), handlers={}, publish=lambda event: None)
    for number in range(1, MESSAGES + 1):
        async with store.state.quick() if number % 2 else store.state.transaction() as tx:
            body = f"{number} " + "x" * (number * 997 % 9000)
            message = await messages.add(tx, NewMessage("operator", "smith", body))
            if number % 3 == 0:
                await tx.audit("operator:alice", "note", f"message:{number}")
        os.write(1, b"committed %d\n" % number)
        async with store.state.quick(synced=False) as tx:
            lease = await leases.grant(tx, "smith", BOOT, None, [message])
        os.write(1, b"leased %d\n" % number)
        if number in BEGUN:
            async with store.state.quick() if number % 4 else store.state.transaction() as tx:
                turn = await turns.begin(
                    tx, "smith", boot=BOOT, key=f"turn-key-{number}", lease=lease, model="m", session="s",
                    generation=1, purpose="messages",
                )  # fmt: skip
                await leases.bind(tx, lease, turn)
            os.write(1, b"begun %d\n" % number)
        await outbox.copy_events()
        if number % 4 == 0:
            await outbox.sweep()
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
