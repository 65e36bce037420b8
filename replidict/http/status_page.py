"""Serves the files of the status page. They are static: their data comes from `/live` and `/kv`.

Rules kept here:

1. A browser loads nothing from elsewhere, and runs nothing but these files.
2. They hold no data, so they are served without a token; the page asks for it.
"""

from __future__ import annotations

from importlib.resources import files

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from replidict.http.request_parameters import parameters_of

FOLDER = "/page/"
"""The path in front of the names of the files."""

_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cache-Control": "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class StatusPage:
    """The endpoints that serve these files."""

    def __init__(self, *, asks_for_token: bool) -> None:
        found = [each for each in files("replidict.http").joinpath("static").iterdir() if each.is_file()]
        self._files = {each.name: each.read_bytes() for each in found}
        needed = b"yes" if asks_for_token else b"no"
        self._files["index.html"] = self._files["index.html"].replace(b"{{token}}", needed)

    async def index(self, request: Request) -> Response:
        """GET /."""
        parameters_of(request, set())
        return self._file("index.html")

    async def file(self, request: Request) -> Response:
        """GET /page/NAME."""
        parameters_of(request, set())
        name = request.path_params["name"]
        if name not in self._files or name == "index.html":
            raise HTTPException(404)
        return self._file(name)

    def _file(self, name: str) -> Response:
        return Response(self._files[name], headers=_HEADERS, media_type=_TYPES[name.rpartition(".")[2]])


def is_page(path: str) -> bool:
    """Whether this is the path of one of the files."""
    return path == "/" or path.startswith(FOLDER)
