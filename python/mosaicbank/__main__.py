"""``python -m mosaicbank``: the console command."""

import sys

from mosaicbank._cli import main

sys.exit(main())
