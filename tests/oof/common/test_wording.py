"""Messages in the words of the command: targets and variables of make become subcommands and options."""

from __future__ import annotations

import pytest

from oof.common.wording import in_words_of_the_command


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("run 'make oof' with this RUN first", "run 'arena-distill oof' with this --run first"),
        ("or train again: REDO=1 (--redo)", "or train again: --redo"),
        ("REDO=1 goes on without it", "--redo goes on without it"),
        ("set data.train (make … DATA=train.csv)", "set data.train (make … --data train.csv)"),
        ("make stack DATA=labels.csv LOGITS=…", "arena-distill stack --data labels.csv stack.logits=…"),
        ("(make oof RUN=a, without CONFIG)", "(arena-distill oof --run a, without --config)"),
        ("leave out DATA and ARGS", "leave out --data and key=value words"),
        ("make predict RUN=a ARGS=\"predict.model=ensemble\"", "arena-distill predict --run a predict.model=ensemble"),
        ("make report RUN='runs/a runs/b'", "arena-distill report 'runs/a runs/b'"),
        ("make audit RUN=runs/demo", "arena-distill audit runs/demo"),
        ("run 'make setup EXTRAS=gpu'", "run 'pip install \"arena-distill[gpu]\"'"),
        # a user's own names stay
        ("/data/RUN/x and RUN/y: damaged; my-RUN, DATA.csv", "/data/RUN/x and RUN/y: damaged; my-RUN, DATA.csv"),
        ("no rows; make room and run again", "no rows; make room and run again"),
    ],
)  # fmt: skip
def test_a_message_names_what_the_command_has(message: str, said: str) -> None:
    assert in_words_of_the_command(message) == said
