"""Worker processes end with the process that started them, even when that is killed and can tell nobody."""

from __future__ import annotations

import os
import threading
import time

SECONDS = 0.2  # between looks; whoever starts again needs longer to read the run folder


def end_with_parent() -> None:
    """Watch this process's parent from a thread, and end at once when it is gone.

    The run's lock went with the parent, and another process may soon hold it and write to the same files.
    """
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(SECONDS)
    os._exit(1)
