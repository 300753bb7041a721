"""Conversations: lists of chat messages, parsed to the user's and the assistant's turns."""

from __future__ import annotations

import re
from typing import Any

from oof.data.parse_cells import TOOL_ROLES, CellError, NonTextError, content_text, is_missing, parse_json, show

USERS = frozenset({"user", "human", "prompter"})
ASSISTANTS = frozenset({"assistant", "gpt", "model", "bot", "chatbot"})
HH_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")

Message = tuple[str, str | None]  # role "user", "assistant" or "system"; text, None = null


def parse_messages(cell: object) -> list[Message]:
    """Return the messages of a cell: a list of ``{"role", "content"}`` or ``{"from", "value"}``, or that as JSON.

    Raises:
        CellError: it is not such a list, or a role or content is not known.
    """
    value = parse_json(cell, "messages") if isinstance(cell, str) else cell
    if not isinstance(value, list) or not value:
        raise CellError(f"expected a list of messages, not {show(value)}")
    messages: list[Message] = []
    for message in value:
        if not isinstance(message, dict):
            raise CellError(f"expected a message with role and content, not {show(message)}")
        role = str(message.get("role", message.get("from"))).lower()
        if role in TOOL_ROLES or message.get("tool_calls"):
            raise NonTextError(f"role {show(role)}: a tool call, which is not text")
        if role not in USERS and role not in ASSISTANTS and role != "system":
            raise CellError(f"role {show(role)} is not user, assistant or system")
        content = message["content"] if "content" in message else message.get("value")
        messages.append(("user" if role in USERS else role if role == "system" else "assistant", content_text(content)))
    return messages


def answered(prompt: Any, answer: Any) -> list[Message]:
    """Return the messages of a prompt followed by those of an answer to it.

    Args:
        prompt: a text, messages, parsed messages, or nothing.
        answer: a text, messages, or a whole conversation, which replaces the prompt.

    Raises:
        CellError: as :func:`parse_messages`; or there is no prompt, and the answer is not a whole conversation.
    """
    if isinstance(answer, str) and is_missing(prompt):
        return parse_hh_text(answer)
    if isinstance(prompt, str):
        before: list[Message] = [("user", prompt)]
    elif isinstance(prompt, list) and prompt and isinstance(prompt[0], tuple):
        before = prompt  # parsed before
    else:
        before = [] if is_missing(prompt) else parse_messages(prompt)
    if not isinstance(answer, list):
        return [*before, ("assistant", content_text(None if is_missing(answer) else answer))]
    messages = parse_messages(answer)
    return messages if any(role == "user" for role, _ in messages) else [*before, *messages]


def split_turns(messages: list[Message]) -> tuple[list[str | None], list[str | None]]:
    """Return the user's and the assistant's turns, equally many.

    Consecutive messages of one side are joined by a blank line; a system message is joined to the user turn
    after it; a missing opening or closing message becomes a null turn.
    """
    users: list[str | None] = []
    answers: list[str | None] = []
    last = ""
    for role, text in messages:
        side = "assistant" if role == "assistant" else "user"
        turns = answers if side == "assistant" else users
        if side == last:
            turns[-1] = text if turns[-1] is None else turns[-1] if text is None else f"{turns[-1]}\n\n{text}"
        else:
            if side == "assistant" and not users:
                users.append(None)
            turns.append(text)
        last = side
    if len(answers) < len(users):
        answers.append(None)
    return users, answers


def parse_hh_text(cell: str) -> list[Message]:
    """Return the messages of Anthropic HH's text format, in which turns begin with "Human:" and "Assistant:".

    Raises:
        CellError: the text does not begin with such a turn.
    """
    pieces = HH_TURN.split(cell)
    if pieces[0].strip() or len(pieces) < 3:
        raise CellError(
            "no prompt: expected a prompt column, a list of messages, or text with 'Human:' and 'Assistant:'"
        )
    roles = ["user" if role == "Human" else "assistant" for role in pieces[1::2]]
    return list(zip(roles, (text.strip() for text in pieces[2::2]), strict=True))
