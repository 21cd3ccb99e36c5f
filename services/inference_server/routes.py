"""What each listener serves."""

from collections.abc import Sequence
from functools import partial

from services.inference_server.call import Route
from services.inference_server.queries import (
    FindModelQuery,
    ModelNumberQuery,
    ModelQuery,
    ModelQueryV2,
    NumberQuery,
    PrivateTaskQuery,
    StatusQuery,
    StatusQueryV2,
    TaskQuery,
    TaskQueryV2,
    UidQuery,
    ZipQuery,
)
from services.inference_server.views import models, tasks, version2

POST_MODEL = Route("POST", "/api/models/", models.create, "Post a model.", ModelQuery, file="optional", creates=True)
POST_TASK = partial(Route, "POST", "/api/tasks/", file="needed", creates=True)

PUBLIC: Sequence[Route] = (
    Route("GET", "/api/models/", models.public_index, "List the models."),
    POST_MODEL,
    POST_TASK(tasks.create, "Post a task; the answer is its uid.", TaskQuery),
    Route("GET", "/api/tasks/{uid}", tasks.public_output, "Fetch the output of a task.", sends_archive=True),
    Route("DELETE", "/api/tasks/{uid}", tasks.public_delete, "Delete a task."),
)

PRIVATE: Sequence[Route] = (
    Route("GET", "/api/models/", models.index, "List the models."),
    POST_MODEL,
    Route("GET", "/api/models/{uid}", models.by_uid, "Show a model."),
    Route("GET", "/api/models/human_readable_id/{name:.+}", models.by_name, "Show a model by its readable id."),
    Route("GET", "/api/models/zips/{uid}", models.archive, "Fetch a model's zip.", ZipQuery, sends_archive=True),
    Route("GET", "/api/tasks/", tasks.index, "List all tasks, deleted ones too."),
    POST_TASK(tasks.private_create, "Post a task.", PrivateTaskQuery),
    Route("PUT", "/api/tasks/", tasks.put, "Set a task's status; its job stops.", StatusQuery),
    Route("GET", "/api/tasks/{uid}", tasks.get, "Show a task."),
    Route("DELETE", "/api/tasks/{uid}", tasks.delete, "Delete a task that does not run."),
    Route("GET", "/api/tasks/inputs/{uid}", tasks.input_archive, "Fetch a task's input.", sends_archive=True),
    Route("GET", "/api/tasks/outputs/{uid}", tasks.output, "Fetch a task's output.", sends_archive=True),
    Route("POST", "/api/tasks/outputs/{uid}", tasks.post_output, "Set a task's output; its job stops.", file="needed"),
)

_Tar = partial(Route, format="tar")
_Guarded = partial(_Tar, needs_token=True)

VERSION_2: Sequence[Route] = (
    _Tar("POST", "/api/tasks/", version2.create, "Post a task.", TaskQueryV2, file="needed", creates=True),
    _Tar("GET", "/api/tasks/outputs/", version2.output, "Fetch a task's output.", UidQuery, sends_archive=True),
    _Tar("DELETE", "/api/tasks/", version2.delete, "Delete a task.", UidQuery),
    _Guarded("GET", "/api/tasks/", version2.get, "Show a task.", NumberQuery),
    _Guarded("PUT", "/api/tasks/", version2.put, "Set a task's status; its job stops.", StatusQueryV2),
    _Guarded("POST", "/api/models/", models.create_v2, "Post a model.", ModelQueryV2, file="optional", creates=True),
    _Guarded("GET", "/api/models/", models.find_v2, "Show a model.", FindModelQuery),
    _Guarded(
        "GET", "/api/models/tars/", models.archive_v2, "Fetch a model's tar.", ModelNumberQuery, sends_archive=True
    ),
)
