"""What hived tells the service manager that started it: sd_notify(3) datagrams, and nothing without one.

Says what is; decides nothing. A manager that does not listen is no reason to fail: what cannot be sent is
logged once and forgotten, and the watchdog then does its work.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from typing import Self

import structlog

log = structlog.get_logger("notify")

_SEND_S = 1.0
_STATUS_MAX = 400


class Notifier:
    """One way to the service manager. `watchdog_s`: it wants to be fed at least so often; None: never."""

    def __init__(self, address: str = "", watchdog_s: float | None = None) -> None:
        self.watchdog_s = watchdog_s if address else None
        self._address = address
        self._deaf = False
        self._status = ""

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> Self:
        """What the manager asked this process for. The variables are removed: they are nobody else's."""
        address = environment.pop("NOTIFY_SOCKET", "")
        every_us = environment.pop("WATCHDOG_USEC", "")
        meant = environment.pop("WATCHDOG_PID", str(os.getpid()))
        if not address.startswith(("/", "@")):  # the other kinds (vsock) are for machines, not for us
            return cls()
        wanted = every_us.isdecimal() and int(every_us) > 0 and meant == str(os.getpid())
        return cls(address, int(every_us) / 1e6 if wanted else None)

    def ready(self) -> None:
        """Everything that starts after this one may start."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """One line for people (`systemctl status`)."""
        line = " ".join(text.split())[:_STATUS_MAX]
        if line != self._status:
            self._status = line
            self._send(f"STATUS={line}")

    def stopping(self) -> None:
        """The process is on its way out."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Feed the watchdog. Only for who has a proof of progress."""
        if self.watchdog_s is not None:
            self._send("WATCHDOG=1")

    def extend(self, seconds: float) -> None:
        """Starting or stopping goes on: give it `seconds` more from now."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.settimeout(_SEND_S)
                sock.sendto(message.encode(), address)
            self._deaf = False
        except OSError as error:
            if not self._deaf:
                self._deaf = True
                log.warning("notify.unheard", message=message[:60], error=str(error))
