"""Refuses internet sockets in a Python process, by one audit hook.

tests/conftest.py installs it in the test process, and puts this folder on PYTHONPATH, so that every Python
process a test starts runs it at start-up. There it shows what a machine without a network shows, an OSError,
and the program's own answer to that can be tested. Every attempt is appended to the file that is named by
ADALORA_BENCH_TEST_SOCKET_LOG; without that variable everything passes.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import Any

LOG = "ADALORA_BENCH_TEST_SOCKET_LOG"
LOCAL_NAMES = (None, "", "localhost", "127.0.0.1", "::1")


def _address(event: str, args: tuple[Any, ...]) -> str | None:
    """The `host:port` that the event would reach; None for unix sockets and this machine's own names."""
    if event == "socket.getaddrinfo":
        host = args[0].decode() if isinstance(args[0], bytes) else args[0]
        return None if host in LOCAL_NAMES else f"{host}:{args[1]}"
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg") and isinstance(args[1], tuple):
        return f"{args[1][0]}:{args[1][1]}"
    return None


def refuse_sockets(error: Callable[[str], BaseException]) -> None:
    """From now on, log each attempt and raise `error(address)`. An audit hook cannot be removed: see LOG."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if not event.startswith("socket."):
            return
        log, address = os.environ.get(LOG), _address(event, args)
        if log is None or address is None:
            return
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, f"{address}\n".encode())
        os.close(descriptor)
        raise error(address)

    sys.addaudithook(hook)


if __name__ == "sitecustomize" and LOG in os.environ:
    refuse_sockets(lambda address: OSError(errno.ENETUNREACH, f"the tests refuse {address}"))
