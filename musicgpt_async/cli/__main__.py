"""`python -m musicgpt_async.cli`: run the command if its script is not on the path."""

import sys

from musicgpt_async.cli import main

sys.exit(main())
