"""The one table of routes: who may ask what, with what, and which answers there are.

The router, authorization, `/openapi.json`, `/docs` and the matrix of bad input are made of it. Rows lie in the order of
the design's table; one with `{path}` comes after its siblings.
"""

from gurney.model.access import CreateToken, IssuedToken, Role, Token
from gurney.model.common import Health, SetName
from gurney.model.handler import CreateHandler, Delivery, Handler, PatchHandler
from gurney.model.job import CreateJob, Job, Story
from gurney.model.map import Map, RegisterMap
from gurney.model.payload import CreatePayload, FileView, Payload
from gurney.model.run import Node
from gurney.objects.disposition import BINARY
from services.edge import sse, unpacking
from services.edge.call import ANYTHING, JSON, Route
from services.edge.packing import ZIP
from services.edge.parse import DryRun, Paged
from services.edge.views import (
    archives,
    descriptions,
    events,
    files,
    handlers,
    health,
    jobs,
    logs,
    maps,
    nodes,
    payloads,
    results,
    runs,
    tokens,
)

#: Anybody, without a token.
PUBLIC: frozenset[Role] = frozenset()
#: Everybody who has a token.
ALL = frozenset(Role)
MAKERS = frozenset({Role.DEVELOPER, Role.ADMINISTRATOR})
ADMINISTRATORS = frozenset({Role.ADMINISTRATOR})

MAPS = (
    Route(
        "POST",
        "/v1/maps",
        maps.register,
        MAKERS,
        "Register a MAP",
        status=202,
        reply=Map,
        body=RegisterMap,
        query=DryRun,
        idempotent=True,
        also=(200, 404, 409),
    ),
    Route("GET", "/v1/maps", maps.index, ALL, "List MAPs", reply=Map, listed=True, query=maps.MapsQuery),
    Route("GET", "/v1/maps/{map}", maps.get, ALL, "A MAP with its manifests", reply=Map),
    Route(
        "PUT",
        "/v1/maps/{map}/name",
        maps.put_name,
        MAKERS,
        "Name or rename a MAP",
        reply=Map,
        body=SetName,
        also=(409,),
    ),
    Route("DELETE", "/v1/maps/{map}/name", maps.delete_name, MAKERS, "Remove a MAP's name", status=204),
    Route(
        "POST",
        "/v1/maps/{map}/approve",
        maps.approve,
        ADMINISTRATORS,
        "Let everybody run a MAP where only approved ones may run",
        reply=Map,
        also=(409,),
    ),
    Route("DELETE", "/v1/maps/{map}", maps.unregister, MAKERS, "Unregister a MAP", status=204, also=(409,)),
)

PAYLOADS = (
    Route(
        "POST",
        "/v1/payloads",
        payloads.create,
        ALL,
        "Create a payload",
        status=201,
        reply=Payload,
        body=CreatePayload,
        accepts=(JSON, *unpacking.MEDIA),
        query=archives.ArchiveQuery,
        idempotent=True,
        also=(409,),
    ),
    Route(
        "GET",
        "/v1/payloads",
        payloads.index,
        ALL,
        "List payloads",
        reply=Payload,
        listed=True,
        query=payloads.PayloadsQuery,
    ),
    Route("GET", "/v1/payloads/{payload}", payloads.get, ALL, "A payload", reply=Payload),
    Route(
        "DELETE",
        "/v1/payloads/{payload}",
        payloads.delete,
        ALL,
        "Delete a payload and its files",
        status=204,
        also=(409,),
    ),
    Route(
        "PUT",
        "/v1/payloads/{payload}/name",
        payloads.put_name,
        ALL,
        "Name or rename a payload",
        reply=Payload,
        body=SetName,
        also=(409,),
    ),
    Route("DELETE", "/v1/payloads/{payload}/name", payloads.delete_name, ALL, "Remove a payload's name", status=204),
)

JOBS = (
    Route(
        "POST",
        "/v1/jobs",
        jobs.create,
        ALL,
        "Submit a job",
        status=201,
        reply=Job,
        body=CreateJob,
        query=DryRun,
        idempotent=True,
        also=(200, 404, 409),
    ),
    Route("GET", "/v1/jobs", jobs.index, ALL, "List jobs", reply=Job, listed=True, query=jobs.JobsQuery),
    Route(
        "GET",
        "/v1/jobs/{job}",
        jobs.get,
        ALL,
        "A job; with Prefer: wait=n at its end, or after n seconds",
        reply=Job,
        waits=True,
    ),
    Route("POST", "/v1/jobs/{job}/cancel", jobs.cancel, ALL, "Cancel a job", status=202, reply=Job, also=(200, 409)),
    Route(
        "POST", "/v1/jobs/{job}/finalize", jobs.finalize, ALL, "Let go of an ended job's input", reply=Job, also=(409,)
    ),
    Route(
        "DELETE",
        "/v1/jobs/{job}",
        jobs.delete,
        ALL,
        "Delete an ended job with its logs and results",
        status=204,
        also=(409,),
    ),
    Route("GET", "/v1/jobs/{job}/story", jobs.story, ALL, "What happened to a job and why, in order", reply=Story),
)

FILES = (
    Route(
        "GET",
        "/v1/payloads/{payload}/archive",
        archives.get,
        ALL,
        "All files of a payload as a zip, or tar by Accept",
        media=ZIP,
    ),
    Route(
        "GET",
        "/v1/payloads/{payload}/files",
        files.index,
        ALL,
        "List a payload's files, in the order of their paths",
        reply=FileView,
        listed=True,
        query=files.FilesQuery,
    ),
    Route(
        "PUT",
        "/v1/payloads/{payload}/files/{path}",
        files.put,
        ALL,
        "Upload a file; a path that ends in / is an empty folder",
        status=201,
        reply=FileView,
        accepts=(ANYTHING,),
        also=(200, 409),
    ),
    Route(
        "GET",
        "/v1/payloads/{payload}/files/{path}",
        files.get,
        ALL,
        "Download a file, or a range of it",
        media=BINARY,
        also=(206, 304, 307, 416),
    ),
    Route(
        "HEAD",
        "/v1/payloads/{payload}/files/{path}",
        files.get,
        ALL,
        "What a download of the file would say",
        media=BINARY,
        also=(206, 304, 416),
    ),
    Route("DELETE", "/v1/payloads/{payload}/files/{path}", files.delete, ALL, "Remove a file", status=204, also=(409,)),
)

RUNS = (
    Route(
        "POST",
        "/v1/run/{map}",
        runs.create,
        ALL,
        "Run a MAP on a zip and answer with a zip of the results; of the data nothing stays",
        media=ZIP,
        accepts=runs.MEDIA,
        query=runs.RunQuery,
        may_be_async=True,
        also=(202, 409, 500, 504),
    ),
)

RESULTS = (
    Route(
        "GET",
        "/v1/jobs/{job}/logs",
        logs.get,
        ALL,
        "The log of an attempt; with follow=true as server-sent events while it is written",
        media="text/plain",
        query=logs.LogsQuery,
        also=(204,),
    ),
    Route(
        "GET",
        "/v1/jobs/{job}/events",
        events.of_job,
        ALL,
        "A job's events as server-sent events, until it ends",
        media=sse.MEDIA,
        also=(204,),
    ),
    Route(
        "GET",
        "/v1/jobs/{job}/results",
        results.archive,
        ALL,
        "All results of an ended job as a zip, or tar by Accept",
        media=ZIP,
        also=(409,),
    ),
    Route(
        "GET",
        "/v1/jobs/{job}/results/{path}",
        results.get,
        ALL,
        "One file of an ended job's results, or a range of it",
        media=BINARY,
        also=(206, 304, 307, 409, 416),
    ),
)

EVENTS = (
    Route(
        "GET",
        "/v1/events",
        events.index,
        ALL,
        "All events that the token may see, as server-sent events; Last-Event-ID resumes",
        media=sse.MEDIA,
        query=events.EventsQuery,
    ),
)

HANDLERS = (
    Route(
        "POST",
        "/v1/handlers",
        handlers.create,
        MAKERS,
        "Register a job handler; its secret is told once",
        status=201,
        reply=Handler,
        body=CreateHandler,
        idempotent=True,
        also=(404,),
    ),
    Route("GET", "/v1/handlers", handlers.index, MAKERS, "List job handlers", reply=Handler, listed=True, query=Paged),
    Route("GET", "/v1/handlers/{handler}", handlers.get, MAKERS, "A job handler", reply=Handler),
    Route(
        "PATCH",
        "/v1/handlers/{handler}",
        handlers.patch,
        MAKERS,
        "Change a job handler",
        reply=Handler,
        body=PatchHandler,
    ),
    Route("DELETE", "/v1/handlers/{handler}", handlers.delete, MAKERS, "Delete a job handler", status=204),
    Route(
        "POST",
        "/v1/handlers/{handler}/test",
        handlers.test,
        MAKERS,
        "Send a job handler a test delivery",
        status=202,
        reply=Delivery,
    ),
    Route(
        "GET",
        "/v1/handlers/{handler}/deliveries",
        handlers.deliveries,
        MAKERS,
        "List deliveries to a job handler",
        reply=Delivery,
        listed=True,
        query=Paged,
    ),
)

NODES = (
    Route(
        "GET",
        "/v1/nodes",
        nodes.index,
        MAKERS,
        "List nodes with what is used and free",
        reply=Node,
        listed=True,
        query=Paged,
    ),
    Route("GET", "/v1/nodes/{node}", nodes.get, MAKERS, "A node", reply=Node),
    Route(
        "POST",
        "/v1/nodes/{node}/drain",
        nodes.drain,
        ADMINISTRATORS,
        "Place no new jobs on a node; those that it has go on",
        reply=Node,
    ),
    Route("POST", "/v1/nodes/{node}/resume", nodes.resume, ADMINISTRATORS, "Place jobs on a node again", reply=Node),
)

ACCESS = (
    Route(
        "POST",
        "/v1/tokens",
        tokens.create,
        ADMINISTRATORS,
        "Make a token; its secret is told once",
        status=201,
        reply=IssuedToken,
        body=CreateToken,
        asks=False,
    ),
    Route(
        "GET",
        "/v1/tokens",
        tokens.index,
        ADMINISTRATORS,
        "List tokens",
        reply=Token,
        listed=True,
        query=Paged,
        asks=False,
    ),
    Route("DELETE", "/v1/tokens/{token}", tokens.delete, ADMINISTRATORS, "Delete a token", status=204, asks=False),
    Route("GET", "/v1/whoami", tokens.whoami, ALL, "The token of this request", reply=Token, asks=False),
)

DESCRIPTIONS = (
    Route("GET", "/docs", descriptions.page, PUBLIC, "These routes, to read and to try", media="text/html"),
    Route("GET", "/openapi.json", descriptions.openapi_json, PUBLIC, "The routes as OpenAPI 3.1"),
    Route("GET", "/asyncapi.json", descriptions.asyncapi_json, PUBLIC, "The messages as AsyncAPI 3"),
    Route("GET", "/livez", health.alive, PUBLIC, "Whether the server is alive", reply=Health),
    Route(
        "GET", "/readyz", health.ready, PUBLIC, "Whether the server and its parts are ready", reply=Health, also=(503,)
    ),
    Route(
        "GET",
        "/metrics",
        health.metrics,
        PUBLIC,
        "Figures for Prometheus; a setting says whether they need an administrator's token",
        media="text/plain",
        also=(401, 403),
    ),
)

ROUTES: tuple[Route, ...] = (
    *MAPS,
    *PAYLOADS,
    *FILES,
    *JOBS,
    *RUNS,
    *RESULTS,
    *EVENTS,
    *HANDLERS,
    *NODES,
    *ACCESS,
    *DESCRIPTIONS,
)
