"""``python -m secagg.cli`` is the command ``secagg``."""

import sys

from . import main

sys.exit(main())
