"""`python -m replidict` is the command `replidict`."""

from replidict.command.main import main

if __name__ == "__main__":
    main()
