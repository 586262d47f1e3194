"""A module that starts a thread when it is imported."""

import threading

_never = threading.Event()
threading.Thread(target=_never.wait, daemon=True).start()
