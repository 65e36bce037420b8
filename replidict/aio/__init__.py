"""The asyncio interface of the dict."""

from replidict.aio.async_dict import AsyncDict
from replidict.aio.leadership import Leadership
from replidict.aio.lease import Lease
from replidict.aio.lock import Lock
from replidict.aio.opening import open
from replidict.aio.watch import Watch

__all__ = ["AsyncDict", "Leadership", "Lease", "Lock", "Watch", "open"]
