"""Tables and page of ``faults.py``: results by fault, refusals, results by kind of damaged file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from benchmarks.common import write_page


def failures_of(entry: Mapping) -> list[str]:
    """Return the failures of one case."""
    failures = [] if entry["identical"] else ["result differs"]
    failures += ["half-written artifacts"] if entry["half_written"] else []
    failures += ["no clear sentence"] if not entry.get("refused_clearly", True) else []
    for kind, result in entry.get("kinds", {}).items():
        failures += [f"{kind} not named"] if result["named"] is False else []
        failures += [f"{kind} not rebuilt"] if not result["same"] else []
    return failures


def summary(entries: list[dict], reference: Mapping) -> tuple[list[str], list[str]]:
    """Return the lines of the Markdown table, and the failures."""
    alive = [entry for entry in entries if not entry.get("killed", True)]  # ended before the kill was due
    entries = [entry for entry in entries if entry not in alive]
    faults = list(dict.fromkeys(entry["fault"] for entry in entries))
    lines = [
        "| fault | cases | identical results | half-written artifacts | refusals not in one clear sentence | "
        "processor seconds lost: median, most |",
        "|---|---|---|---|---|---|",
    ]
    for fault in faults:
        cases = [entry for entry in entries if entry["fault"] == fault]
        lost = [entry["lost_seconds"] for entry in cases]
        unclear = sum(not entry.get("refused_clearly", True) for entry in cases)
        cells = (
            fault if fault != "kill" else "kill -9",
            len(cases),
            sum(entry["identical"] for entry in cases),
            sum(len(entry["half_written"]) for entry in cases),
            unclear if any("refused_clearly" in entry for entry in cases) else "",
            f"{np.median(lost):.1f}, {max(lost):.1f}" if fault not in ("two starts", "read-only folder") else "",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", f"{len(alive)} more runs ended before their kill was due, and are not counted."] if alive else []
    failures = [f"{entry['fault']} {entry['case']}: {what}" for entry in entries for what in failures_of(entry)]
    lines += [
        "",
        f"An uninterrupted run takes {reference['busy']:.0f} processor seconds ({reference['seconds']:.0f} s by the "
        f"clock); rerunning every stage of a finished run takes {reference['idle']:.0f}.",
    ]
    lines += ["", *[f"* FAILED: {failure}" for failure in failures]] if failures else []
    return lines, failures


def kinds_table(entries: Iterable[Mapping]) -> list[str]:
    """Return a line for each kind of file with its result under each kind of damage."""
    by_kind: dict[str, dict[str, Mapping]] = {}
    for entry in entries:
        for kind, result in entry.get("kinds", {}).items():
            by_kind.setdefault(kind, {})[entry["fault"].removeprefix("damage: ")] = result
    damages = sorted({damage for results in by_kind.values() for damage in results})
    lines = [f"| file | {' | '.join(damages)} |", f"|---|{'---|' * len(damages)}"]
    for kind in sorted(by_kind):
        cells = [_cell(by_kind[kind].get(damage)) for damage in damages]
        lines.append(f"| `{kind}` | {' | '.join(cells)} |")
    return lines


def _cell(result: Mapping | None) -> str:
    if result is None:
        return ""
    named = {True: "named, ", False: "NOT NAMED, ", None: "not read, "}[result["named"]]
    return f"{named}{'rebuilt' if result['same'] else 'NOT REBUILT'}"


def refusals(entries: Iterable[Mapping], run: str) -> list[str]:
    """Return the distinct messages with which calls were refused."""
    messages = {e["message"].replace(run, "RUN") for e in entries if e.get("message") and "kinds" not in e}
    return [f"* `{message}`" for message in sorted(messages)]


def write_fault_page(
    path: Path, command: str, lines: list[str], entries: list[dict], reference: Mapping, all_stages: bool
) -> None:
    """Write the page of all faults in all stages, or of kills in stage one."""
    run = next(word.removeprefix("run=") for word in reference["calls"][0] if word.startswith("run="))
    killed = [entry["subcommand"] for entry in entries if entry["fault"] == "kill" and entry["killed"]]
    kills = ", ".join(f"{subcommand} {killed.count(subcommand)}" for subcommand in sorted(set(killed))) or "none"
    body = [
        "Other work ran on the machine, so lost work is counted in processor seconds; it includes starting every "
        "process of the second call.",
        "",
        *lines,
        "",
        "Identical: every file of the run has the bytes that an uninterrupted run leaves, and there is no other file, "
        "but for a damaged submission that has lost battles, which is kept beside the new one. Manifests are compared "
        "without their times; of studies' journals, logs and the report, which name times, only the presence is "
        "compared. Half-written: right after the fault, a file differs from its manifest's checksum.",
        "",
        f"Kills by running subcommand: {kills}.",
    ]
    if all_stages:
        methods = sorted({entry["how"] for entry in entries if entry.get("how")})
        kinds = kinds_table(entries)
        body += ["", f"Simulation of failing disks: {', '.join(methods) or 'not tried'}."]
        body += ["", "Messages of refused calls:", "", *(refusals(entries, run) or ["(none was refused)"])]
        body += ["", "## Damage to every kind of file of a finished run", ""]
        body += kinds if len(kinds) > 2 else ["(not tried)"]
    title = "A run under faults" if all_stages else "Stage one under kill -9"
    write_page(path, title, body, command, reference["commit"])
