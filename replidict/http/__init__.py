"""The HTTP interface: `replidict serve`, and `asgi`, which mounts it in another application.

Needs the extra `replidict[serve]`; nothing else imports it.
"""

from replidict.http.app import asgi

__all__ = ["asgi"]
