"""What the entry points share: an environment, a ComfyUI server, a way to talk to it. Standard library only."""

import sys

# Before any other import, and parsed by every Python since 3.6: the modules beside this one need 3.10.
if sys.version_info < (3, 10):  # noqa: UP036
    sys.exit(f"This is Python {sys.version_info[0]}.{sys.version_info[1]}, and the packages exist for 64-bit Python "
             "3.10 to 3.13: run the command with one of those (Windows: py -3.12 ...).")
