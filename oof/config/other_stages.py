"""Settings of other stages on a command line: refused with the command that applies them, never ignored.

A command remembers the settings of its own stage. Those of another stage would have no effect, where they differ from
what the run remembers.
"""

from __future__ import annotations

from collections.abc import Sequence

from oof.common.errors import UserError
from oof.config.schema import Config
from oof.config.stored import changes_since_stored
from oof.config.user_values import join_words

# The first that fits counts; else: oof.
STAGES = {
    "stack.test_logits": "predict", "stack": "stack", "distill": "distill", "predict": "predict",
    "data.test": "predict",
}  # fmt: skip
# Read by a command besides the settings of its stage: how test files and the student are read.
ALSO_READ = {
    "predict": (
        "data.columns", "data.on_bad_row", "data.non_text", "data.synth",
        "distill.student.dtype", "distill.student.attn",
    )
}  # fmt: skip
# Compared where the data files are, by content; or no stage depends on them.
ELSEWHERE = ("run", "jobs", "data.train", "data.extra", "data.unlabelled", "pretrain.data")


def refuse_other_stages(config: Config, overrides: Sequence[str], command: str) -> None:
    """Refuse settings of a command line that another stage reads first, unless the run has them already.

    Args:
        config: of the command.
        overrides: ``key.sub=value`` words of its command line.
        command: its subcommand; one that has the name of a stage reads that stage's settings.

    Raises:
        UserError: names the settings and the command that applies them.
    """
    words = join_words(list(overrides))
    if not words or (command == "stack" and config.stack.logits):  # other logits have no stage before
        return
    own = (*ELSEWHERE, *ALSO_READ.get(command, ()))
    names = [name for name, _, _ in changes_since_stored(config)]
    changed = [name for name in names if not any(_within(name, section) for section in own)]
    stages: dict[str, list[str]] = {}
    for word in words:
        name = word.split("=", 1)[0]
        stage = next((stage for section, stage in STAGES.items() if _within(name, section)), "oof")
        if stage != command and any(_within(name, setting) or _within(setting, name) for setting in changed):
            stages.setdefault(stage, []).append(word)
    if stages:
        stage, first = next(iter(stages.items()))
        given = " ".join(first)
        raise UserError(
            f"{config.run}: {given} has no effect on {command}: it is a setting of {stage}; leave that out, or apply "
            f"it there: make {stage} RUN={config.run} {_variable(given)}"
        )


def _variable(words: str) -> str:
    name, _, value = words.partition("=")
    variable = {"data.test": "TEST", "stack.test_logits": "TEST_LOGITS"}.get(name)
    return f'{variable}="{value}"' if variable else f'ARGS="{words}"'


def _within(name: str, section: str) -> bool:
    return name == section or name.startswith(f"{section}.")
