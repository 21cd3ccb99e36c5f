"""Programs that tests run beside themselves."""

import socket
from contextlib import ExitStack

from gurney.testing.child import free_port


def test_no_outgoing_connection_takes_a_free_port() -> None:
    """Between the choice of a port and its use other programs connect, from ports that the kernel chooses."""
    with ExitStack() as held:
        server = held.enter_context(socket.create_server(("127.0.0.1", 0)))
        ends = [held.enter_context(socket.create_connection(server.getsockname())) for _ in range(20)]
        assert all(free_port() < min(end.getsockname()[1] for end in ends) for _ in range(20))
