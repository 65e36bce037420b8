"""The store over HTTP: `replidict serve`, and `asgi` to mount it in an application that is there already.

Needs the extra `replidict[serve]`; nothing else imports it.
"""

from replidict.http.app import asgi

__all__ = ["asgi"]
