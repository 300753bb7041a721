"""Placeholders for the parts of a conversation that are no text: images, files, tool calls and their results."""

from __future__ import annotations

import json
from typing import Any

from oof.data.parse_cells import TOOL_ROLES


def with_placeholders(cell: Any) -> Any:
    """Return a list of messages in which ``[image]`` and the like stand for what is no text; other cells unchanged."""
    if isinstance(cell, str) and cell.lstrip("[ \n").startswith("{"):
        try:
            return with_placeholders(json.loads(cell))
        except (ValueError, RecursionError):  # the parser of the cell names the reason
            return cell
    if not isinstance(cell, list):
        return cell
    return [_message(message) if isinstance(message, dict) else message for message in cell]


def _message(message: dict[str, Any]) -> dict[str, Any]:
    role = str(message.get("role", message.get("from"))).lower()
    if role in TOOL_ROLES:
        return {"role": "assistant", "content": "[tool result]"}
    calls = message.get("tool_calls") or []
    parts = message["content"] if "content" in message else message.get("value")
    texts = [_part(part) for part in parts] if isinstance(parts, list) else [parts]
    if isinstance(calls, list):
        texts += [f"[tool call: {_called(call)}]" for call in calls]
    if texts == [None]:
        return {"role": role, "content": None}
    return {"role": role, "content": [text for text in texts if text is not None]}


def _part(part: Any) -> Any:
    if not isinstance(part, dict):
        return part
    text = part.get("text") if isinstance(part.get("text"), str) else None
    if part.get("image") or (text is None and part.get("type", "text") != "text"):
        kind = "image" if part.get("image") else str(part.get("type")).removesuffix("_url").removeprefix("input_")
        return f"{text or ''}[{kind}]"
    return part


def _called(call: Any) -> str:
    function = call.get("function") if isinstance(call, dict) else None
    name = function.get("name") if isinstance(function, dict) else call.get("name") if isinstance(call, dict) else None
    return name if isinstance(name, str) else "?"
