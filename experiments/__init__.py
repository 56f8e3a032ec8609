"""One module per question; `python -m experiments` lists them."""

import sys

from dlexp import interrupt

if sys.argv[:1] == ["-m"]:  # a command: Ctrl-C ends it without a traceback, also while it is still importing
    interrupt.quiet_start()
