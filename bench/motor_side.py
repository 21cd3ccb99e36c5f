"""What the port on MongoDB is compared with: motor, as its documentation has it, one update after another."""

from typing import Any

from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import WriteConcern

from gurney.model.base import Dated
from gurney.model.event import Event


class Motor:
    """Each change is an `update_one` of its own; a majority has it in its journal before it is answered."""

    def __init__(self, client: "AsyncIOMotorClient[dict[str, Any]]") -> None:
        self._tasks = client.get_database("plain", write_concern=WriteConcern("majority", j=True)).tasks

    async def insert(self, tasks: list[Any]) -> None:
        await self._tasks.create_index([("created_at", 1), ("_id", 1)])
        await self._tasks.create_index([("state", 1), ("created_at", 1), ("_id", 1)])
        await self._tasks.insert_many([{"_id": task.id, **_stored(task)} for task in tasks])

    async def update(self, before: Dated, after: Dated, event: Event) -> None:
        """Keep the last event alone: forgetting the others is free here, and a write of its own for the port."""
        told = {"$each": [event.model_dump(mode="json")], "$slice": -1}
        done = await self._tasks.update_one(
            {"_id": before.id, "revision": before.revision}, {"$set": _stored(after), "$push": {"events": told}}
        )
        assert done.modified_count == 1


def _stored(task: Dated) -> dict[str, Any]:
    return task.model_dump(mode="json", exclude={"id"})
