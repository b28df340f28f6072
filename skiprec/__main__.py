"""`python -m skiprec` is the `skiprec` command."""

from skiprec.cli import main

if __name__ == "__main__":  # a process that is started to read logs imports this, too
    main()
