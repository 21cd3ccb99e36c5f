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
from services.edge import sse, unpacking
from services.edge.call import ANYTHING, JSON, Route
from services.edge.download import BINARY
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
        method="POST",
        path="/v1/maps",
        view=maps.register,
        roles=MAKERS,
        summary="Register a MAP",
        status=202,
        reply=Map,
        body=RegisterMap,
        query=DryRun,
        idempotent=True,
        also=(200, 409),
    ),
    Route(
        method="GET",
        path="/v1/maps",
        view=maps.index,
        roles=ALL,
        summary="List MAPs",
        reply=Map,
        listed=True,
        query=maps.MapsQuery,
    ),
    Route(
        method="GET",
        path="/v1/maps/{map}",
        view=maps.get,
        roles=ALL,
        summary="A MAP with its manifests",
        reply=Map,
    ),
    Route(
        method="PUT",
        path="/v1/maps/{map}/name",
        view=maps.put_name,
        roles=MAKERS,
        summary="Name or rename a MAP",
        reply=Map,
        body=SetName,
        also=(409,),
    ),
    Route(
        method="DELETE",
        path="/v1/maps/{map}/name",
        view=maps.delete_name,
        roles=MAKERS,
        summary="Remove a MAP's name",
        status=204,
    ),
    Route(
        method="DELETE",
        path="/v1/maps/{map}",
        view=maps.unregister,
        roles=MAKERS,
        summary="Unregister a MAP",
        status=204,
        also=(409,),
    ),
)

PAYLOADS = (
    Route(
        method="POST",
        path="/v1/payloads",
        view=payloads.create,
        roles=ALL,
        summary="Create a payload",
        status=201,
        reply=Payload,
        body=CreatePayload,
        accepts=(JSON, *unpacking.MEDIA),
        query=archives.ArchiveQuery,
        idempotent=True,
        also=(409,),
    ),
    Route(
        method="GET",
        path="/v1/payloads",
        view=payloads.index,
        roles=ALL,
        summary="List payloads",
        reply=Payload,
        listed=True,
        query=payloads.PayloadsQuery,
    ),
    Route(
        method="GET",
        path="/v1/payloads/{payload}",
        view=payloads.get,
        roles=ALL,
        summary="A payload",
        reply=Payload,
    ),
    Route(
        method="DELETE",
        path="/v1/payloads/{payload}",
        view=payloads.delete,
        roles=ALL,
        summary="Delete a payload and its files",
        status=204,
        also=(409,),
    ),
    Route(
        method="PUT",
        path="/v1/payloads/{payload}/name",
        view=payloads.put_name,
        roles=ALL,
        summary="Name or rename a payload",
        reply=Payload,
        body=SetName,
        also=(409,),
    ),
    Route(
        method="DELETE",
        path="/v1/payloads/{payload}/name",
        view=payloads.delete_name,
        roles=ALL,
        summary="Remove a payload's name",
        status=204,
    ),
)

JOBS = (
    Route(
        method="POST",
        path="/v1/jobs",
        view=jobs.create,
        roles=ALL,
        summary="Submit a job",
        status=201,
        reply=Job,
        body=CreateJob,
        query=DryRun,
        idempotent=True,
        also=(200, 404, 409),
    ),
    Route(
        method="GET",
        path="/v1/jobs",
        view=jobs.index,
        roles=ALL,
        summary="List jobs",
        reply=Job,
        listed=True,
        query=jobs.JobsQuery,
    ),
    Route(
        method="GET",
        path="/v1/jobs/{job}",
        view=jobs.get,
        roles=ALL,
        summary="A job; with Prefer: wait=n at its end, or after n seconds",
        reply=Job,
        waits=True,
    ),
    Route(
        method="POST",
        path="/v1/jobs/{job}/cancel",
        view=jobs.cancel,
        roles=ALL,
        summary="Cancel a job",
        status=202,
        reply=Job,
        also=(200, 409),
    ),
    Route(
        method="POST",
        path="/v1/jobs/{job}/finalize",
        view=jobs.finalize,
        roles=ALL,
        summary="Let go of an ended job's input",
        reply=Job,
        also=(409,),
    ),
    Route(
        method="DELETE",
        path="/v1/jobs/{job}",
        view=jobs.delete,
        roles=ALL,
        summary="Delete an ended job with its logs and results",
        status=204,
        also=(409,),
    ),
    Route(
        method="GET",
        path="/v1/jobs/{job}/story",
        view=jobs.story,
        roles=ALL,
        summary="What happened to a job and why, in order",
        reply=Story,
    ),
)

FILES = (
    Route(
        method="GET",
        path="/v1/payloads/{payload}/archive",
        view=archives.get,
        roles=ALL,
        summary="All files of a payload as a zip, or tar by Accept",
        media=ZIP,
    ),
    Route(
        method="GET",
        path="/v1/payloads/{payload}/files",
        view=files.index,
        roles=ALL,
        summary="List a payload's files, in the order of their paths",
        reply=FileView,
        listed=True,
        query=files.FilesQuery,
    ),
    Route(
        method="PUT",
        path="/v1/payloads/{payload}/files/{path}",
        view=files.put,
        roles=ALL,
        summary="Upload a file; a path that ends in / is an empty folder",
        status=201,
        reply=FileView,
        accepts=(ANYTHING,),
        also=(200, 409),
    ),
    Route(
        method="GET",
        path="/v1/payloads/{payload}/files/{path}",
        view=files.get,
        roles=ALL,
        summary="Download a file, or a range of it",
        media=BINARY,
        also=(206, 304, 416),
    ),
    Route(
        method="HEAD",
        path="/v1/payloads/{payload}/files/{path}",
        view=files.get,
        roles=ALL,
        summary="What a download of the file would say",
        media=BINARY,
        also=(206, 304, 416),
    ),
    Route(
        method="DELETE",
        path="/v1/payloads/{payload}/files/{path}",
        view=files.delete,
        roles=ALL,
        summary="Remove a file",
        status=204,
        also=(409,),
    ),
)

RESULTS = (
    Route(
        method="GET",
        path="/v1/jobs/{job}/logs",
        view=logs.get,
        roles=ALL,
        summary="The log of an attempt; with follow=true as server-sent events while it is written",
        media="text/plain",
        query=logs.LogsQuery,
        also=(204,),
    ),
    Route(
        method="GET",
        path="/v1/jobs/{job}/events",
        view=events.of_job,
        roles=ALL,
        summary="A job's events as server-sent events, until it ends",
        media=sse.MEDIA,
        also=(204,),
    ),
    Route(
        method="GET",
        path="/v1/jobs/{job}/results",
        view=results.archive,
        roles=ALL,
        summary="All results of an ended job as a zip, or tar by Accept",
        media=ZIP,
        also=(409,),
    ),
    Route(
        method="GET",
        path="/v1/jobs/{job}/results/{path}",
        view=results.get,
        roles=ALL,
        summary="One file of an ended job's results, or a range of it",
        media=BINARY,
        also=(206, 304, 409, 416),
    ),
)

EVENTS = (
    Route(
        method="GET",
        path="/v1/events",
        view=events.index,
        roles=ALL,
        summary="All events that the token may see, as server-sent events; Last-Event-ID resumes",
        media=sse.MEDIA,
        query=events.EventsQuery,
    ),
)

HANDLERS = (
    Route(
        method="POST",
        path="/v1/handlers",
        view=handlers.create,
        roles=MAKERS,
        summary="Register a job handler; its secret is told once",
        status=201,
        reply=Handler,
        body=CreateHandler,
        idempotent=True,
        also=(404,),
    ),
    Route(
        method="GET",
        path="/v1/handlers",
        view=handlers.index,
        roles=MAKERS,
        summary="List job handlers",
        reply=Handler,
        listed=True,
        query=Paged,
    ),
    Route(
        method="GET",
        path="/v1/handlers/{handler}",
        view=handlers.get,
        roles=MAKERS,
        summary="A job handler",
        reply=Handler,
    ),
    Route(
        method="PATCH",
        path="/v1/handlers/{handler}",
        view=handlers.patch,
        roles=MAKERS,
        summary="Change a job handler",
        reply=Handler,
        body=PatchHandler,
    ),
    Route(
        method="DELETE",
        path="/v1/handlers/{handler}",
        view=handlers.delete,
        roles=MAKERS,
        summary="Delete a job handler",
        status=204,
    ),
    Route(
        method="POST",
        path="/v1/handlers/{handler}/test",
        view=handlers.test,
        roles=MAKERS,
        summary="Send a job handler a test delivery",
        status=202,
        reply=Delivery,
    ),
    Route(
        method="GET",
        path="/v1/handlers/{handler}/deliveries",
        view=handlers.deliveries,
        roles=MAKERS,
        summary="List deliveries to a job handler",
        reply=Delivery,
        listed=True,
        query=Paged,
    ),
)

NODES = (
    Route(
        method="GET",
        path="/v1/nodes",
        view=nodes.index,
        roles=MAKERS,
        summary="List nodes with what is used and free",
        reply=Node,
        listed=True,
        query=Paged,
    ),
    Route(
        method="GET",
        path="/v1/nodes/{node}",
        view=nodes.get,
        roles=MAKERS,
        summary="A node",
        reply=Node,
    ),
)

ACCESS = (
    Route(
        method="POST",
        path="/v1/tokens",
        view=tokens.create,
        roles=ADMINISTRATORS,
        summary="Make a token; its secret is told once",
        status=201,
        reply=IssuedToken,
        body=CreateToken,
        asks=False,
    ),
    Route(
        method="GET",
        path="/v1/tokens",
        view=tokens.index,
        roles=ADMINISTRATORS,
        summary="List tokens",
        reply=Token,
        listed=True,
        query=Paged,
        asks=False,
    ),
    Route(
        method="DELETE",
        path="/v1/tokens/{token}",
        view=tokens.delete,
        roles=ADMINISTRATORS,
        summary="Delete a token",
        status=204,
        asks=False,
    ),
    Route(
        method="GET",
        path="/v1/whoami",
        view=tokens.whoami,
        roles=ALL,
        summary="The token of this request",
        reply=Token,
        asks=False,
    ),
)

DESCRIPTIONS = (
    Route(
        method="GET",
        path="/docs",
        view=descriptions.page,
        roles=PUBLIC,
        summary="These routes, to read and to try",
        media="text/html",
    ),
    Route(
        method="GET",
        path="/openapi.json",
        view=descriptions.openapi_json,
        roles=PUBLIC,
        summary="The routes as OpenAPI 3.1",
    ),
    Route(
        method="GET",
        path="/asyncapi.json",
        view=descriptions.asyncapi_json,
        roles=PUBLIC,
        summary="The messages as AsyncAPI 3",
    ),
    Route(
        method="GET",
        path="/livez",
        view=health.alive,
        roles=PUBLIC,
        summary="Whether the server is alive",
        reply=Health,
    ),
    Route(
        method="GET",
        path="/readyz",
        view=health.ready,
        roles=PUBLIC,
        summary="Whether the server and its parts are ready",
        reply=Health,
        also=(503,),
    ),
    Route(
        method="GET",
        path="/metrics",
        view=health.metrics,
        roles=PUBLIC,
        summary="Figures for Prometheus; a setting says whether they need an administrator's token",
        media="text/plain",
        also=(401, 403),
    ),
)

ROUTES: tuple[Route, ...] = (
    *MAPS,
    *PAYLOADS,
    *FILES,
    *JOBS,
    *RESULTS,
    *EVENTS,
    *HANDLERS,
    *NODES,
    *ACCESS,
    *DESCRIPTIONS,
)
