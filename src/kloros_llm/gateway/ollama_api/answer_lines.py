"""The objects that /api/generate and /api/chat answer with, written field by field.

Order and omissions are those of Ollama's GenerateResponse and ChatResponse. A line is made for
every token, so nothing here builds a dictionary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..engines.pieces import Piece, ToolCall
from .answering import Totals
from .go_values import encode
from .json_text import compact, string, timestamp

NDJSON = "application/x-ndjson"
JSON = "application/json; charset=utf-8"


def tool_calls_text(calls: Sequence[ToolCall], first_index: int = 0) -> str:
    """The array under `tool_calls`; arguments are an object."""
    written = []
    for index, call in enumerate(calls, first_index):
        name = f'"id":{string(call.id)},' if call.id else ""
        written.append(
            f'{{{name}"function":{{"index":{index},"name":{string(call.name)},'
            f'"arguments":{encode(call.arguments)}}}}}'
        )
    return f"[{','.join(written)}]"


def metrics_text(totals: Totals) -> str:
    """The six figures, those that are 0 left out."""
    named = (
        ("total_duration", totals.total_ns),
        ("load_duration", totals.load_ns),
        ("prompt_eval_count", totals.prompt_tokens),
        ("prompt_eval_duration", totals.prompt_ns),
        ("eval_count", totals.completion_tokens),
        ("eval_duration", totals.completion_ns),
    )
    return "".join(f',"{name}":{value}' for name, value in named if value)


def _logprobs(logprobs: Sequence[Mapping[str, Any]]) -> str:
    return f',"logprobs":{encode(logprobs)}' if logprobs else ""


def _debug_info(prompt: str, images: int) -> str:
    count = f',"image_count":{images}' if images else ""
    return f'"_debug_info":{{"rendered_template":{string(prompt)}{count}}}'


class _Lines:
    stream_type = NDJSON
    whole_type = JSON

    def failed(self, text: str) -> str:
        """What ends a stream that has begun and cannot go on."""
        return f'{{"error":{string(text)}}}\n'


class GenerateAnswer(_Lines):
    """/api/generate. `model` is the name that the client used."""

    def __init__(self, model: str) -> None:
        self._head = f'{{"model":{string(model)},"created_at":"'

    def _begin(self, piece: Piece) -> str:
        thinking = f',"thinking":{string(piece.thinking)}' if piece.thinking else ""
        return f'{self._head}{timestamp()}","response":{string(piece.text)}{thinking}'

    def piece(self, piece: Piece) -> str:
        """A token's line."""
        calls = f',"tool_calls":{tool_calls_text(piece.tool_calls)}' if piece.tool_calls else ""
        return f'{self._begin(piece)},"done":false{calls}{_logprobs(piece.logprobs)}}}\n'

    def last(self, totals: Totals) -> str:
        """The line with the figures; its response is empty."""
        return self.whole(Piece(), totals) + "\n"

    def whole(self, whole: Piece, totals: Totals) -> str:
        """All at once, with `context` where there is one."""
        context = f',"context":{compact(list(totals.context))}' if totals.context else ""
        calls = f',"tool_calls":{tool_calls_text(whole.tool_calls)}' if whole.tool_calls else ""
        return (
            f'{self._begin(whole)},"done":true,"done_reason":{string(totals.reason)}{context}'
            f"{metrics_text(totals)}{calls}{_logprobs(whole.logprobs)}}}"
        )

    def rendered(self, prompt: str, images: int) -> str:
        """The prompt instead of an answer."""
        return f'{self._begin(Piece())},"done":false,{_debug_info(prompt, images)}}}'


class ChatAnswer(_Lines):
    """/api/chat. Tool calls are counted through all lines of one answer."""

    def __init__(self, model: str) -> None:
        self._head = f'{{"model":{string(model)},"created_at":"'
        self._calls = 0

    def _begin(self, piece: Piece) -> str:
        more = ""
        if piece.thinking:
            more = f',"thinking":{string(piece.thinking)}'
        if piece.tool_calls:
            more += f',"tool_calls":{tool_calls_text(piece.tool_calls, self._calls)}'
            self._calls += len(piece.tool_calls)
        return (
            f'{self._head}{timestamp()}","message":{{"role":"assistant",'
            f'"content":{string(piece.text)}{more}}}'
        )

    def piece(self, piece: Piece) -> str:
        """A token's line."""
        return f'{self._begin(piece)},"done":false{_logprobs(piece.logprobs)}}}\n'

    def last(self, totals: Totals) -> str:
        """The line with the figures; its content is empty."""
        return self.whole(Piece(), totals) + "\n"

    def whole(self, whole: Piece, totals: Totals) -> str:
        """All at once."""
        return (
            f'{self._begin(whole)},"done":true,"done_reason":{string(totals.reason)}'
            f"{_logprobs(whole.logprobs)}{metrics_text(totals)}}}"
        )

    def rendered(self, prompt: str, images: int) -> str:
        """The prompt instead of an answer; Ollama leaves the message empty here."""
        return (
            f'{self._head}{timestamp()}","message":{{"role":"","content":""}},"done":false,'
            f"{_debug_info(prompt, images)}}}"
        )
