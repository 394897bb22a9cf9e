"""`python -m nopair` is `nopair`."""

from nopair.cli import main

main()
