"""`python -m halo`: the same as the command `halo`."""

from halo.cli import main

if __name__ == "__main__":
    main()
