"""Start verbs from a process that has the libraries loaded already: a call costs its work and no seconds of imports.

``faults.py --preloaded`` uses it where a processor is scarce. Every verb still is a process of its own, with its own
process group, forked before anything was computed; it is killed, refused or ended like any other. Reads one JSON object
a line (``argv``, ``said``: file for standard error), answers the process's number and, once it ended, its status and
processor seconds.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import sys
import traceback
from pathlib import Path

from benchmarks.robustness.fault_runs import adopt_orphans, busy_seconds, reap

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]


def load() -> None:
    """Import what the verbs import; nothing happens at import, so no thread is running when we fork."""
    import ensemble
    import ensemble.report
    import oof

    optional = ("oof.jobs.ray_cluster", "ensemble.distillation.quantize")
    for package in (oof, ensemble, ensemble.report):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            if module.name not in optional and not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    for name in ("oof.__main__", "ensemble.__main__"):
        importlib.import_module(name)
    for model in ("gemma2", "llama"):  # what transformers imports when it meets one
        importlib.import_module(f"transformers.models.{model}.modeling_{model}")


def become(argv: list[str], said: str) -> None:
    """Be the command ``argv`` (python -m package verb …) from here on."""
    status = 3
    try:
        os.setsid()
        for number, path in ((0, os.devnull), (1, os.devnull), (2, said)):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(handle, number)
        main = importlib.import_module(f"{argv[2]}.__main__").main
        status = main(argv[3:])
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def serve() -> None:
    adopt_orphans()
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if not child:
            become(order["argv"], order["said"])
        print(json.dumps({"pid": child}), flush=True)
        before = busy_seconds()
        _, status = os.waitpid(child, 0)
        reap(child)
        busy = busy_seconds() - before
        print(json.dumps({"status": os.waitstatus_to_exitcode(status), "busy": busy}), flush=True)


if __name__ == "__main__":
    load()
    print(json.dumps({"ready": True}), flush=True)
    serve()
