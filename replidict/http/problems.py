"""Errors as problem details (RFC 9457): one format for all, also for those of the framework.

Rules kept here:

1. `status` and `type` are exact: 503 was surely not done (`Retry-After` says whether to try again), 504 may or may not
   be done. What was refused because of the request itself is 4xx.
2. An unexpected error is 500 and reveals nothing of its cause, which is in the log.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from replidict.errors import (
    ClosedError,
    DecodingError,
    EncodingError,
    HistoryLost,
    NotCommitted,
    OutcomeUnknown,
    ReadTimeout,
    RemovedError,
    ReplidictError,
    StorageError,
    TransactionConflict,
)

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER = {"Retry-After": "1"}
"""Seconds. An election takes about one, and a crowd has passed by then."""

PROBLEMS: dict[str, tuple[int, str]] = {
    "bad-argument": (400, "The request makes no sense"),
    "malformed-request": (400, "This is no HTTP request"),
    "bad-token": (401, "A bearer token is needed"),
    "key-absent": (404, "There is no such key"),
    "not-representable": (406, "This value can't be shown over HTTP"),
    "request-too-slow": (408, "The request did not come in time"),
    "not-a-number": (409, "The value is no number that this can be added to"),
    "transaction-conflict": (409, "A key is not as the transaction expects it"),
    "history-lost": (410, "What is asked for is not remembered any more"),
    "precondition-failed": (412, "The key is not as the request expects it"),
    "body-too-large": (413, "The value is too large"),
    "key-too-long": (414, "The key is too long"),
    "content-encoding": (415, "The value must come as it is"),
    "not-loopback": (421, "This store is for this machine only"),
    "head-too-large": (431, "The head of the request is too large"),
    "internal": (500, "Something is wrong inside"),
    "undecodable": (500, "This node can't decode the value"),
    "storage": (500, "The node's disk failed, and the node has stopped"),
    "conditional-delete": (501, "A key can't be deleted on a condition"),
    "any-revision": (501, "A condition must name one revision"),
    "busy": (503, "Too much is going on"),
    "closed": (503, "This node does not run"),
    "not-committed": (503, "The write was not done"),
    "not-ready": (503, "This node is not up to date, or there is no leader"),
    "read-timeout": (503, "The read could not be made sure in time"),
    "removed": (503, "This node is no member of its cluster any more"),
    "outcome-unknown": (504, "The write may or may not be done"),
}
"""Every `type` that is not `about:blank`, without its `urn:replidict:`, with its status and title."""

_RETRY = {"busy", "not-committed", "not-ready", "read-timeout"}


class Problem(Exception):
    """Raised to answer a request with an error. `name` is one of `PROBLEMS`; `detail` is text for people."""

    def __init__(self, name: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.title = PROBLEMS[name]
        self.body: dict[str, Any] = {
            "type": f"urn:replidict:{name}", "title": self.title, "status": self.status, "detail": detail
        }  # fmt: skip
        self.headers = (RETRY_AFTER if name in _RETRY else {}) | dict(headers or {})

    def response(self) -> Response:
        """The answer."""
        return JSONResponse(self.body, self.status, self.headers, MEDIA_TYPE)


def problem_of(error: ReplidictError) -> Problem:
    """The problem that represents an error of the dict."""
    kinds: dict[type[ReplidictError], str] = {
        RemovedError: "removed",
        TransactionConflict: "transaction-conflict",
        NotCommitted: "not-committed",
        OutcomeUnknown: "outcome-unknown",
        ReadTimeout: "read-timeout",
        ClosedError: "closed",
        StorageError: "storage",
        DecodingError: "undecodable",
        EncodingError: "bad-argument",
        HistoryLost: "history-lost",
    }
    name = next((name for kind, name in kinds.items() if isinstance(error, kind)), "internal")
    problem = Problem(name, str(error))
    if isinstance(error, TransactionConflict) and error.keys:
        problem.body["keys"] = list(error.keys)
    return problem


async def _problem(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return error.response()


async def _of_the_dict(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ReplidictError)
    return problem_of(error).response()


async def _of_the_framework(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code
    details = {
        404: "there are /, /kv/KEY, /kv, /transaction, /watch, /live, /status, /members, /locks, /healthz, /readyz and "
        "/metrics",
        405: "the Allow header says which methods there are",
    }
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status}
    headers = dict(error.headers or {})
    if "Allow" in headers:
        headers["Allow"] = ", ".join(sorted(headers["Allow"].split(", ")))
    return JSONResponse(body | {"detail": details.get(status, error.detail)}, status, headers, MEDIA_TYPE)


async def _gone(_request: Request, _error: Exception) -> Response:
    return Problem("malformed-request", "the client hung up before its request was complete").response()


async def _unforeseen(_request: Request, _error: Exception) -> Response:
    return Problem("internal", "this should not happen; the log of the node says more").response()


HANDLERS: dict[Any, Any] = {
    Problem: _problem,
    ReplidictError: _of_the_dict,
    HTTPException: _of_the_framework,
    ClientDisconnect: _gone,
    Exception: _unforeseen,
}
"""For `Starlette(exception_handlers=)`."""
