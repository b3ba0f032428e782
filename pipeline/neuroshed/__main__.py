"""`python -m neuroshed`: the command line."""

from neuroshed.cli import main

main(prog_name="neuroshed")
