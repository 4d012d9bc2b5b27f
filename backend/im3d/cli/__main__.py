"""`python -m im3d.cli`."""

import sys

from im3d.cli.main import main

sys.exit(main())
