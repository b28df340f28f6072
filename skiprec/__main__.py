"""`python -m skiprec` is the `skiprec` command."""

from skiprec.cli import main

main()
