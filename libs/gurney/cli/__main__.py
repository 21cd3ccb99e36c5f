"""`python -m gurney.cli`."""

from gurney.cli import main

main()
