"""What ``faults.py`` found: one line for each fault, and the page with date, commit and machine."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np


def wrong(entry: Mapping) -> list[str]:
    """Return what a case did that it must not do."""
    found = [] if entry["identical"] else ["result differs"]
    found += ["half-written artifacts"] if entry["half_written"] else []
    found += ["no clear sentence"] if not entry.get("refused_clearly", True) else []
    for kind, facts in entry.get("kinds", {}).items():
        found += [f"{kind} not named"] if not facts["named"] else []
        found += [f"{kind} not rebuilt"] if not facts["same"] else []
    return found


def summary(entries: list[dict], whole: Mapping) -> tuple[list[str], list[str]]:
    """Return the table's lines (Markdown) and the failures."""
    alive = [entry for entry in entries if not entry.get("killed", True)]  # it was faster than the reference
    entries = [entry for entry in entries if entry not in alive]
    faults = list(dict.fromkeys(entry["fault"] for entry in entries))
    lines = [
        "| fault | cases | identical results | half-written artifacts | refusals not in one clear sentence | "
        "processor seconds lost: median, most |",
        "|---|---|---|---|---|---|",
    ]
    for fault in faults:
        mine = [entry for entry in entries if entry["fault"] == fault]
        lost = [entry["lost_seconds"] for entry in mine]
        unclear = sum(not entry.get("refused_clearly", True) for entry in mine)
        cells = (
            fault if fault != "kill" else "kill -9",
            len(mine),
            sum(entry["identical"] for entry in mine),
            sum(len(entry["half_written"]) for entry in mine),
            unclear if any("refused_clearly" in entry for entry in mine) else "",
            f"{np.median(lost):.1f}, {max(lost):.1f}" if fault not in ("two starts", "read-only folder") else "",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", f"{len(alive)} more runs ended before their kill was due, and are not counted."] if alive else []
    failures = [f"{entry['fault']} {entry['case']}: {what}" for entry in entries for what in wrong(entry)]
    lines += ["", f"An uninterrupted run takes {whole['busy']:.0f} processor seconds ({whole['seconds']:.0f} s by the "
              f"clock), a call of every stage that finds nothing to do {whole['idle']:.0f}."]  # fmt: skip
    lines += ["", *[f"* FAILED: {failure}" for failure in failures]] if failures else []
    return lines, failures


def kinds_table(entries: Iterable[Mapping]) -> list[str]:
    """Return a line for each kind of file: with which damages it was named and came back."""
    found: dict[str, dict[str, Mapping]] = {}
    for entry in entries:
        for kind, facts in entry.get("kinds", {}).items():
            found.setdefault(kind, {})[entry["fault"].removeprefix("damage: ")] = facts
    damages = sorted({damage for facts in found.values() for damage in facts})
    lines = [f"| file | {' | '.join(damages)} |", f"|---|{'---|' * len(damages)}"]
    for kind in sorted(found):
        cells = [_cell(found[kind].get(damage)) for damage in damages]
        lines.append(f"| `{kind}` | {' | '.join(cells)} |")
    return lines


def _cell(facts: Mapping | None) -> str:
    if facts is None:
        return ""
    return f"{'named' if facts['named'] else 'NOT NAMED'}, {'the same again' if facts['same'] else 'NOT REBUILT'}"


def refusals(entries: Iterable[Mapping], run: str) -> list[str]:
    """Return the different sentences with which calls were refused."""
    said = {entry["said"].replace(run, "RUN") for entry in entries if entry.get("said") and "kinds" not in entry}
    return [f"* `{sentence}`" for sentence in sorted(said)]


def write_page(path: Path, command: str, lines: list[str], done: Mapping, whole: Mapping, everything: bool) -> None:
    """Write the page: of every fault in all stages, or of kills in stage one."""
    entries = list(done.values())
    run = next(word.removeprefix("run=") for word in whole["calls"][0] if word.startswith("run="))
    killed = [entry for entry in entries if entry["fault"] == "kill" and entry["killed"]]
    verbs = {verb: sum(entry["verb"] == verb for entry in killed) for verb in sorted({e["verb"] for e in killed})}
    ways = sorted({entry["how"] for entry in entries if entry.get("how")})
    kinds = kinds_table(entries)
    title = "A run under faults" if everything else "Stage one under kill -9"
    text = f"""# {title}

Written by `{command}` on {datetime.datetime.now(datetime.UTC):%Y-%m-%d} from commit {whole["commit"]}
({platform.machine()}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores, Python {platform.python_version()}).
The machine did other work as well, so work lost is counted in processor seconds; it includes starting every process
of the second call.

{chr(10).join(lines)}

Identical: every file of the run has the bytes that an uninterrupted run leaves, and no other file is there; of
manifests, journals of trials, logs and the report, which name times, everything but the times or their presence.
Half-written: a manifest vouches for a file that is not what it says, at the instant after the fault.

Kills by the verb that was running: {", ".join(f"{verb} {n}" for verb, n in verbs.items()) or "none"}.
"""
    if everything:
        text += f"""
How disks were made to fail: {", ".join(ways) or "not tried"}.

What a refused call says:

{chr(10).join(refusals(entries, run)) or "(none was refused)"}

## Damage to every kind of file of a finished run

{chr(10).join(kinds) if len(kinds) > 2 else "(not tried)"}
"""
    path.write_text(text, encoding="utf-8")
