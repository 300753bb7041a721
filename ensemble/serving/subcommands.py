"""Subcommands of a finished student: serve, verify, int8, stress, push.

Each imports what it needs only when it runs, so that ``--help`` starts at once.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from oof.command_line import add_run_argument, run_folder
from oof.common import interrupts
from oof.common.errors import UserError
from oof.common.json_output import add_json_option, print_json
from oof.subcommand import Subcommand


def _serve(arguments: argparse.Namespace) -> int:
    missing = [package for package in ("fastapi", "prometheus_client", "uvicorn") if find_spec(package) is None]
    if missing:
        raise UserError(f"serve needs the package {missing[0]}; run 'make setup EXTRAS=serve'")
    from ensemble.serving.api_key import read_key
    from ensemble.serving.request_limits import Limits
    from ensemble.serving.server import listen, serve

    if not 0 < arguments.timeout < math.inf:
        raise UserError(f"--timeout {arguments.timeout:g}: give a finite number of seconds above 0")
    key = read_key(arguments.api_key_file)
    sock = listen(arguments.host, arguments.port)  # before the model is read, which takes long

    from ensemble.serving.judge import Judge
    from oof.common.process_tuning import prepare_process

    prepare_process()
    judge = Judge.from_pretrained(arguments.folder, arguments.dtype, revision=arguments.revision)
    name = arguments.model_name or Path(arguments.folder).resolve().name
    try:
        serve(judge, name, sock, key, Limits(seconds=arguments.timeout))
    except (interrupts.Stopped, KeyboardInterrupt) as stop:
        by_hand = isinstance(stop, KeyboardInterrupt)
        print(f"serve: stopped by {'Ctrl-C' if by_hand else stop}; what was taken is answered", file=sys.stderr)
        return interrupts.BY_HAND if by_hand else interrupts.EXIT_STATUS
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from ensemble.serving.api_key import read_key
    from ensemble.serving.endpoints import Endpoint
    from ensemble.serving.judge import Judge
    from ensemble.serving.verification import verify

    if not 0 <= arguments.wait < math.inf:
        raise UserError(f"--wait {arguments.wait:g}: give a finite number of seconds, 0 or more")
    endpoint = Endpoint(arguments.url, read_key(arguments.api_key_file), arguments.wait)
    judge = Judge.from_pretrained(arguments.folder, arguments.dtype, revision=arguments.revision)
    comparisons = verify(judge, endpoint, arguments.tolerance)
    if arguments.json:
        print_json({"url": arguments.url, "paths": [asdict(comparison) for comparison in comparisons]})
    else:
        for comparison in comparisons:
            print(f"verify: {comparison}")
    return int(any(comparison.differs for comparison in comparisons))


def _push(arguments: argparse.Namespace) -> None:
    from ensemble.distillation.hub import push_student

    student = run_folder(arguments) / "distill" / arguments.student
    pushed = push_student(student, arguments.hub_name, arguments.public)
    print(f"push: {pushed.url}")
    print(f'push: Judge.from_pretrained("{pushed.name}", revision="{pushed.commit}")')


def _int8(arguments: argparse.Namespace) -> None:
    from ensemble.distillation.int8_card import add_int8_section

    drift = add_int8_section(run_folder(arguments))
    print(f"int8: log loss {drift['log_loss']:+.5f}, {drift['speed']:.2f} times float32's battles/s; in the model card")


def _stress(arguments: argparse.Namespace) -> None:
    from ensemble.distillation.stress_card import add_stress_section
    from ensemble.statistics.interval_words import in_words

    if not (arguments.folder or arguments.run_option):
        raise UserError("name a run and a file of judged battles: arena-distill stress runs/demo llmbar.csv")
    rows = add_stress_section(run_folder(arguments), Path(arguments.battles))
    if arguments.json:
        print_json({"rows": [asdict(row) for row in rows]})
        return
    for row in rows:
        student, longer = (in_words(share, ".3f") for share in (row.student, row.longer))
        print(f"stress: {row.name}: {row.n:,} battles, right {student}; the longer response {longer}")
    print("stress: in the model card")


def add_student_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the student and its precision to a subcommand."""
    parser.add_argument(
        "folder", help="exported student, for example runs/demo/distill/student, or user/name of the hub"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a student of the hub")
    parser.add_argument(
        "--dtype", default="auto", help="auto (as saved), float32, bfloat16, float16, or int8 (faster on CPUs)"
    )


def _serve_arguments(parser: argparse.ArgumentParser) -> None:
    add_student_arguments(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 = all of this machine")
    parser.add_argument("--port", type=int, default=8000, help="0 = any free one")
    parser.add_argument("--model-name", metavar="NAME", help="in answers (default: the folder's name)")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="for the answer to a request")
    parser.add_argument(
        "--api-key-file", metavar="FILE", help="key that clients must send (default: ARENA_DISTILL_API_KEY, or none)"
    )


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    add_student_arguments(parser)
    parser.add_argument("url", help="of a server, or of its /v1/compare or /classify: http://localhost:8000")
    parser.add_argument("--tolerance", type=float, help="of a probability (default: by precision; float32: 0.0001)")
    parser.add_argument("--wait", type=float, default=0.0, metavar="SECONDS", help="for a server that is starting")
    parser.add_argument(
        "--api-key-file", metavar="FILE", help="key that the server asks for (default: ARENA_DISTILL_API_KEY, or none)"
    )
    add_json_option(parser)


def _stress_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_argument(parser)
    parser.add_argument("battles", metavar="FILE", help="judged battles, for example LLMBar's")
    add_json_option(parser)


def _push_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_argument(parser)
    parser.add_argument("hub_name", metavar="USER/NAME", help="on the Hugging Face hub; made where it does not exist")
    variants = ("student", "student-int8", "student-nf4")
    parser.add_argument("--student", default="student", choices=variants, help="which of the run's (default: student)")
    parser.add_argument("--public", action="store_true", help="a new repository can be seen by others")


SERVING = (
    Subcommand(
        "serve", _serve, "use", "serve a student over HTTP: verdicts, vLLM's /classify, metrics, a page",
        "arena-distill serve runs/demo/distill/student --port 8000", _serve_arguments,
    ),
    Subcommand(
        "verify", _verify, "use", "compare an HTTP endpoint with the student that it serves; say what differs",
        "arena-distill verify runs/demo/distill/student http://localhost:8000", _verify_arguments,
    ),
    Subcommand(
        "int8", _int8, "use", "measure a run's student in int8 on this CPU; put drift and speed into its card",
        "arena-distill int8 runs/demo", add_run_argument,
    ),
    Subcommand(
        "stress", _stress, "use", "accuracy of a run's student on judged battles that it has not read, into its card",
        "arena-distill stress runs/demo llmbar.csv", _stress_arguments,
    ),
    Subcommand(
        "push", _push, "use", "upload a run's student to the Hugging Face hub, with its card",
        "arena-distill push runs/demo me/preference-judge", _push_arguments,
    ),
)  # fmt: skip
