import sys

from amc.cli import main

sys.exit(main())
