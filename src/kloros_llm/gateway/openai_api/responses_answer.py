"""What /v1/responses answers with: a response of output items, whole or as events."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ..engines.pieces import Piece, ToolCall
from ..ollama_api.answering import Totals
from ..ollama_api.json_text import compact


class Response:
    """One response. `echo` is what of the request is repeated."""

    stream_type = "text/event-stream"
    whole_type = "application/json"

    def __init__(self, model: str, echo: Mapping[str, Any]) -> None:
        self._model = model
        self._echo = echo
        self._id = f"resp_{_number()}"
        self._message_id = f"msg_{_number()}"
        self._reasoning_id = f"rs_{_number()}"
        self._created = int(time.time())
        self._sequence = 0
        self._done: list[dict[str, Any]] = []
        self._thought: list[str] = []
        self._said: list[str] = []

    def _event(self, kind: str, **fields: Any) -> str:
        data = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return f"event: {kind}\ndata: {compact(data)}\n\n"

    def _object(
        self, status: str, output: Sequence[Mapping[str, Any]], totals: Totals | None = None
    ) -> dict[str, Any]:
        echo = self._echo
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "completed_at": int(time.time()) if totals else None,
            "status": status,
            "incomplete_details": None,
            "model": self._model,
            "previous_response_id": None,
            "instructions": echo["instructions"],
            "output": list(output),
            "error": None,
            "tools": echo["tools"],
            "tool_choice": "auto",
            "truncation": echo["truncation"],
            "parallel_tool_calls": True,
            "text": echo["text"],
            "top_p": echo["top_p"],
            "presence_penalty": 0,
            "frequency_penalty": 0,
            "top_logprobs": 0,
            "temperature": echo["temperature"],
            "reasoning": echo["reasoning"],
            "usage": _usage(totals) if totals else None,
            "max_output_tokens": echo["max_output_tokens"],
            "max_tool_calls": None,
            "store": False,
            "background": echo["background"],
            "service_tier": "default",
            "metadata": {},
            "safety_identifier": None,
            "prompt_cache_key": None,
        }

    def _begin(self) -> str:
        if self._sequence:
            return ""
        begun = self._object("in_progress", ())
        return self._event("response.created", response=begun) + self._event(
            "response.in_progress", response=begun
        )

    def piece(self, piece: Piece) -> str:
        """Thinking, text and calls, each as events of its own item."""
        events = self._begin()
        if piece.thinking:
            events += self._thinking(piece.thinking)
        if piece.text:
            events += self._end_thinking() + self._text(piece.text)
        for call in piece.tool_calls:
            events += self._end_thinking() + self._end_text() + self._call(call)
        return events

    def _thinking(self, text: str) -> str:
        events = ""
        index = len(self._done)
        if not self._thought:
            item = {"id": self._reasoning_id, "type": "reasoning", "summary": []}
            events = self._event("response.output_item.added", output_index=index, item=item)
        self._thought.append(text)
        return events + self._event(
            "response.reasoning_summary_text.delta",
            item_id=self._reasoning_id,
            output_index=index,
            summary_index=0,
            delta=text,
        )

    def _end_thinking(self) -> str:
        if not self._thought:
            return ""
        text, index = "".join(self._thought), len(self._done)
        self._thought = []
        item = _reasoning(self._reasoning_id, text)
        self._done.append(item)
        return self._event(
            "response.reasoning_summary_text.done",
            item_id=self._reasoning_id,
            output_index=index,
            summary_index=0,
            text=text,
        ) + self._event("response.output_item.done", output_index=index, item=item)

    def _text(self, text: str) -> str:
        events = ""
        where = {"item_id": self._message_id, "output_index": len(self._done), "content_index": 0}
        if not self._said:
            item = {
                "id": self._message_id,
                "type": "message",
                "status": "in_progress",
                "role": "assistant",
                "content": [],
            }
            events = self._event(
                "response.output_item.added", output_index=len(self._done), item=item
            ) + self._event("response.content_part.added", **where, part=_part(""))
        self._said.append(text)
        return events + self._event("response.output_text.delta", **where, delta=text, logprobs=[])

    def _end_text(self) -> str:
        if not self._said:
            return ""
        text, index = "".join(self._said), len(self._done)
        self._said = []
        where = {"item_id": self._message_id, "output_index": index, "content_index": 0}
        item = _message(self._message_id, text)
        self._done.append(item)
        return (
            self._event("response.output_text.done", **where, text=text, logprobs=[])
            + self._event("response.content_part.done", **where, part=_part(text))
            + self._event("response.output_item.done", output_index=index, item=item)
        )

    def _call(self, call: ToolCall) -> str:
        index = len(self._done)
        item = self._call_item(call, index)
        self._done.append(item)
        begun = {**item, "status": "in_progress", "arguments": ""}
        where = {"item_id": item["id"], "output_index": index}
        arguments = item["arguments"]
        return (
            self._event("response.output_item.added", output_index=index, item=begun)
            + self._event("response.function_call_arguments.delta", **where, delta=arguments)
            + self._event("response.function_call_arguments.done", **where, arguments=arguments)
            + self._event("response.output_item.done", output_index=index, item=item)
        )

    def _call_item(self, call: ToolCall, index: int) -> dict[str, Any]:
        return {
            "id": f"fc_{self._id}_{index}",
            "type": "function_call",
            "status": "completed",
            "call_id": call.id,
            "name": call.name,
            "arguments": compact(call.arguments),
        }

    def last(self, totals: Totals) -> str:
        """The whole response once more; an answer without any item has an empty message."""
        events = self._begin() + self._end_thinking() + self._end_text()
        if all(item["type"] == "reasoning" for item in self._done):
            self._done.append(_message(self._message_id, ""))
        completed = self._object("completed", self._done, totals)
        return events + self._event("response.completed", response=completed)

    def whole(self, whole: Piece, totals: Totals) -> str:
        """One object, with a line end."""
        output: list[dict[str, Any]] = []
        if whole.thinking:
            output.append(_reasoning(self._reasoning_id, whole.thinking))
        if whole.text or not whole.tool_calls:
            output.append(_message(self._message_id, whole.text))
        for call in whole.tool_calls:
            output.append(self._call_item(call, len(output)))
        return compact(self._object("completed", output, totals)) + "\n"

    def failed(self, text: str) -> str:
        """The event that ends a broken stream."""
        failed = self._object("failed", self._done)
        failed["error"] = {"code": "server_error", "message": text}
        return self._event("response.failed", response=failed)


def _number() -> int:
    # Ollama draws one of a million.
    return random.randrange(1_000_000)  # noqa: S311


def _usage(totals: Totals) -> dict[str, Any]:
    return {
        "input_tokens": totals.prompt_tokens,
        "output_tokens": totals.completion_tokens,
        "total_tokens": totals.prompt_tokens + totals.completion_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _message(name: str, text: str) -> dict[str, Any]:
    return {
        "id": name,
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [_part(text)],
    }


def _reasoning(name: str, text: str) -> dict[str, Any]:
    return {
        "id": name,
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": text}],
        "encrypted_content": text,
    }
