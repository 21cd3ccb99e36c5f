"""The collection `jobs` and its queries."""

from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime

from gurney import ids
from gurney.clock import rfc3339
from gurney.documents.port import Collection, Query, Where
from gurney.errors import NotFound
from gurney.model.access import Caller
from gurney.model.base import Idempotency
from gurney.model.common import Page
from gurney.model.job import LIVE, TERMINAL, Job, JobList, JobOwed, JobState
from gurney.paging import cut, decode_cursor, encode_cursor, given, label_where, newest_first, scope_where
from gurney.store import Store

JOBS = Collection(
    "jobs",
    Job,
    (
        ("created_at",),
        ("state", "created_at"),
        ("map.id", "created_at"),
        ("payload", "created_at"),
        ("notified", "created_at"),
        ("owes", "created_at"),
        ("awaited_until",),
    ),
    filters=(
        ("project", "created_at"),
        ("created_by", "created_at"),
        ("map.name", "created_at"),
        ("labels", "created_at"),
    ),
    fields=("deleting", "stopped_at", "cancel_requested_at", "request.digest", "request.content.digest"),
)

#: Jobs that are read at once by a reconciler.
BATCH = 100

OLDEST_FIRST = ("created_at", "id")
_HERE = Where("deleting", "=", False)  # noqa: FBT003
_IS_LIVE = Where("state", "in", tuple(sorted(LIVE)))

#: Tells whether a job exists for whoever asks.
Seen = Callable[[Job], bool]


def exists(job: Job) -> bool:
    """Tell whether a job exists for services."""
    return not job.deleting


def anything(_: Job) -> bool:
    """Show jobs that are being deleted, too."""
    return True


def seen_by(caller: Caller | None) -> Seen:
    """Return what a caller sees; None is a service."""
    return lambda job: not job.deleting and (caller is None or caller.sees(job))


async def get(store: Store, job_id: str, seen: Seen) -> Job:
    job = await store.documents.get(JOBS, job_id)
    if job is None or not seen(job):
        raise NotFound(f"there is no job {job_id}")
    return job


async def under_key(store: Store, idempotency: Idempotency) -> Job | None:
    """Return the job that was made under this key."""
    return await store.documents.by_key(JOBS, f"idempotency:{idempotency.key}")


async def page(store: Store, question: JobList) -> Page[Job]:
    where = [_HERE, *scope_where(*question.caller.scope()), *_wanted(question), *label_where(question.labels)]
    documents = store.documents
    return await newest_first(
        documents, JOBS, where, question.limit, question.cursor, slim=lambda job: job.but(story=(), log_tail=())
    )


def _wanted(question: JobList) -> list[Where]:
    by_id = question.map is not None and ids.is_id(question.map, "map")
    return given(
        map=("map.id" if by_id else "map.name", "=", question.map),
        payload=("payload", "=", question.payload),
        state=("state", "=", question.state),
        created_after=("created_at", ">=", question.created_after),
        created_before=("created_at", "<", question.created_before),
        completed_after=("stopped_at", ">=", question.completed_after),
        completed_before=("stopped_at", "<", question.completed_before),
    )


async def live_of_map(store: Store, map_id: str) -> tuple[list[str], int]:
    """Return the first ten live jobs of a MAP, and how many there are."""
    where = (Where("map.id", "=", map_id), _IS_LIVE)
    count, _ = await store.documents.totals(JOBS, where)
    first = await store.find(JOBS, *where, limit=10) if count else []
    return [job.id for job in first], count


async def needed(store: Store, digests: Sequence[str]) -> set[str]:
    """Return which of these digests live jobs need; all, while there are jobs of before these were looked for."""
    unknown, _ = await store.documents.totals(JOBS, (_IS_LIVE, Where("request.digest", "=", None)))
    if unknown:
        return set(digests)
    found: set[str] = set()
    for field in ("request.digest", "request.content.digest"):
        found |= (await store.documents.totals_by(JOBS, field, (_IS_LIVE, Where(field, "in", digests)))).keys()
    return found


async def live_by_state(store: Store) -> dict[str, int]:
    """Return how many jobs are in each live state."""
    found = await store.documents.totals_by(JOBS, "state", (_IS_LIVE,))
    return {state.value: found.get(state.value, (0, 0))[0] for state in LIVE}


async def owed(store: Store, question: JobOwed) -> tuple[list[Job], str | None]:
    """Return a page of what a reconciler is owed, oldest first, and the cursor of the next."""
    where: tuple[Where, ...]
    match question.kind:
        case "requested":
            where = (Where("state", "=", JobState.REQUESTED),)
        case "canceling":
            where = (_IS_LIVE, Where("cancel_requested_at", "!=", None))
        case "unnotified":
            where = (Where("notified", "=", False), Where("state", "in", tuple(sorted(TERMINAL))), _HERE)  # noqa: FBT003
    query = Query(where, OLDEST_FIRST, False, question.limit + 1, decode_cursor(question.after, 2))  # noqa: FBT003
    kept, more = cut(await store.documents.find(JOBS, query), question.limit)
    return kept, encode_cursor(rfc3339(kept[-1].created_at), kept[-1].id) if more else None


async def live(store: Store) -> AsyncIterator[list[Job]]:
    """Give all live jobs in batches, oldest first."""
    after: tuple[str, str] | None = None
    while True:
        query = Query((_IS_LIVE,), OLDEST_FIRST, False, BATCH, after)  # noqa: FBT003
        found = await store.documents.find(JOBS, query)
        if found:
            yield found
        if len(found) < BATCH:
            return
        after = (rfc3339(found[-1].created_at), found[-1].id)


async def owing(store: Store) -> list[Job]:
    """Return jobs of which the payload service has yet to be told something."""
    return await store.find(JOBS, Where("owes", "in", ("finalize", "discard", "drop")), limit=BATCH)


async def forsaken(store: Store, now: datetime) -> list[Job]:
    """Return transient jobs for which nobody waits any more, and whose data have not gone."""
    return await store.find(JOBS, Where("awaited_until", "<", now), sort=("awaited_until", "id"), limit=BATCH)
