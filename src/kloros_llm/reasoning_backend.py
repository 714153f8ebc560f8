"""What whoever wants an answer can call, whether one engine gives it or the best of several."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, overload

from .errors import LlmUsageError
from .generation import Answer, Message, checked_messages
from .speech import SentenceStream
from .text_stream import Start, TextStream
from .timeouts import Timeouts, timeouts_of


@dataclass
class ReasoningResult:
    """A reply; `sources` and `meta` are for backends that have them."""

    reply_text: str
    sources: list[str] = field(default_factory=list)
    meta: dict[str, Any] | None = None


class ReasoningBackend(ABC):
    """Gives answers. Safe to use from several threads.

    Calls take as keywords: any option of Ollama's (`num_predict`, `top_p`, `stop`, …; `num_ctx`,
    `num_gpu`, `main_gpu` and others that a llama-server is started with are accepted and change
    nothing there) or of llama-server's (`grammar`, `mirostat`, …), `options` (a mapping of such),
    `system`, `model`, `format` ("json" or a JSON schema), `images` (bytes, paths, base64),
    `think`, `raw` (the text as it is, without a template), `suffix`, `truncate` (True: what the
    context does not hold loses its oldest part, as with Ollama), `keep_alive`, and `timeout` (a
    number, taken as `requests` takes it, or Timeouts).

    All raise LlmError; a keyword that is none of these is a TypeError.
    """

    timeout: float | Timeouts

    @abstractmethod
    def start(
        self, asked: Mapping[str, Any], kwargs: Mapping[str, Any], *, may_wait: bool = True
    ) -> Start:
        """What begins an answer. `may_wait`: for an engine that loads its model."""

    @overload
    def generate(self, text: str, *, stream: Literal[False] = False, **kwargs: Any) -> str: ...

    @overload
    def generate(self, text: str, *, stream: Literal[True], **kwargs: Any) -> TextStream: ...

    @overload
    def generate(self, text: str, *, stream: bool, **kwargs: Any) -> str | TextStream: ...

    def generate(self, text: str, *, stream: bool = False, **kwargs: Any) -> str | TextStream:
        """The answer to a prompt, which the model's own chat template renders.

        Without the white space around it; with `stream` an iterator of pieces as they come.
        """
        if not text:
            raise LlmUsageError("generate() needs a prompt: the text is empty")
        answer = self._stream({"prompt": text}, kwargs, streaming=stream)
        return answer if stream else answer.answer().text.strip()

    @overload
    def chat(
        self, messages: Sequence[Message], *, stream: Literal[False] = False, **kwargs: Any
    ) -> Answer: ...

    @overload
    def chat(
        self, messages: Sequence[Message], *, stream: Literal[True], **kwargs: Any
    ) -> TextStream: ...

    @overload
    def chat(
        self, messages: Sequence[Message], *, stream: bool, **kwargs: Any
    ) -> Answer | TextStream: ...

    def chat(
        self, messages: Sequence[Message], *, stream: bool = False, **kwargs: Any
    ) -> Answer | TextStream:
        """The answer to a conversation: messages with `role` and `content`, in Ollama's form or
        OpenAI's. `tools` are what the model may call; the calls are in the answer.
        """
        tools = tuple(kwargs.pop("tools", None) or ())
        asked = {"messages": checked_messages(messages), "tools": tools}
        answer = self._stream(asked, kwargs, streaming=stream)
        return answer if stream else answer.answer()

    def stream_sentences(self, text: str, *, min_chars: int = 0, **kwargs: Any) -> SentenceStream:
        """The answer to a prompt, sentence by sentence, each as soon as it is over: for speech.

        Sentences shorter than `min_chars` are joined with the next.
        """
        return SentenceStream(self.generate(text, stream=True, **kwargs), min_chars)

    def reply(
        self,
        text: str,
        kloros_instance: object = None,
        *,
        enable_streaming: bool = True,
        **kwargs: Any,
    ) -> ReasoningResult:
        """The answer; meanwhile `kloros_instance.speak()`, if it has that, is given each of its
        sentences.
        """
        speak = getattr(kloros_instance, "speak", None)
        if speak is None or not enable_streaming:
            return ReasoningResult(self.generate(text, **kwargs))
        with self.stream_sentences(text, **kwargs) as spoken:
            for sentence in spoken:
                speak(sentence)
            return ReasoningResult(spoken.pieces.text.strip())

    def _stream(
        self, asked: Mapping[str, Any], kwargs: Mapping[str, Any], *, streaming: bool
    ) -> TextStream:
        timeout = kwargs.get("timeout")
        bounds = timeouts_of(self.timeout if timeout is None else timeout, streaming=streaming)
        return TextStream(self.start(asked, kwargs), bounds)
