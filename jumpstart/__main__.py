"""``python -m jumpstart``: the command line."""

from .cli import main

raise SystemExit(main())
