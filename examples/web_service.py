"""A web service with several workers on each of several hosts, which all share one dict: settings, a counter, and a job
that runs once in the whole cluster.

On each host it is started with the arguments of the dict there, the same for each worker:

    export SERVICE='{"path": "data", "address": "10.0.0.1:7000", "peers": ["10.0.0.2:7000", "10.0.0.3:7000"]}'
    uvicorn --workers 4 examples.web_service:app

and with the network's credentials among them, as the hosts are not one machine.

`web_hosts.py` beside it does that for three hosts, and shows what it is good for.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import replidict
from replidict import Held, LockLost
from replidict.aio import AsyncDict

EVERY = 0.1  # seconds between two runs of the job


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Each worker has the dict open while it serves, and stands for the job. The first one of a host runs the node."""
    async with replidict.aio.open(**json.loads(os.environ["SERVICE"]), share=True) as a:
        app.state.a = a
        async with a.run_as_leader("report", partial(report, a), ttl=2.0, info=str(os.getpid())):
            yield


async def report(a: AsyncDict[str, Any], held: Held) -> None:
    """The job. A worker that was held up, and does not lead any more, can't say that it has done it."""
    try:
        while True:
            done = await a.get("reports", 0, linearizable=True)
            await a.set("reports", done + 1, fence=held)
            await asyncio.sleep(EVERY)
    except LockLost:
        pass  # another one leads


async def settings(request: Request) -> JSONResponse:
    """All settings, from this worker's memory."""
    return JSONResponse(dict(request.app.state.a.scan("settings/")))


async def change(request: Request) -> JSONResponse:
    """Change one setting, for all workers of all hosts."""
    revision = await request.app.state.a.set(f"settings/{request.path_params['name']}", await request.json())
    return JSONResponse({"revision": revision})


async def count(request: Request) -> JSONResponse:
    """Count a request. It is counted once, whatever happens meanwhile."""
    return JSONResponse({"total": await request.app.state.a.increment("requests"), "pid": os.getpid()})


async def job(request: Request) -> JSONResponse:
    """Which process runs the job, and how often it was done."""
    a = request.app.state.a
    leader = a.leader("report")
    return JSONResponse({"pid": leader and int(leader.info), "done": await a.get("reports", 0)})


app = Starlette(
    lifespan=lifespan,
    routes=[
        Route("/settings", settings),
        Route("/settings/{name}", change, methods=["PUT"]),
        Route("/count", count, methods=["POST"]),
        Route("/job", job),
    ],
)
