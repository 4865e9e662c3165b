"""``python -m h2osim``: the same as the ``h2osim`` command."""

from h2osim.cli import main

if __name__ == "__main__":
    main()
