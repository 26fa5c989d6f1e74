"""`python -m tiermem`."""

import sys

from tiermem.cli.main import main

sys.exit(main())
