"""Server that forks subcommands from a process with loaded libraries, so that a call costs no seconds of imports.

``faults.py --preloaded`` uses it where processor time is scarce. Every subcommand is a process of its own, in its own
process group, forked before anything was computed; it is killed, refused or ended like any other. Reads one JSON
object a line (``argv``; ``stderr``: file for standard error), answers the process id and, at its end, its status and
processor seconds.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import sys
import traceback

from benchmarks.robustness.fault_processes import adopt_orphans, busy_seconds, reap

OPTIONAL = ("oof.jobs.ray_cluster", "ensemble.distillation.quantize")  # they need packages that may be missing


def load() -> None:
    """Import what the subcommands import; no import starts a thread, so forking afterwards is safe."""
    import ensemble
    import oof

    for package in (oof, ensemble):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name not in OPTIONAL:
                importlib.import_module(module.name)
    for model in ("gemma2", "llama"):  # transformers imports these when it loads such a model
        importlib.import_module(f"transformers.models.{model}.modeling_{model}")


def become(argv: list[str], stderr: str) -> None:
    """Turn this process into the command ``argv`` (python -m package subcommand …)."""
    status = 3
    try:
        os.setsid()
        for number, path in ((0, os.devnull), (1, os.devnull), (2, stderr)):
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
            become(order["argv"], order["stderr"])
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
