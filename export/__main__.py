"""`python -m export …`."""

import sys

if sys.argv[1:2] == ["tensorrt"]:
    # It runs on devices without torch, which the other commands import.
    from export.tensorrt_cli import main
else:
    from export.cli import main

main()
