"""File systems of fsspec for S3 and the web: patient, and left alone by forked processes.

A fork copies the parent's connections, but what watches them is one for both: a child that closes its copies, if only
by dropping the last reference, makes the parent deaf to the answers of its server. So a child keeps what it has
inherited, unused, until its end.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import fsspec

CONNECT_SECONDS = 15
SILENT_SECONDS = 60
"""Longest wait for a server that has said nothing."""
PAUSES_SECONDS = (0.1, 0.5)
"""Before a broken connection is tried again."""
Result = TypeVar("Result")

_ours: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
"""By id, because file systems with equal settings are equal."""
_inherited: list[Any] = []
os.register_at_fork(after_in_child=lambda: _inherited.extend(_ours.values()))


def connect(*, http: bool) -> Any:
    """A file system that remembers no listing, and gives up on a server that does not answer."""
    fresh = {"skip_instance_cache": True, "use_listings_cache": False}
    if http:
        import aiohttp

        patience = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENT_SECONDS)
        found = fsspec.filesystem("http", client_kwargs={"timeout": patience}, **fresh)
    else:
        limits = {"connect_timeout": CONNECT_SECONDS, "read_timeout": SILENT_SECONDS}
        found = fsspec.filesystem("s3", config_kwargs=limits, **fresh)
    owner, close = os.getpid(), found.close_session

    def close_in_its_process(*arguments: Any) -> None:
        if os.getpid() == owner:
            close(*arguments)

    found.close_session = close_in_its_process  # which fsspec calls at the end of a process, too
    _ours[id(found)] = found
    return found


def again_if_broken(read: Callable[[], Result]) -> Result:
    """Read from the web, some times over if the connection breaks; s3fs does that by itself.

    Raises:
        Exception: the library's own, if nothing helped.
    """
    import aiohttp

    for pause in PAUSES_SECONDS:
        try:
            return read()
        except aiohttp.ServerTimeoutError:  # it has had its time
            raise
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError):
            time.sleep(pause)
    return read()
