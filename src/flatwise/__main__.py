"""`python -m flatwise` is the command line."""

from flatwise.cli.main import main

main()
