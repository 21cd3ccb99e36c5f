"""`gurney credentials`: the secrets of a deployment, and who may say and hear what at its NATS server."""

import json as json_format
import re
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from gurney.errors import Invalid

_NODE = re.compile(r"[a-z0-9-]{1,63}", re.ASCII)


def credentials(
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    agent: Annotated[list[str] | None, Parameter(consume_multiple=True, negative=())] = None,
    operator: Annotated[bool, Parameter(negative=())] = False,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Make the secrets of a deployment: a NATS user for each service and agent, and what services share.

    What is there stays, so that a later call adds agents; a secret whose file is removed is made anew.

    Parameters
    ----------
    output
        Folder of the secrets, made for its owner alone.
    agent
        Nodes whose agents get a user.
    operator
        Also make a user who may do everything.
    json
        Print JSON for machines.
    """
    from gurney.credentials import USERS, generate

    for node in agent or ():
        if not _NODE.fullmatch(node):
            raise Invalid.field("agent", f"{node!r} is no id of a node: 1 to 63 of a-z, 0-9 and -")
    users = generate(output, agent or (), with_operator=operator)
    if json:
        print(json_format.dumps({"folder": str(output), "server": str(output / USERS), "users": users}))
    else:
        print(f"{output}: secrets of {', '.join(users)}; nats-server includes {output / USERS}")
