"""Lets `python -m mesaopt` be the command line."""

from mesaopt.cli import main

if __name__ == "__main__":
    main()
