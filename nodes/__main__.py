"""`python -m nodes` is `mesh`."""

from nodes.cli import main

main()
