"""What a service manager hears of `replidict serve`: systemd's `Type=notify`, one datagram a message, no library.

See sd_notify(3). Without `NOTIFY_SOCKET` in the environment nobody listens, and nothing is said.
"""

from __future__ import annotations

import logging
import os
import socket

logger = logging.getLogger(__name__)

SECONDS = 1.0
"""For which a manager that reads nothing may hold up the node."""


def tell(*news: str) -> None:
    """Send news, such as `"READY=1"`, in one message. What hinders that is logged: the node serves all the same."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # Linux's abstract names, which no file stands for
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.settimeout(SECONDS)
            manager.connect(address)
            manager.send("\n".join(news).encode())
    except OSError as error:
        logger.warning("the service manager at NOTIFY_SOCKET=%r can't be told %s: %s", address, ", ".join(news), error)
