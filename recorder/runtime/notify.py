"""Tells systemd how a service is doing: sd_notify(3), a datagram to the socket that NOTIFY_SOCKET names."""

import os
import socket
from collections.abc import Mapping

from recorder.runtime.logging import get_logger

log = get_logger("service")


class Notify:
    """Whoever started this process as a service; nobody, in which case nothing is told."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        """Take what systemd has put into the environment."""
        address = environ.get("NOTIFY_SOCKET", "")
        # An address that begins with @ is an abstract one, without a file.
        self._address = "\0" + address[1:] if address.startswith("@") else address

    def ready(self) -> None:
        """Say that the start is done."""
        self._tell("READY=1")

    def alive(self) -> None:
        """Say that nothing hangs; to be said at least twice in WatchdogSec."""
        self._tell("WATCHDOG=1")

    def status(self, text: str) -> None:
        """Show a line in `systemctl status`."""
        self._tell(f"STATUS={text}")

    def stopping(self) -> None:
        """Say that the end was asked for, and has begun."""
        self._tell("STOPPING=1")

    def _tell(self, state: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                sender.sendto(state.encode(), self._address)
        except OSError as exc:
            # A watchdog that hears nothing acts by itself; no service may end because it could not say that it runs.
            log.warning("service.not_told", state=state, error=str(exc))
