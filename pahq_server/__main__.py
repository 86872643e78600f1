"""Lets ``python -m pahq_server`` stand for ``pahq-server``."""

import sys

from pahq_server.cli import main

sys.exit(main())
