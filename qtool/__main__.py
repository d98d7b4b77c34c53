"""Runs the command line as ``python -m qtool``."""

from qtool.cli.app import main

if __name__ == "__main__":
    main()
