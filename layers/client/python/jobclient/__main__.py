"""`python -m jobclient` is `jobs`."""

from jobclient.cli import main

main()
