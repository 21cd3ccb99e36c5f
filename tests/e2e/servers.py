"""The kinds of servers that the tests of the API run against."""

from gurney.testing.embedded import EmbeddedProcess
from gurney.testing.stack import Stack

Server = EmbeddedProcess | Stack
