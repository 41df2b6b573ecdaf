"""`python -m jobclient` is `jobctl`."""

from jobclient.cli import main

main()
