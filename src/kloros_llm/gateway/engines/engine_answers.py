"""llama-server's answers, read: events to pieces, errors to exceptions.

Source: llama.cpp's tools/server (server-task.cpp, server-chat.cpp, server-common.cpp).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from .engine_errors import EngineError, EngineGoneError, EngineLoadingError
from .pieces import Ending, Piece, ToolCall

INVALID_ANSWER = "invalid_answer"
"""The kind of an EngineError for what llama-server never says: something else is there."""

# Not a 401: its client would doubt his own key.
_KEY_REFUSED = (
    "llama-server refuses the gateway's key: the instance's api_key_file in gateway.toml has to "
    "hold the one that it was started with"
)
_REASONS = {"limit": "length", "length": "length"}
_DONE = b"[DONE]"
_decode = json.JSONDecoder().raw_decode
# What is around a token's text in its event of a chat; what follows tells nothing of the token.
_BEFORE_TEXT = '{"choices":[{"finish_reason":null,"index":0,"delta":{"content":'
_AFTER_TEXT = '}}],"created":'


class Answer(Protocol):
    """One generation's events, read in turn. `ending` is set by the last one."""

    ending: Ending | None

    def read(self, data: bytes) -> Sequence[Piece]:
        """What an event brings; often one piece. Raises EngineError."""


class CompletionAnswer:
    """POST /completion: an object a token, the last one with stop and timings."""

    def __init__(self) -> None:
        self.ending: Ending | None = None

    def read(self, data: bytes) -> Sequence[Piece]:
        event = _event(data)
        try:
            text = event["content"]
            if event["stop"]:
                self.ending = _ending(event["stop_type"], event["timings"])
                return (Piece(text),) if text else ()
            probabilities = event.get("completion_probabilities")
            return (
                Piece(
                    text,
                    tokens=tuple(event["tokens"]),
                    logprobs=_logprobs(probabilities) if probabilities else (),
                ),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise _invalid(f"an event of /completion lacks {error}") from error


class ChatAnswer:
    """POST /v1/chat/completions: deltas, the reason, the usage. Calls are joined per index."""

    def __init__(self) -> None:
        self.ending: Ending | None = None
        self._reason = ""
        self._calls: dict[int, dict[str, str]] = {}

    def read(self, data: bytes) -> Sequence[Piece]:
        if data == _DONE:
            return ()
        if text := _text_alone(data):
            return (Piece(text),)
        event = _event(data)
        try:
            pieces: list[Piece] = []
            for choice in event["choices"]:
                pieces += self._of_choice(choice)
            if self._reason and "timings" in event:
                self.ending = _ending(self._reason, event["timings"])
            return pieces
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _invalid(f"an event of /v1/chat/completions lacks {error}") from error

    def _of_choice(self, choice: Mapping[str, Any]) -> list[Piece]:
        delta = choice["delta"]
        pieces = []
        text = delta.get("content") or ""
        thinking = delta.get("reasoning_content") or ""
        found = choice.get("logprobs")
        probabilities = found.get("content") if found else None
        if text or thinking or probabilities:
            pieces.append(
                Piece(
                    text,
                    thinking,
                    tokens=tuple(one["id"] for one in probabilities) if probabilities else (),
                    logprobs=_logprobs(probabilities) if probabilities else (),
                )
            )
        for part in delta.get("tool_calls") or ():
            if part["index"] not in self._calls:
                pieces += self._whole_calls()
            self._join(part)
        reason = choice["finish_reason"]
        if reason:
            self._reason = reason
            pieces += self._whole_calls()
        return pieces

    def _join(self, part: Mapping[str, Any]) -> None:
        call = self._calls.setdefault(part["index"], {"id": "", "name": "", "arguments": ""})
        function = part.get("function") or {}
        call["id"] += part.get("id") or ""
        call["name"] += function.get("name") or ""
        call["arguments"] += function.get("arguments") or ""

    def _whole_calls(self) -> list[Piece]:
        """The calls that no further delta adds to. One that the limit cut is dropped."""
        calls, self._calls = self._calls, {}
        pieces = []
        for call in calls.values():
            try:
                arguments = json.loads(call["arguments"] or "{}")
            except ValueError:
                arguments = None
            if isinstance(arguments, dict):
                pieces.append(Piece(tool_calls=(ToolCall(call["name"], arguments, call["id"]),)))
            elif self._reason != "length":
                raise EngineError(
                    500,
                    f"the arguments of the model's call of {call['name']!r} are no JSON object",
                    kind="server_error",
                )
        return pieces


def failure(status: int, raw: bytes) -> Exception:
    """What an answer of another status than 200 stands for."""
    text = raw.decode(errors="replace").strip()
    try:
        error = json.loads(text)["error"]
        message, kind = str(error["message"]), str(error.get("type", ""))
    except (ValueError, KeyError, TypeError):
        # A router's own words where its child did not answer.
        if text.startswith("proxy error: "):
            return EngineGoneError(text, began=False)
        if status == 503:
            return EngineLoadingError(f"status {status}")
        return EngineError(status, f"the engine answered with status {status}", body=text)
    if status == 503 or _passes(status, message):
        return EngineLoadingError(message)
    if status == 401:
        return EngineError(500, _KEY_REFUSED, kind=kind, body=text)
    return EngineError(
        status,
        message,
        kind=kind,
        body=text,
        prompt_tokens=error.get("n_prompt_tokens"),
        context_tokens=error.get("n_ctx"),
    )


def _passes(status: int, message: str) -> bool:
    """Whether a router says that the model is just going, or that others hold its memory."""
    return (status == 400 and message.endswith(" is not running")) or (
        status == 500 and message == "model limit reached, try again later"
    )


def invalid_answer(what: str) -> EngineError:
    """The error for what is not said by any llama-server. `what` follows "the engine's answer"."""
    return EngineError(502, f"the engine's answer {what}", kind=INVALID_ANSWER)


def _invalid(detail: str) -> EngineError:
    return invalid_answer(f"is none of llama-server: {detail}")


def _event(data: bytes) -> dict[str, Any]:
    try:
        # Half of what json.loads takes for an object this small.
        event, _ = _decode(data.decode())
    except ValueError as error:
        raise _invalid("its stream holds what is not JSON") from error
    if not isinstance(event, dict):
        raise _invalid("its stream holds what is no object")
    if "error" in event:
        raise _told_error(event["error"], data)
    return event


def _text_alone(data: bytes) -> str | None:
    """Of an event that brings a token's text and nothing else: it is not decoded as a whole,
    which took a tenth of the gateway's CPU. None for any other.
    """
    try:
        event = data.decode()
        if not (event.startswith(_BEFORE_TEXT) and event.endswith("}")):
            return None
        text, end = _decode(event, len(_BEFORE_TEXT))
    except ValueError:
        return None
    return text if isinstance(text, str) and event.startswith(_AFTER_TEXT, end) else None


def _told_error(said: Any, data: bytes) -> EngineError:
    if not isinstance(said, dict):
        said = {"message": str(said)}
    return EngineError(
        int(said.get("code") or 500),
        str(said.get("message") or "the engine ended the answer with an error"),
        kind=str(said.get("type") or "server_error"),
        body=data.decode(errors="replace"),
        prompt_tokens=said.get("n_prompt_tokens"),
        context_tokens=said.get("n_ctx"),
    )


def _ending(reason: str, timings: Mapping[str, Any]) -> Ending:
    """`cache_n` of the prompt's tokens were in the cache, `prompt_n` were evaluated."""
    return Ending(
        reason=_REASONS.get(reason, "stop"),
        prompt_tokens=timings["cache_n"] + timings["prompt_n"],
        prompt_ms=timings["prompt_ms"],
        completion_tokens=timings["predicted_n"],
        completion_ms=timings["predicted_ms"],
    )


def _logprobs(probabilities: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Ollama's objects: Go's order of fields, `bytes` and `top_logprobs` only with content."""
    found = []
    for one in probabilities:
        logprob = _logprob(one)
        tops = [_logprob(top) for top in one.get("top_logprobs") or ()]
        if tops:
            logprob["top_logprobs"] = tops
        found.append(logprob)
    return tuple(found)


def _logprob(one: Mapping[str, Any]) -> dict[str, Any]:
    logprob: dict[str, Any] = {"token": one["token"], "logprob": one["logprob"]}
    if one["bytes"]:
        logprob["bytes"] = one["bytes"]
    return logprob
