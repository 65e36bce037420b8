"""A chat: one coroutine for each person, on three nodes; everybody hears everything in the same order.

`d.aio` is the dict for coroutines: hundreds of writes are under way at a time without a thread for any of them, and
a watch is an asynchronous iterator. What happens once in the whole cluster (here a doorkeeper) is a task that runs on
the node that leads; when its machine dies, another one's begins.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # for `python examples/chat.py`

from examples.local import three_nodes
from replidict import Held
from replidict.aio import AsyncDict

Room = AsyncDict[str, Any]
PEOPLE, LINES = 30, 10


async def talk(room: Room, name: str) -> None:
    """One person, who says something, waits until everybody can hear it, and goes on."""
    async with room.lease() as here:  # whoever leaves is off the list, for whatever reason
        await room.set(f"people/{name}", "here", lease=here)
        for line in range(LINES):
            await room.set(f"said/{await room.increment('lines')}", f"{name}: line {line}")


async def listen(room: Room, opened: asyncio.Event) -> list[str]:
    """What is heard on one node, in order."""
    heard: list[str] = []
    async with room.watch(prefix="said/") as changes:
        opened.set()
        async for change in changes:
            heard += [str(event.value) for event in change.events]
            if len(heard) == PEOPLE * LINES:
                break
    return heard


async def open_the_door(room: Room, held: Held) -> None:
    """Done by one node of the cluster. The fence refuses this write if it has lost the lead meanwhile."""
    await room.set("door", "open", fence=held)


async def main(rooms: list[Room]) -> None:
    for room in rooms:
        room.run_as_leader("doorkeeper", lambda held, room=room: open_the_door(room, held))  # type: ignore[misc]
    opened = [asyncio.Event() for _ in rooms]
    async with asyncio.TaskGroup() as group:
        listening = [group.create_task(listen(room, event)) for room, event in zip(rooms, opened, strict=True)]
        await asyncio.gather(*(event.wait() for event in opened))
        for number in range(PEOPLE):
            group.create_task(talk(rooms[number % len(rooms)], f"person {number}"))
    print("the door is", await rooms[0].get("door", linearizable=True), "and nobody is there any more:",
          await rooms[0].get("people/person 0", "gone", linearizable=True))  # fmt: skip
    one, two, three = (task.result() for task in listening)
    print(len(one), "lines, heard on three nodes in the same order:", one == two == three)


if __name__ == "__main__":
    with three_nodes() as nodes:
        asyncio.run(main([node.aio for node in nodes]))
