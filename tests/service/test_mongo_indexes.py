"""Every query of every service, on a real mongod: none looks at all documents, none sorts in memory."""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any

import pytest

from gurney import ids
from gurney.bus import Bus
from gurney.documents.mongo import MongoDocuments
from gurney.documents.port import Collection, Write
from gurney.model.access import Caller, Role, Token
from gurney.model.base import Document
from gurney.model.handler import Delivery, DeliveryList, DeliveryState, Handler, HandlerList
from gurney.model.job import LIVE, TERMINAL, Job, JobList, JobOwed, JobState, MapRef
from gurney.model.map import Map, MapList, MapState
from gurney.model.payload import Claim, Content, File, FileList, Mark, Payload, PayloadList, PayloadState
from gurney.model.resources import Amount
from gurney.model.run import LIVE_PLACEMENTS, Node, NodeState, Placement, PlacementState, ProjectPast, RunTimes
from gurney.outbox import Outbox
from gurney.settings import Settings
from gurney.store import Store
from gurney.testing.mongo import MongoServer
from services.edge import repository as edge
from services.inference_server import repository as inference_server
from services.inference_server.documents import Model, Poster, Task, Todo
from services.job import repository as jobs
from services.map import repository as maps
from services.notifier import repository as notifier
from services.payload import repository as payloads
from services.scheduler import repository as scheduler
from tests.core.scheduler_builders import a_placement
from tests.job_builders import a_job, a_map

pytestmark = [pytest.mark.needs("mongo")]

T0 = datetime(2026, 1, 1, tzinfo=UTC)
COUNT = 400
ADMIN = Caller(token="t", subject="s1", role=Role.ADMINISTRATOR)
DEVELOPER = Caller(token="t", subject="s1", role=Role.DEVELOPER, project="p1")
CLINICIAN = Caller(token="t", subject="s1", role=Role.CLINICIAN, project="p1")
CALLERS = (ADMIN, DEVELOPER, CLINICIAN)
LABELS = (("study", "s3"),)
SPAN = {"created_after": T0 + timedelta(seconds=50), "created_before": T0 + timedelta(seconds=350)}
MAP_ID = f"map_{1:026d}"


def at(number: int) -> datetime:
    return T0 + timedelta(seconds=number)


def of(number: int) -> dict[str, Any]:
    """What every document that a client made has."""
    return {"created_at": at(number), "project": f"p{number % 4}", "created_by": f"s{number % 7}"}


def some_jobs() -> Iterator[Job]:
    states = [*sorted(LIVE), *sorted(TERMINAL) * 5]
    for n in range(COUNT):
        state = states[n % len(states)]
        map_ = MapRef(id=f"map_{n % 9:026d}", name=f"m{n % 9}", urn="urn:gurney:dir:m", digest="sha256:00")
        more: dict[str, Any] = {"labels": {"study": f"s{n % 40}"}, "payload": f"pay_{n % 50:026d}", "map": map_}
        more |= {"notified": n % 20 != 0, "owes": "finalize" if n % 30 == 0 else None, "deleting": n % 35 == 0}
        more |= {"stopped_at": at(n + 5) if state in TERMINAL else None, "state": state}
        more |= {"awaited_until": at(n + 30) if n % 25 == 0 else None}
        yield a_job(id=f"job_{n:026d}", cancel_requested_at=at(n) if n % 8 == 0 else None, **more, **of(n))


def some_maps() -> Iterator[Map]:
    for n in range(COUNT):
        state = list(MapState)[n % 4]
        name, labels = f"m{n % 60}-{n}", {"study": f"s{n % 40}"}
        yield a_map(id=f"map_{n:026d}", name=name, labels=labels, state=state, urn=f"urn:oci:r{n % 60}", **of(n))


def some_handlers() -> Iterator[Handler]:
    for n in range(COUNT):
        handler = Handler(id=f"hdl_{n:026d}", url="http://127.0.0.1/", events=("job.failed",), **of(n))
        yield handler.but(state="disabled" if n % 3 else "active", deleting=n % 50 == 0)


def some_deliveries() -> Iterator[Delivery]:
    for n in range(COUNT):
        state = DeliveryState.PENDING if n % 10 == 0 else DeliveryState.DELIVERED
        delivery = Delivery(
            id=f"dlv_{n:026d}", event=f"evt_{n}", handler=f"hdl_{n % 20:026d}", state=state, body="{}", created_at=at(n)
        )
        yield delivery.but(next_attempt_at=at(n) if n % 10 == 0 else None)


def some_payloads() -> Iterator[Payload]:
    for n in range(COUNT):
        state, transient = list(PayloadState)[n % 4], n % 25 == 0
        payload = Payload(id=f"pay_{n:026d}", state=state, transient=transient, updated_at=at(n), **of(n))
        yield payload.but(name=f"n{n}", labels={"study": f"s{n % 40}"}, job=f"job_{n:026d}" if n % 2 else None)


def some_files() -> Iterator[File]:
    for n in range(COUNT):
        content = Content(key=f"k{n}", size=n, sha256="0", created_at=at(n)) if n % 5 else None
        file = File(id=f"file{n:04}", owner=f"pay_{n % 10:026d}", path=f"a/{n:04}", content=content)
        changing = Mark(id="m", at=at(n)) if n % 40 == 0 else None
        yield file.but(changing=changing, unsettled=at(n) if n % 40 == 0 else None)


def some_claims() -> Iterator[Claim]:
    for n in range(COUNT):
        claim = Claim(
            id=f"claim{n:04}",
            payload=f"pay_{n % 10:026d}",
            job=f"job_{n // 2:026d}",
            kind="input" if n % 2 else "result",
            state="keeping",
            created_at=at(n),
        )
        yield claim.but(state="holding" if n % 6 == 0 else "keeping")


def some_placements() -> Iterator[Placement]:
    for n in range(COUNT):
        ended = n % 10 != 0
        state = PlacementState.ENDED if ended else sorted(LIVE_PLACEMENTS)[n % 3]
        yield a_placement(n).but(state=state, ended_at=at(n) if ended else None, epoch=n // 100)


def some_tokens() -> Iterator[Token]:
    for n in range(COUNT):
        yield Token(id=f"tok_{n:026d}", subject="s", role=Role.CLINICIAN, secret_sha256=f"{n}", created_at=at(n))


def some_nodes() -> Iterator[Node]:
    for n in range(COUNT):
        yield Node(id=f"n{n}", state=NodeState.READY, capacity=Amount(), kinds=(), last_seen_at=at(n))


def some_pasts() -> Iterator[ProjectPast]:
    for n in range(COUNT):
        yield ProjectPast(id=f"p{n}", epoch=1, value=1.0, at=at(n))


def some_times() -> Iterator[RunTimes]:
    for n in range(COUNT):
        yield RunTimes(id=f"sha256:{n}", epoch=1, seconds=(1.0,))


def some_models() -> Iterator[Model]:
    for n in range(COUNT):
        known = {"human_readable_id": f"m{n}", "container_tag": "t", "map": f"map_{n}" if n % 20 else None}
        yield Model(id=f"{n:064x}", number=n, created_at=at(n), **known)


def some_tasks() -> Iterator[Task]:
    for n in range(COUNT):
        todo = list(Todo)[n // 10 % 6] if n % 10 == 0 else Todo.NOTHING
        known = {"model": f"{0:064x}", "model_human_readable_id": "m0", "todo": todo, "job": f"job_{n:026d}"}
        yield Task(id=f"u{n}", number=n, created_at=at(n), **known)


WORLD: dict[Collection[Any], Callable[[], Iterable[Document]]] = {
    jobs.JOBS: some_jobs,
    maps.MAPS: some_maps,
    notifier.HANDLERS: some_handlers,
    notifier.DELIVERIES: some_deliveries,
    payloads.PAYLOADS: some_payloads,
    payloads.FILES: some_files,
    payloads.CLAIMS: some_claims,
    scheduler.PLACEMENTS: some_placements,
    scheduler.NODES: some_nodes,
    scheduler.PROJECT_PASTS: some_pasts,
    scheduler.RUN_TIMES: some_times,
    edge.TOKENS: some_tokens,
    inference_server.MODELS: some_models,
    inference_server.TASKS: some_tasks,
    inference_server.POSTERS: lambda: [Poster(id=f"p{n}", seen_at=at(n)) for n in range(COUNT)],
}


@pytest.fixture
async def store(mongo_server: MongoServer) -> AsyncIterator[Store]:
    """A database in which there is something of everything."""
    documents = MongoDocuments(mongo_server.url, ids.new_id("ins"))
    try:
        await documents.open(WORLD)
        for collection, some in WORLD.items():
            made = {each.id: each for each in some()}
            faults = await documents.cas([Write(collection, each.id, 0, each) for each in made.values()])
            assert not any(faults), faults
        yield Store(documents, Outbox(Bus(Settings(), "test"), documents, tuple(WORLD)))
    finally:
        await documents.close()
    mongo_server.drop(documents.database)


async def all_of(batches: AsyncIterator[Any]) -> int:
    return sum([len(batch) async for batch in batches])


def paged(page: Callable[..., Awaitable[Any]], question: Any) -> Awaitable[Any]:
    """Ask for two pages."""

    async def both() -> int:
        first = await page(question.but(limit=3))
        if first.next_cursor:
            await page(question.but(limit=3, cursor=first.next_cursor))
        return len(first.items)

    return both()


def of_jobs(store: Store) -> Iterator[tuple[str, Awaitable[Any]]]:
    narrowed: list[dict[str, Any]] = [{}, SPAN, {"labels": LABELS}, {"map": MAP_ID}, {"map": "m1"}]
    narrowed += [{"payload": f"pay_{7:026d}"}, {"state": JobState.RUNNING}, {"state": JobState.FAILED, **SPAN}]
    narrowed += [{"completed_after": at(100), "completed_before": at(300)}, {"map": "m1", "labels": LABELS, **SPAN}]
    for caller in CALLERS:
        for more in narrowed:
            yield "page", paged(lambda question: jobs.page(store, question), JobList(caller=caller, **more))
    yield "live_of_map", jobs.live_of_map(store, MAP_ID)
    yield "live_by_state", jobs.live_by_state(store)
    yield "needed", jobs.needed(store, ("sha256:00", "sha256:01"))
    for kind in ("requested", "canceling", "unnotified"):
        yield "owed", jobs.owed(store, JobOwed(kind=kind))
    yield "live", all_of(jobs.live(store))
    yield "owing", jobs.owing(store)
    yield "forsaken", jobs.forsaken(store, at(300))


def of_maps(store: Store) -> Iterator[tuple[str, Awaitable[Any]]]:
    narrowed: list[dict[str, Any]] = [{}, SPAN, {"labels": LABELS}, {"name": "m1-1"}, {"state": MapState.READY}]
    narrowed += [{"urn": "urn:oci:r5"}, {"state": MapState.INVALID, "labels": LABELS}]
    for caller in CALLERS:
        for more in narrowed:
            yield "page", paged(lambda question: maps.page(store, question), MapList(caller=caller, **more))
    yield "resolve", maps.resolve(store, DEVELOPER, "m1-1")
    yield "registering", maps.registering(store, maps.MAPS)
    yield "needed", maps.needed(store, ("sha256:00", "sha256:01"))


def of_notifier(store: Store) -> Iterator[tuple[str, Awaitable[Any]]]:
    for caller in CALLERS:
        yield "page", paged(lambda question: notifier.page(store, question), HandlerList(caller=caller))
    listed = DeliveryList(caller=ADMIN, handler=f"hdl_{2:026d}")
    yield "deliveries_page", paged(lambda question: notifier.deliveries_page(store, question), listed)
    yield "resolve", notifier.resolve(store, ADMIN, f"hdl_{2:026d}")
    yield "active", notifier.active(store)
    yield "deleting", notifier.deleting(store)
    yield "due", notifier.due(store, at(200))
    yield "due_of", notifier.due_of(store, f"hdl_{10:026d}", at(200))
    yield "next_due", notifier.next_due(store)
    yield "of_handler", notifier.of_handler(store, f"hdl_{2:026d}")
    yield "old", notifier.old(store, at(300))


def of_payloads(store: Store) -> Iterator[tuple[str, Awaitable[Any]]]:
    repository = payloads.Repository(store)
    payload, job = f"pay_{2:026d}", f"job_{3:026d}"
    narrowed: list[dict[str, Any]] = [{}, SPAN, {"labels": LABELS}, {"name": "n2"}, {"state": PayloadState.DRAFT}]
    for caller in CALLERS:
        for more in narrowed:
            yield "page", paged(repository.page, PayloadList(caller=caller, **more))
    for prefix in ("", "a/"):
        listed = FileList(payload=payload, prefix=prefix)
        yield "file_page", paged(lambda question: repository.file_page(payload, question), listed)
    yield "payload_by_key", repository.payload_by_key("name:p2:n2")
    yield "of_job", repository.of_job(job)
    yield "in_state", repository.in_state(PayloadState.DELETING, at(300))
    yield "transient", repository.transient(at(300))
    yield "totals", repository.totals(payload)
    yield "files_at", repository.files_at(payload, ["a/0002"])
    yield "some_files", repository.some_files(payload)
    yield "unsettled", repository.unsettled(at(300), None)
    yield "unsettled", repository.unsettled(at(300), ("2026-01-01T00:00:40.000000Z", "file0040"))
    yield "changing", repository.changing(f"pay_{0:026d}")
    yield "clashes", repository.clashes(payload, ["a/0002/b"])
    yield "holding", repository.holding(payload)
    yield "claimed", repository.claimed(payload)
    yield "claims_of", repository.claims_of(job)
    yield "held_before", repository.held_before(at(300), None)
    yield "held_before", repository.held_before(at(300), ("2026-01-01T00:00:06.000000Z", "claim0006"))


def of_scheduler(store: Store) -> Iterator[tuple[str, Awaitable[Any]]]:
    yield "live", scheduler.live(store)
    yield "live", scheduler.live(store, before=2)
    yield "nodes", scheduler.nodes(store)
    yield "project_pasts", scheduler.project_pasts(store)
    yield "run_times", scheduler.run_times(store)
    yield "ended_before", all_of(scheduler.ended_before(store, at(300)))


def of_edge(store: Store) -> Iterator[tuple[str, Awaitable[Any]]]:
    yield "tokens", edge.tokens(store.documents, 3, None)


def of_inference_server(store: Store) -> Iterator[tuple[str, Awaitable[Any]]]:
    yield "models", inference_server.models(store)
    yield "half_posted", inference_server.half_posted(store)
    yield "lives", inference_server.lives(store, "new", at(900))
    yield "posters", inference_server.posters(store, at(200))
    yield "dead_posters", inference_server.dead_posters(store, at(200))
    yield "tasks", drained(inference_server.tasks(store))
    for todo in Todo:
        yield "owed", inference_server.owed(store, todo)
        yield "owed", inference_server.owed(store, todo, next(some_tasks()))


async def drained(items: AsyncIterator[Any]) -> int:
    return len([each async for each in items])


Asking = Callable[[Store], Iterator[tuple[str, Awaitable[Any]]]]

REPOSITORIES: Sequence[tuple[ModuleType | type, Asking]] = (
    (jobs, of_jobs),
    (maps, of_maps),
    (notifier, of_notifier),
    (payloads.Repository, of_payloads),
    (scheduler, of_scheduler),
    (edge, of_edge),
    (inference_server, of_inference_server),
)

#: These ask by id or unique key alone, or are asked by others that are listed.
BY_ID = {"get", "under_key", "payload", "file", "files_by_id", "claim", "derived"}
BY_ID |= {"model_named", "model_numbered", "model_of", "task_of", "task_numbered", "task_of_job", "insert", "replace"}


def queries_of(repository: ModuleType | type) -> set[str]:
    """The names of what a repository offers."""
    return {
        name
        for name, each in inspect.getmembers(repository)
        if inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each)
        if not name.startswith("_") and each.__module__.endswith(".repository")
    }


def stages(plan: Any) -> Iterator[str]:
    """The names of all stages of a plan that was chosen."""
    if isinstance(plan, dict):
        if "stage" in plan:
            yield plan["stage"]
        for key, part in plan.items():
            if key != "rejectedPlans":
                yield from stages(part)
    elif isinstance(plan, list):
        for part in plan:
            yield from stages(part)


async def test_documents_of_before_their_digests_were_looked_for_need_every_copy(
    store: Store, mongo_server: MongoServer
) -> None:
    """What an earlier version has written lacks the fields that are looked for: it needs whatever it is asked about."""
    asked = ("sha256:x", "sha256:y")
    assert await jobs.needed(store, asked) == set()
    ready = a_map(id=f"map_{COUNT:026d}", name=None, state=MapState.READY)
    assert await store.documents.cas([Write(maps.MAPS, ready.id, 0, ready)]) == [None]
    with mongo_server.client() as client:
        database = client[store.documents.database]  # type: ignore[attr-defined]  # it is a MongoDB
        assert await maps.needed(store, asked) == set()
        database["maps"].update_one({"_id": ready.id}, {"$unset": {"fields.digest": ""}})
        database["jobs"].update_one({"fields.state": "running"}, {"$unset": {"fields.request": ""}})
    assert await maps.needed(store, asked) == set(asked)
    assert await jobs.needed(store, asked) == set(asked)


@pytest.mark.parametrize(
    ("repository", "asking"), REPOSITORIES, ids=lambda each: each.__name__.removeprefix("services.")
)
async def test_every_query_of_a_repository_goes_by_an_index(
    store: Store, mongo_server: MongoServer, repository: ModuleType | type, asking: Asking
) -> None:
    """Neither what was run nor `explain` shows a scan of a collection or a sort in memory."""
    with mongo_server.client() as client:
        database = client[store.documents.database]  # type: ignore[attr-defined]  # it is a MongoDB
        database.command("profile", 2)
        asked = set()
        for name, query in asking(store):
            asked.add(name)
            await query
        database.command("profile", 0)
        assert asked >= queries_of(repository) - BY_ID, "a query is not in this test"
        ran = list(
            database["system.profile"].find({"op": {"$in": ["query", "command"]}, "planSummary": {"$exists": True}})
        )
        assert len(ran) >= len(asked) - len(BY_ID)
        for each in ran:
            assert "COLLSCAN" not in each["planSummary"], each["command"]
            assert not each.get("hasSortStage"), each["command"]
            command = {key: part for key, part in each["command"].items() if key not in {"lsid", "$clusterTime", "$db"}}
            told = database.command("explain", command, verbosity="queryPlanner")
            assert {"COLLSCAN", "SORT"}.isdisjoint(stages(told)), command
