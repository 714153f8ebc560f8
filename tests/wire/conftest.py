"""What all wire tests share: the models, and the llama-servers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.wire.house import House, running_house
from tests.wire.rig import Store, chat_options, embed_options, llama_server


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The models' files."""
    store = Store(tmp_path_factory.mktemp("wire") / "models")
    store.fill()
    return store


@pytest.fixture(scope="session")
def chat_engine(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a llama-server that generates."""
    with llama_server(tmp_path_factory.mktemp("chat-engine"), *chat_options(store)) as url:
        yield url


@pytest.fixture(scope="session")
def embed_engine(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of one that embeds."""
    with llama_server(tmp_path_factory.mktemp("embed-engine"), *embed_options(store)) as url:
        yield url


@pytest.fixture(scope="session")
def house(
    store: Store, chat_engine: str, embed_engine: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[House]:
    """The gateway that clients ask."""
    folder = tmp_path_factory.mktemp("house")
    with running_house(store, chat_engine, embed_engine, folder) as running:
        yield running
