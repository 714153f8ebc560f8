"""Vectors of texts: asked of the engine, normalised, written as Go writes float32."""

from __future__ import annotations

import asyncio
import base64
import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..engines.backends import Backends, LoadClock
from ..engines.engine import Embeddings, Engine
from ..engines.engine_errors import EngineError
from ..errors import ApiError
from ..models.catalogue import Served
from ..ollama_api.go_values import json_number

TOO_LONG = "the input length exceeds the context length"
# Formatting so many numbers takes the event loop's time: more are formatted in a thread.
_AT_ONCE = 20_000
# What llama-server says of an input that is too long, in one version or another.
_LIMITS = ("too large", "context size", "context length", "physical batch size")


@dataclass(frozen=True)
class Vectors:
    """One vector a text, in order."""

    vectors: list[list[float]]
    prompt_tokens: int


@dataclass(frozen=True)
class Embedder:
    """Asks for a model's vectors. `context_tokens` bounds an input; longer ones lose their end."""

    backends: Backends
    served: Served
    clock: LoadClock
    context_tokens: int
    keep_alive_ns: int | None = None

    async def vectors(self, texts: Sequence[str], *, truncate: bool) -> Vectors:
        """As the engine gives them. Raises ApiError for a text that is too long, EngineError."""
        try:
            found = await self._embed(list(texts))
        except EngineError as error:
            if not is_too_long(error):
                raise
            if not truncate:
                raise ApiError(400, TOO_LONG) from error
        else:
            return Vectors(found.vectors, found.prompt_tokens)
        each = [await self._one(text) for text in texts]
        return Vectors([one.vectors[0] for one in each], sum(one.prompt_tokens for one in each))

    async def _one(self, text: str) -> Embeddings:
        try:
            return await self._embed([text])
        except EngineError as error:
            if not is_too_long(error):
                raise
        return await self._embed([await self._shortened(text)])

    async def _shortened(self, text: str) -> list[int]:
        """The first tokens, between those that the model wants around every text."""

        async def ask(engine: Engine) -> tuple[list[int], list[int]]:
            return await engine.tokenize(text), await engine.tokenize(text, special=False)

        whole, bare = await self.backends.call(
            self.served, ask, loading=self.clock, keep_alive_ns=self.keep_alive_ns
        )
        around = len(whole) - len(bare)
        room = self.context_tokens - around
        if len(bare) <= room:
            raise ApiError(
                400, "input exceeds maximum context length and cannot be truncated further"
            )
        if room <= 0:
            raise ApiError(400, "input after truncation exceeds maximum context length")
        before = 1 if around and whole[0] != bare[0] else 0
        return whole[: before + room] + whole[len(whole) - around + before :]

    async def _embed(self, inputs: Sequence[str | Sequence[int]]) -> Embeddings:
        async def ask(engine: Engine) -> Embeddings:
            return await engine.embed(inputs)

        return await self.backends.call(
            self.served, ask, loading=self.clock, keep_alive_ns=self.keep_alive_ns
        )


def is_too_long(error: EngineError) -> bool:
    """Whether it is about the length of an input."""
    message = error.message.lower()
    return error.status < 501 and any(limit in message for limit in _LIMITS)


def normalised(vector: Iterable[float], dimensions: int = 0) -> array[float]:
    """Of length 1, as float32; of the first `dimensions`, where there are more. Raises ApiError."""
    whole = _of_length_one(array("f", vector))
    return _of_length_one(whole[:dimensions]) if 0 < dimensions < len(whole) else whole


def _of_length_one(vector: array[float]) -> array[float]:
    length = math.sqrt(math.fsum(number * number for number in vector))
    if not math.isfinite(length):
        raise ApiError(400, "embedding contains NaN or Inf values")
    scale = 1.0 / max(length, 1e-12)
    return array("f", [number * scale for number in vector])


def in_base64(vector: array[float]) -> str:
    """The bytes of little-endian float32."""
    return base64.b64encode(vector.tobytes()).decode()


async def written(vectors: Sequence[array[float]]) -> list[str]:
    """Each as a JSON array, with the fewest digits that are the same float32."""
    if sum(map(len, vectors)) > _AT_ONCE:
        return await asyncio.to_thread(lambda: [_written(vector) for vector in vectors])
    return [_written(vector) for vector in vectors]


def _written(vector: array[float]) -> str:
    texts = [f"{number:.7g}" for number in vector]
    for digits in (8, 9):
        read = array("f", map(float, texts))
        for index, (wanted, found) in enumerate(zip(vector, read, strict=True)):
            if wanted != found:
                texts[index] = f"{wanted:.{digits}g}"
    plain = (json_number(float(text)) if "e" in text else text for text in texts)
    return f"[{','.join(plain)}]"
