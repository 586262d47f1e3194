"""The command line, `esper`: what a person types, and what an error looks like.

Each command's work is done by the parts below; here are its arguments, its tables and its exit code.
"""

import os
import signal

if os.getpid() == 1:
    # The kernel drops a signal that process 1 of a container does not handle, and importing takes a moment.
    # 75: nothing was begun, start it again.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(75))

from esper_runtime.cli.app import command_reference, main

__all__ = ["command_reference", "main"]
