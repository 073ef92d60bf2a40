"""``python -m erase`` is the ``erase`` command."""

from erase.cli import main

main()
