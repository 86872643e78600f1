"""``python -m pahq_client.cli`` is ``pahq``."""

import sys

from pahq_client.cli import main

sys.exit(main())
