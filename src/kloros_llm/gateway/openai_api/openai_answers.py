"""What /v1/chat/completions and /v1/completions answer with, as Ollama's translation writes it."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ..engines.pieces import Piece, ToolCall
from ..errors import error_body
from ..ollama_api.answering import Totals
from ..ollama_api.go_values import encode
from ..ollama_api.json_text import string

JSON = "application/json"
EVENTS = "text/event-stream"
_DONE = "data: [DONE]\n\n"


def usage_text(totals: Totals) -> str:
    """The object under `usage`."""
    return (
        f'{{"prompt_tokens":{totals.prompt_tokens},'
        f'"completion_tokens":{totals.completion_tokens},'
        f'"total_tokens":{totals.prompt_tokens + totals.completion_tokens}}}'
    )


def tool_calls_text(calls: Sequence[ToolCall], first_index: int = 0) -> str:
    """The array under `tool_calls`; arguments are JSON as a string here."""
    written = [
        f'{{"id":{string(call.id)},"index":{index},"type":"function","function":{{"name":'
        f'{string(call.name)},"arguments":{string(encode(call.arguments))}}}}}'
        for index, call in enumerate(calls, first_index)
    ]
    return f"[{','.join(written)}]"


def _logprobs(logprobs: Sequence[Mapping[str, Any]]) -> str:
    return f',"logprobs":{{"content":{encode(logprobs)}}}' if logprobs else ""


class _Events:
    stream_type = EVENTS
    whole_type = JSON

    def __init__(self, model: str, prefix: str, *, usage: bool) -> None:
        self._model = string(model)
        # Ollama draws one of 999.
        self._id = f"{prefix}-{random.randrange(999)}"  # noqa: S311
        self._created = int(time.time())
        self._usage = usage

    def failed(self, text: str) -> str:
        """The event that ends a broken stream; there is no [DONE] after it."""
        return f"data: {error_body('openai', 500, text).data.decode()}\n"


class ChatCompletion(_Events):
    """/v1/chat/completions. `usage` asks for an event of its own before the end."""

    def __init__(self, model: str, *, usage: bool) -> None:
        super().__init__(model, "chatcmpl", usage=usage)
        self._chunk = (
            f'data: {{"id":"{self._id}","object":"chat.completion.chunk","created":{self._created},'
            f'"model":{self._model},"system_fingerprint":"fp_ollama","choices":'
        )
        self._role = '"role":"assistant",'
        self._calls = 0

    def piece(self, piece: Piece) -> str:
        """One event, or two where thinking and the answer came together."""
        if piece.thinking and (piece.text or piece.tool_calls):
            thinking = self.piece(Piece(thinking=piece.thinking, logprobs=piece.logprobs))
            return thinking + self.piece(Piece(text=piece.text, tool_calls=piece.tool_calls))
        fields = []
        if piece.text:
            fields.append(f'"content":{string(piece.text)}')
        if piece.thinking:
            fields.append(f'"reasoning":{string(piece.thinking)}')
        if piece.tool_calls:
            fields.append(f'"tool_calls":{tool_calls_text(piece.tool_calls, self._calls)}')
            self._calls += len(piece.tool_calls)
        role, self._role = self._role, ""
        return (
            f'{self._chunk}[{{"index":0,"delta":{{{role}{",".join(fields)}}},"finish_reason":null'
            f"{_logprobs(piece.logprobs)}}}]}}\n\n"
        )

    def last(self, totals: Totals) -> str:
        """The reason, the usage if it was asked for, and the end."""
        reason = "tool_calls" if self._calls else totals.reason
        end = f'{self._chunk}[{{"index":0,"delta":{{}},"finish_reason":{string(reason)}}}]}}\n\n'
        if self._usage:
            end += f'{self._chunk}[],"usage":{usage_text(totals)}}}\n\n'
        return end + _DONE

    def whole(self, whole: Piece, totals: Totals) -> str:
        """One object, with a line end."""
        more = f',"reasoning":{string(whole.thinking)}' if whole.thinking else ""
        if whole.tool_calls:
            more += f',"tool_calls":{tool_calls_text(whole.tool_calls)}'
        reason = "tool_calls" if whole.tool_calls else totals.reason
        return (
            f'{{"id":"{self._id}","object":"chat.completion","created":{self._created},"model":'
            f'{self._model},"system_fingerprint":"fp_ollama","choices":[{{"index":0,"message":{{'
            f'"role":"assistant","content":{string(whole.text)}{more}}},"finish_reason":'
            f'{string(reason)}{_logprobs(whole.logprobs)}}}],"usage":{usage_text(totals)}}}\n'
        )


class TextCompletion(_Events):
    """/v1/completions. Where `usage` is asked for, Ollama gives it with every event."""

    def __init__(self, model: str, *, usage: bool) -> None:
        super().__init__(model, "cmpl", usage=usage)
        self._head = (
            f'{{"id":"{self._id}","object":"text_completion","created":{self._created},"choices":'
        )
        self._tail = f',"model":{self._model},"system_fingerprint":"fp_ollama"'
        self._no_usage = f',"usage":{usage_text(Totals(""))}' if usage else ""

    def _event(self, piece: Piece, reason: str) -> str:
        return (
            f'data: {self._head}[{{"text":{string(piece.text)},"index":0,"finish_reason":{reason}'
            f"{_logprobs(piece.logprobs)}}}]{self._tail}{self._no_usage}}}\n\n"
        )

    def piece(self, piece: Piece) -> str:
        """One event."""
        return self._event(piece, "null")

    def last(self, totals: Totals) -> str:
        """The reason, the usage if it was asked for, and the end."""
        end = self._event(Piece(), string(totals.reason))
        if self._usage:
            end += f'data: {self._head}[]{self._tail},"usage":{usage_text(totals)}}}\n\n'
        return end + _DONE

    def whole(self, whole: Piece, totals: Totals) -> str:
        """One object, with a line end."""
        return (
            f'{{"id":"{self._id}","object":"text_completion","created":{self._created}{self._tail},'
            f'"choices":[{{"text":{string(whole.text)},"index":0,"finish_reason":'
            f'{string(totals.reason)}{_logprobs(whole.logprobs)}}}],"usage":{usage_text(totals)}}}\n'
        )
