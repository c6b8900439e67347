"""`python -m server` is `rung`."""

from server.cli import main

main()
