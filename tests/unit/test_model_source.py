"""The `source` of a wish is understood, or refused with what would be accepted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from ansible_collections.kloros.llm.plugins.module_utils.model_files import (
    Companion,
    wanted_files,
)
from ansible_collections.kloros.llm.plugins.module_utils.model_source import (
    Source,
    SourceError,
    all_shards,
    check_endpoint,
    check_file_name,
    default_file,
    is_commit,
    parse_source,
    resolve_url,
    shard_of,
)
from hypothesis import given
from hypothesis import strategies as st

HUB = "https://hub.example"


@pytest.mark.parametrize(
    ("text", "source", "file"),
    [
        ("hf://o/r/m.gguf", Source("hf", "m.gguf", "o/r", "main"), "m.gguf"),
        ("hf://o/r/a/b/m.gguf@v1", Source("hf", "a/b/m.gguf", "o/r", "v1"), "m.gguf"),
        ("hf://o/r/m.gguf@refs/pr/1", Source("hf", "m.gguf", "o/r", "refs/pr/1"), "m.gguf"),
        ("hf://o/r/a@b.gguf@main", Source("hf", "a@b.gguf", "o/r", "main"), "a@b.gguf"),
        ("https://h/a%20b/m.gguf?x=1", Source("url", "https://h/a%20b/m.gguf?x=1"), "m.gguf"),
        ("http://h:81/m%20x.gguf", Source("url", "http://h:81/m%20x.gguf"), "m x.gguf"),
        ("https://h/", Source("url", "https://h/"), ""),
        ("file:/srv/m.gguf", Source("file", "/srv/m.gguf"), "m.gguf"),
        ("file:///srv/m x.gguf", Source("file", "/srv/m x.gguf"), "m x.gguf"),
    ],
)
def test_accepted(text: str, source: Source, file: str) -> None:
    assert parse_source(text) == source
    assert default_file(source) == file


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no scheme"),
        ("m.gguf", "no scheme"),
        (" hf://o/r/m.gguf", "blanks"),
        ("hf://o/r/m\n.gguf", "control characters"),
        ("s3://bucket/m.gguf", "unknown scheme 's3:'"),
        ("hf:o/r/m.gguf", "lacks '//'"),
        ("hf://o/r", "does not end in the path of a .gguf file"),
        ("hf://o/m.gguf", "does not end in the path of a .gguf file"),
        ("hf://o/r/README.md", "does not end in the path of a .gguf file"),
        ("hf://o/r/../m.gguf", "does not end in the path of a .gguf file"),
        ("hf:///r/m.gguf", "no OWNER/REPOSITORY"),
        ("hf://o /r/m.gguf", "no OWNER/REPOSITORY"),
        ("hf://o/r/m.gguf@", "impossible revision ''"),
        ("hf://o/r/m.gguf@a b", "impossible revision 'a b'"),
        ("https:///m.gguf", "is not a URL"),
        ("https://h:port/m.gguf", "is not a URL"),
        ("https://h/m x.gguf", "is not a URL"),
        ("https://h/m.gguf#part", "'#'"),
        ("file:m.gguf", "not an absolute path"),
        ("file://host/m.gguf", "not an absolute path"),
        ("file:/srv/", "not an absolute path"),
        ("ollama://llama3:8b", "not supported yet"),
    ],
)
def test_refused_with_the_accepted_forms(text: str, why: str) -> None:
    with pytest.raises(SourceError) as caught:
        parse_source(text)
    message = str(caught.value)
    assert why in message
    assert all(form in message for form in ("hf://OWNER/", "https://HOST/", "file:/ABSOLUTE/"))


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(SourceError) as caught:
        parse_source("https://user:canary@h/m.gguf")
    assert "canary" not in str(caught.value)


def test_urls_are_quoted_and_pinned() -> None:
    source = parse_source("hf://o/r/sub dir/m+1.gguf@refs/pr/1".replace(" ", "%"))
    assert resolve_url(source, HUB + "/") == f"{HUB}/o/r/resolve/refs%2Fpr%2F1/sub%25dir/m%2B1.gguf"
    assert resolve_url(source, HUB, "c0ffee").startswith(f"{HUB}/o/r/resolve/c0ffee/")
    assert resolve_url(parse_source("https://h/x?y=1"), HUB) == "https://h/x?y=1"
    with pytest.raises(SourceError):
        resolve_url(parse_source("file:/m.gguf"), HUB)


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a/b.gguf", "a\nb", "m.gguf.json", "versions"]
)
def test_file_names_that_would_clash_are_refused(name: str) -> None:
    with pytest.raises(SourceError):
        check_file_name(name)


def test_endpoints() -> None:
    assert check_endpoint("http://mirror:8080/hf/") == "http://mirror:8080/hf"
    for wrong in ("mirror", "ftp://mirror", "https://u:p@mirror", "https://mirror?x=1"):
        with pytest.raises(SourceError, match="hf_endpoint"):
            check_endpoint(wrong)


REPO_PART = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
SEGMENT = st.text(
    st.characters(exclude_characters=" ?#\\/", exclude_categories=("Cc", "Cs")),
    min_size=1,
    max_size=20,
).filter(lambda text: text == text.strip() and text not in (".", ".."))
PATH = st.lists(SEGMENT, max_size=3).map(lambda parts: "/".join([*parts, "m.gguf"]))
REVISION = st.lists(SEGMENT.filter(lambda text: "@" not in text), min_size=1, max_size=3)


@given(REPO_PART, REPO_PART, PATH, REVISION.map("/".join))
def test_hub_sources_survive_a_round_trip(owner: str, repo: str, path: str, revision: str) -> None:
    source = parse_source(f"hf://{owner}/{repo}/{path}@{revision}")
    assert source == Source("hf", path, f"{owner}/{repo}", revision)
    assert parse_source(str(source)) == source


@given(PATH)
def test_file_sources_survive_a_round_trip(path: str) -> None:
    source = parse_source(f"file:///{path}")
    assert source == Source("file", f"/{path}")
    assert parse_source(str(source)) == source


@given(st.text(max_size=60))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for prefix in ("", "hf://", "https://", "file:"):
        try:
            source = parse_source(prefix + text)
        except SourceError:
            continue
        assert parse_source(str(source)) == source


SPLIT = "m-00001-of-00003.gguf"


@pytest.mark.parametrize(
    ("text", "second"),
    [
        (f"hf://o/r/q4/{SPLIT}@v1", "hf://o/r/q4/m-00002-of-00003.gguf@v1"),
        (f"file:/srv/{SPLIT}", "file:/srv/m-00002-of-00003.gguf"),
        (f"https://h/h/{SPLIT}", "https://h/h/m-00002-of-00003.gguf"),
        (f"https://h/{SPLIT}?a=/b", "https://h/m-00002-of-00003.gguf?a=/b"),
    ],
)
def test_the_first_shard_stands_for_all(text: str, second: str) -> None:
    sources = all_shards(parse_source(text))
    assert str(sources[0]) == text
    assert str(sources[1]) == second
    assert len(sources) == 3
    with pytest.raises(SourceError, match=r"name its first part, m-00001-of-00003\.gguf"):
        all_shards(parse_source(second))


def test_a_whole_model_has_one_source() -> None:
    for text in ("hf://o/r/m.gguf", "hf://o/r/m-1-of-3.gguf", "https://h/"):
        assert all_shards(parse_source(text)) == (parse_source(text),)
    only = parse_source("hf://o/r/m-00001-of-00001.gguf")
    assert all_shards(only) == (only,)


@pytest.mark.parametrize("name", ["m-00000-of-00003", "m-00004-of-00003", "m-00001-of-01001"])
def test_numbers_that_cannot_be(name: str) -> None:
    with pytest.raises(SourceError, match="which cannot be"):
        shard_of(f"{name}.gguf")


def test_commits_are_told_from_branches() -> None:
    assert is_commit("0123456789abcdef" * 2 + "01234567")
    assert not any(is_commit(text) for text in ("main", "v1", "0123456", "refs/pr/1"))


def files_of(source: str, *args: Any, **companions: Any) -> list[tuple[str, str]]:
    return [(one.role, one.file) for one in wanted_files(parse_source(source), *args, **companions)]


def test_the_files_of_a_model() -> None:
    eyes = Companion(parse_source("hf://x/y/mmproj-F16.gguf"))
    named = Companion(parse_source("hf://x/y/a.gguf"), file="own.gguf")
    assert files_of(f"hf://o/r/{SPLIT}", None, mmproj=eyes, draft=eyes, lora=[eyes, named]) == [
        ("model", "m-00001-of-00003.gguf"),
        ("model", "m-00002-of-00003.gguf"),
        ("model", "m-00003-of-00003.gguf"),
        ("mmproj", "m.mmproj.gguf"),
        ("draft", "m.draft.gguf"),
        ("lora", "m.lora-1.gguf"),
        ("lora", "own.gguf"),
    ]
    assert files_of("hf://o/r/m.gguf", "n.gguf", mmproj=eyes) == [
        ("model", "n.gguf"),
        ("mmproj", "n.mmproj.gguf"),
    ]
    assert files_of(f"hf://o/r/{SPLIT}", "n-00001-of-00003.gguf")[2] == (
        "model",
        "n-00003-of-00003.gguf",
    )


@pytest.mark.parametrize(
    ("source", "file", "sha256", "companion", "said"),
    [
        (SPLIT, "n.gguf", (), None, "does not fit a model of 3 files.*NAME-00001-of-00003"),
        (SPLIT, "n-00001-of-00002.gguf", (), None, "does not fit"),
        (SPLIT, "n-00002-of-00003.gguf", (), None, "does not fit"),
        ("m.gguf", "n-00001-of-00002.gguf", (), None, "says that the model is split"),
        (SPLIT, None, ["00" * 32], None, "has 3 files, but 1 sha256 are given"),
        ("m.gguf", None, ["00" * 32] * 2, None, "has one file, but 2 sha256 are given"),
        ("m.gguf", None, (), Companion(parse_source(f"hf://o/r/{SPLIT}")), "must be one file"),
        (
            "m.gguf",
            None,
            (),
            Companion(parse_source("hf://o/r/x.gguf"), file="m.gguf"),
            "would be called 'm.gguf'",
        ),
        (
            "m.gguf",
            None,
            (),
            Companion(parse_source("hf://o/r/x.gguf"), file="../m.gguf"),
            "without a slash",
        ),
    ],
)
def test_files_that_cannot_be(
    source: str, file: str | None, sha256: Sequence[str], companion: Companion | None, said: str
) -> None:
    with pytest.raises(SourceError, match=said):
        wanted_files(parse_source(f"hf://o/r/{source}"), file, sha256, mmproj=companion)
