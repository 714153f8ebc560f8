"""The `source` of a wish is understood, or refused with what would be accepted."""

from __future__ import annotations

import pytest
from ansible_collections.kloros.llm.plugins.module_utils.model_source import (
    Source,
    SourceError,
    check_endpoint,
    check_file_name,
    default_file,
    parse_source,
    resolve_url,
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


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b.gguf", "a\nb", "m.gguf.json"])
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
