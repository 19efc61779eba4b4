"""`python -m cli` is `roundhouse`."""

from cli import main

main()
