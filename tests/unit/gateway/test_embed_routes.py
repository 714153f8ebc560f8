"""/api/embed, /api/embeddings and /v1/embeddings through real HTTP.

The stand-in's vectors are made of the texts' hashes: what they mean is not at issue here.
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
import struct
from array import array
from pathlib import Path

import pytest

from kloros_llm.gateway.errors import ApiError
from kloros_llm.gateway.generation.embedding import normalised, written
from tests.stand_in_engine import Fault, StandInEngine
from tests.unit.gateway.generation_lab import Client, Lab


def _length(vector: list[float]) -> float:
    return math.sqrt(sum(number * number for number in vector))


def test_vectors_have_length_one(tmp_path: Path) -> None:
    answer, client = Lab(tmp_path).post("/api/embed", {"model": "small", "input": ["a", "b c"]})
    assert list(answer.json) == [
        "model",
        "embeddings",
        "total_duration",
        "load_duration",
        "prompt_eval_count",
    ]
    first, second = answer.json["embeddings"]
    assert first != second
    assert _length(first) == pytest.approx(1)
    # All texts in one request.
    assert client.paths() == ["/v1/embeddings"]
    shorter, _ = Lab(tmp_path).post("/api/embed", {"model": "small", "input": "a", "dimensions": 2})
    (cut,) = shorter.json["embeddings"]
    assert len(cut) == 2
    assert _length(cut) == pytest.approx(1)
    assert cut[0] / cut[1] == pytest.approx(first[0] / first[1], rel=1e-5)


def test_no_text_loads_the_model(tmp_path: Path) -> None:
    async def use(client: Client) -> list[str]:
        return [
            (await client.post(path, {"model": "small", **body})).text
            for path, body in (
                ("/api/embed", {"input": []}),
                ("/api/embed", {"input": ""}),
                ("/api/embeddings", {}),
            )
        ]

    assert Lab(tmp_path).run(use) == [
        '{"model":"small","embeddings":[]}',
        '{"model":"small","embeddings":[]}',
        '{"embedding":[]}',
    ]


def test_errors_are_those_of_ollama(tmp_path: Path) -> None:
    async def use(client: Client) -> list[tuple[int, str]]:
        found = []
        for path, body in (
            ("/api/embed", {"model": "gone", "input": "x"}),
            ("/api/embeddings", {"model": "gone", "prompt": "x"}),
            ("/api/embed", {"model": "small", "input": [1]}),
            ("/api/embed", {"model": "small", "input": "x"}),
            ("/api/embeddings", {"model": "small", "prompt": "x"}),
            ("/api/embeddings", {"prompt": "x"}),
        ):
            answer = await client.post(path, body)
            found.append((answer.status, answer.json["error"]))
        return found

    unsupported = "This server does not support embeddings. Start it with `--embeddings`"
    assert Lab(tmp_path, StandInEngine(embeddings=False)).run(use) == [
        (404, 'model "gone" not found, try pulling it first'),
        (404, 'model "gone" not found, try pulling it first'),
        (400, "invalid input type"),
        (501, unsupported),
        (500, unsupported),
        (400, "model is required"),
    ]


def test_a_text_that_is_too_long_and_may_not_be_cut(tmp_path: Path) -> None:
    engine = StandInEngine()
    error = {"code": 500, "message": "input is too large to process", "type": "server_error"}
    engine.faults.append(Fault("status", status=500, body=json.dumps({"error": error}).encode()))
    answer, _ = Lab(tmp_path, engine).post(
        "/api/embed", {"model": "small", "input": "x", "truncate": False}
    )
    assert (answer.status, answer.json["error"]) == (
        400,
        "the input length exceeds the context length",
    )


def test_the_older_route_gives_what_the_engine_gives(tmp_path: Path) -> None:
    answer, _ = Lab(tmp_path).post("/api/embeddings", {"model": "small", "prompt": "a"})
    assert list(answer.json) == ["embedding"]
    newer, _ = Lab(tmp_path).post("/api/embed", {"model": "small", "input": "a"})
    assert answer.json["embedding"] == pytest.approx(newer.json["embeddings"][0], rel=1e-5)


def test_openais_vectors(tmp_path: Path) -> None:
    async def use(client: Client) -> tuple[list[float], str, int]:
        plain = await client.post("/v1/embeddings", {"model": "small", "input": "a"})
        packed = await client.post(
            "/v1/embeddings", {"model": "small", "input": "a", "encoding_format": "base64"}
        )
        wrong = await client.post(
            "/v1/embeddings", {"model": "small", "input": "a", "encoding_format": "hex"}
        )
        vector = plain.json["data"][0]["embedding"]
        return vector, packed.json["data"][0]["embedding"], wrong.status

    vector, packed, status = Lab(tmp_path).run(use)
    raw = base64.b64decode(packed)
    assert list(struct.unpack(f"<{len(raw) // 4}f", raw)) == pytest.approx(vector)
    assert status == 400


def test_float32_is_written_as_go_writes_it() -> None:
    numbers = [0.1, -0.035866246, 1 / 3, 1.0, 0.0, 1e-7, 123456.79, 5.6e-5, -0.102776565]
    (text,) = asyncio.run(written([array("f", numbers)]))
    assert text == "[0.1,-0.035866246,0.33333334,1,0,1e-7,123456.79,0.000056,-0.102776565]"


def test_no_vector_without_numbers() -> None:
    with pytest.raises(ApiError, match="NaN or Inf"):
        normalised([1.0, math.nan])
    assert list(normalised([0.0, 0.0])) == [0.0, 0.0]
