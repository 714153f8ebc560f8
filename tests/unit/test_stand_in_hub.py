"""The stand-in Hub does what the real one does, and fails as it is told to."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from testbed.stand_in_hub import Faults, StandInHub

CONTENT = bytes(range(256)) * 4096  # 1 MiB: more than one chunk, and more than a socket's buffer
SHA256 = hashlib.sha256(CONTENT).hexdigest()
REPO = "acme/tiny-GGUF"
FILE = f"/{REPO}/resolve/main/tiny.gguf"
TIMEOUT_S = 20


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "acme" / "tiny-GGUF"
    (folder / "parts" / "deep").mkdir(parents=True)
    (folder / "tiny.gguf").write_bytes(CONTENT)
    (folder / "parts" / "a.gguf").write_bytes(b"part a")
    (folder / "parts" / "deep" / "b.gguf").write_bytes(b"part b")
    (folder / "README.md").write_bytes(b"hello")
    gated = tmp_path / "acme" / "gated"
    gated.mkdir()
    (gated / ".gated").touch()
    (gated / "secret.gguf").write_bytes(b"secret")
    (tmp_path / "outside.gguf").write_bytes(b"not in a repository")
    return tmp_path


@pytest.fixture
def hub(root: Path) -> Iterator[StandInHub]:
    with StandInHub(root, token="right") as running:
        yield running


def get(hub: StandInHub, path: str, **options: object) -> requests.Response:
    return requests.get(hub.url + path, timeout=TIMEOUT_S, **options)  # type: ignore[arg-type]


def test_a_file_is_a_redirect_to_another_host_with_the_hubs_headers(hub: StandInHub) -> None:
    for method in ("GET", "HEAD"):
        answer = requests.request(method, hub.url + FILE, allow_redirects=False, timeout=TIMEOUT_S)
        assert answer.status_code == 302
        assert answer.headers["X-Linked-Etag"] == f'"{SHA256}"'
        assert answer.headers["X-Linked-Size"] == str(len(CONTENT))
        assert answer.headers["Accept-Ranges"] == "bytes"
        commit = answer.headers["X-Repo-Commit"]
        assert len(commit) == 40
        assert int(commit, 16)
        there = urlsplit(answer.headers["Location"])
        assert there.hostname == "localhost"
        assert there.port == hub.cdn_port != hub.port


def test_the_redirect_leads_to_the_bytes(hub: StandInHub) -> None:
    answer = get(hub, FILE)
    assert answer.content == CONTENT
    assert answer.headers["ETag"] == f'"{SHA256}"'
    assert [(record.listener, record.status) for record in hub.requests] == [
        ("hub", 302),
        ("cdn", 200),
    ]


def test_the_cdn_wants_the_signed_address(hub: StandInHub) -> None:
    location = get(hub, FILE, allow_redirects=False).headers["Location"]
    assert requests.get(location.partition("?")[0], timeout=TIMEOUT_S).status_code == 403


def test_a_commit_is_a_revision_and_follows_the_content(hub: StandInHub, root: Path) -> None:
    commit = get(hub, f"/api/models/{REPO}").json()["sha"]
    assert get(hub, FILE.replace("main", commit)).content == CONTENT
    (root / REPO / "tiny.gguf").write_bytes(b"another model")
    answer = get(hub, FILE.replace("main", commit))
    assert answer.status_code == 404
    assert answer.headers["X-Error-Code"] == "RevisionNotFound"


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=10-19", 10, 20),
        ("bytes=1000000-", 1000000, len(CONTENT)),
        ("bytes=-5", len(CONTENT) - 5, len(CONTENT)),
        ("bytes=5-99999999", 5, len(CONTENT)),
    ],
)
def test_a_range_is_answered_with_just_that(
    hub: StandInHub, asked: str, start: int, stop: int
) -> None:
    answer = get(hub, FILE, headers={"Range": asked})
    assert answer.status_code == 206
    assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(CONTENT)}"
    assert answer.content == CONTENT[start:stop]
    assert hub.requests[-1].range == asked


def test_a_range_beyond_the_end_is_416(hub: StandInHub) -> None:
    answer = get(hub, FILE, headers={"Range": f"bytes={len(CONTENT)}-"})
    assert answer.status_code == 416
    assert answer.headers["Content-Range"] == f"bytes */{len(CONTENT)}"


def test_a_range_of_another_version_is_the_whole_file(hub: StandInHub) -> None:
    headers = {"Range": "bytes=10-", "If-Range": '"of another version"'}
    answer = get(hub, FILE, headers=headers)
    assert (answer.status_code, answer.content) == (200, CONTENT)


def test_a_text_file_comes_from_the_hub_without_sha256(hub: StandInHub) -> None:
    answer = get(hub, f"/{REPO}/resolve/main/README.md", allow_redirects=False)
    assert (answer.status_code, answer.content) == (200, b"hello")
    assert "X-Linked-Etag" not in answer.headers
    # `printf hello | git hash-object --stdin`
    assert answer.headers["ETag"] == '"b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0"'


@pytest.mark.parametrize(
    ("path", "authorized", "status", "code"),
    [
        (f"/{REPO}/resolve/main/missing.gguf", False, 404, "EntryNotFound"),
        (f"/{REPO}/resolve/main/..%2F..%2Foutside.gguf", False, 404, "EntryNotFound"),
        (f"/{REPO}/resolve/v9/tiny.gguf", False, 404, "RevisionNotFound"),
        ("/acme/missing/resolve/main/tiny.gguf", False, 401, "RepoNotFound"),
        ("/acme/missing/resolve/main/tiny.gguf", True, 404, "RepoNotFound"),
        ("/api/models/acme/missing/tree/main", True, 404, "RepoNotFound"),
        (f"/api/models/{REPO}/tree/main/nowhere", False, 404, "EntryNotFound"),
    ],
)
def test_what_is_not_there_is_refused_as_the_hub_does(
    hub: StandInHub, path: str, authorized: bool, status: int, code: str
) -> None:
    headers = {"Authorization": "Bearer right"} if authorized else {}
    answer = get(hub, path, headers=headers)
    assert (answer.status_code, answer.headers["X-Error-Code"]) == (status, code)
    assert answer.text == answer.headers["X-Error-Message"]


@pytest.mark.parametrize(
    ("token", "status"), [(None, 401), ("Bearer wrong", 403), ("Bearer right", 200)]
)
def test_a_gated_repository_wants_the_token(
    hub: StandInHub, token: str | None, status: int
) -> None:
    headers = {"Authorization": token} if token else {}
    answer = get(hub, "/acme/gated/resolve/main/secret.gguf", headers=headers)
    assert answer.status_code == status
    assert (answer.headers.get("X-Error-Code") == "GatedRepo") == (status != 200)


def test_a_token_that_reaches_the_cdn_is_noticed(hub: StandInHub) -> None:
    headers = {"Authorization": "Bearer right"}
    get(hub, FILE, headers=headers)  # requests drops the header on the way to another host
    assert [record.authorization for record in hub.requests] == [True, False]
    location = get(hub, FILE, allow_redirects=False).headers["Location"]
    requests.get(location, headers=headers, timeout=TIMEOUT_S)
    assert hub.requests[-1].listener == "cdn"
    assert hub.requests[-1].authorization


def test_the_tree_lists_files_with_size_and_sha256(hub: StandInHub) -> None:
    tree = {
        entry["path"]: entry
        for entry in get(hub, f"/api/models/{REPO}/tree/main?recursive=1").json()
    }
    assert sorted(tree) == [
        "README.md",
        "parts",
        "parts/a.gguf",
        "parts/deep",
        "parts/deep/b.gguf",
        "tiny.gguf",
    ]
    assert tree["parts"]["type"] == "directory"
    assert tree["tiny.gguf"]["type"] == "file"
    assert tree["tiny.gguf"]["size"] == len(CONTENT)
    assert tree["tiny.gguf"]["lfs"]["oid"] == SHA256
    assert tree["tiny.gguf"]["lfs"]["size"] == len(CONTENT)
    assert "lfs" not in tree["README.md"]


def test_the_tree_of_a_folder_is_flat_unless_asked(hub: StandInHub) -> None:
    answer = get(hub, f"/api/models/{REPO}/tree/main/parts")
    assert [entry["path"] for entry in answer.json()] == ["parts/a.gguf", "parts/deep"]


def test_a_cut_ends_the_body_early_and_only_as_often_as_told(hub: StandInHub) -> None:
    hub.faults = Faults(cut_after_bytes=100_000, cut_times=1)
    with (
        get(hub, FILE, stream=True) as answer,
        pytest.raises(requests.exceptions.ChunkedEncodingError),
    ):
        answer.content  # noqa: B018 (reads the body)
    assert answer.headers["Content-Length"] == str(len(CONTENT))
    assert get(hub, FILE).content == CONTENT


def test_corruption_flips_one_byte_and_keeps_the_stated_sha256(hub: StandInHub) -> None:
    hub.faults.corrupt_at = 70_000
    answer = get(hub, FILE)
    different = [at for at, byte in enumerate(answer.content) if byte != CONTENT[at]]
    assert different == [70_000]
    assert answer.history[0].headers["X-Linked-Etag"] == f'"{SHA256}"'
    part = get(hub, FILE, headers={"Range": "bytes=69999-70001"}).content
    assert part != CONTENT[69_999:70_002]


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("listener", ["hub", "cdn"])
def test_the_first_requests_fail_as_told(hub: StandInHub, listener: str, status: int) -> None:
    hub.faults = Faults(fail_status=status, fail_times=2, fail_on=listener, retry_after="7")
    answers = [get(hub, FILE) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [status, status, 200]
    assert answers[0].headers["Retry-After"] == "7"
    assert "Retry-After" not in answers[2].headers


def test_ranges_can_be_ignored(hub: StandInHub) -> None:
    hub.faults.ignore_range = True
    answer = get(hub, FILE, headers={"Range": "bytes=10-19"})
    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert "Accept-Ranges" not in answer.headers


def test_the_linked_size_can_lie(hub: StandInHub) -> None:
    hub.faults.linked_size_bytes = 12
    answer = get(hub, FILE)
    assert answer.history[0].headers["X-Linked-Size"] == "12"
    assert answer.content == CONTENT


def test_a_slow_answer_is_whole(hub: StandInHub) -> None:
    hub.faults.bytes_per_s = 20 * len(CONTENT)
    assert get(hub, FILE).content == CONTENT


def test_bytes_are_counted_and_connections_told_apart(hub: StandInHub) -> None:
    with requests.Session() as session:
        for _ in range(2):
            session.get(hub.url + FILE, headers={"Range": "bytes=0-999"}, timeout=TIMEOUT_S)
    # The server counts after the client has the last byte.
    for _ in range(500):
        if hub.bytes_served >= 2000:
            break
        time.sleep(0.01)
    assert hub.bytes_served == 2000
    assert len({record.client_port for record in hub.requests}) == 2  # the hub's and the CDN's
    hub.forget_requests()
    assert hub.bytes_served == 0


def test_more_connections_than_allowed_are_refused(hub: StandInHub) -> None:
    hub.faults = Faults(max_connections=1, busy_status=429)
    with requests.Session() as first:
        assert first.get(hub.url + FILE, timeout=TIMEOUT_S).status_code == 200
        assert get(hub, FILE).status_code == 429
        assert first.get(hub.url + FILE, timeout=TIMEOUT_S).status_code == 200


def test_a_signed_address_opens_so_often_and_a_new_one_again(hub: StandInHub) -> None:
    hub.faults = Faults(signed_requests=2)
    for _ in range(2):
        location = get(hub, FILE, allow_redirects=False).headers["Location"]
        answers = [requests.get(location, timeout=TIMEOUT_S).status_code for _ in range(3)]
        assert answers == [200, 200, 403]


def test_a_redirect_can_lead_to_itself(hub: StandInHub) -> None:
    hub.faults.redirect_loop = True
    with pytest.raises(requests.TooManyRedirects):
        get(hub, FILE)


def test_a_range_can_be_another_one(hub: StandInHub) -> None:
    hub.faults.shift_range_bytes = 7
    answer = get(hub, FILE, headers={"Range": "bytes=10-19"})
    assert answer.headers["Content-Range"] == f"bytes 17-19/{len(CONTENT)}"
    assert answer.content == CONTENT[17:20]


def test_the_etag_can_change_in_the_middle(hub: StandInHub) -> None:
    hub.faults.new_etag_after = 1
    tags = [get(hub, FILE).headers["ETag"] for _ in range(3)]
    assert tags[0] != tags[1] == tags[2]


def test_latency_and_bandwidth_are_kept(hub: StandInHub) -> None:
    hub.faults = Faults(latency_s=0.05, bytes_per_s=4 * len(CONTENT))
    began = time.monotonic()
    assert get(hub, FILE).content == CONTENT
    # Two answers with 50 ms each, and a quarter of a second but for the last piece's wait.
    assert time.monotonic() - began >= 0.1 + 0.25 - 0.02


def test_faults_and_requests_are_reached_by_http(hub: StandInHub) -> None:
    control = f"{hub.url}/_stand_in"
    changes = {"fail_status": 503, "fail_times": 1}
    changed = requests.patch(f"{control}/faults", json=changes, timeout=TIMEOUT_S)
    assert changed.json()["fail_times"] == 1
    assert get(hub, FILE).status_code == 503
    requests.patch(f"{control}/faults", json={"cut_after_bytes": 5}, timeout=TIMEOUT_S)
    requests.delete(f"{control}/faults", timeout=TIMEOUT_S)
    assert get(hub, FILE).content == CONTENT
    recorded = get(hub, "/_stand_in/requests").json()["requests"]
    assert [record["status"] for record in recorded] == [503, 302, 200]
    requests.delete(f"{control}/requests", timeout=TIMEOUT_S)
    assert hub.requests == []


def test_an_unknown_fault_is_refused_with_the_known_ones(hub: StandInHub) -> None:
    answer = requests.patch(
        f"{hub.url}/_stand_in/faults", json={"cut_afterbytes": 1}, timeout=TIMEOUT_S
    )
    assert answer.status_code == 400
    assert "cut_afterbytes" in answer.json()["error"]
    assert "cut_after_bytes" in answer.json()["error"]
    assert hub.faults == Faults()


def test_the_command_line_prints_its_address_and_stops_on_sigterm(
    root: Path, tmp_path: Path
) -> None:
    pid_file = tmp_path / "hub.pid"
    script = Path(__file__).parents[2] / "testbed" / "stand_in_hub.py"
    command = [sys.executable, str(script), "--root", str(root), "--pid-file", str(pid_file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert requests.get(url + FILE, timeout=TIMEOUT_S).content == CONTENT
        os.kill(int(pid_file.read_text()), signal.SIGTERM)
        assert process.wait(TIMEOUT_S) == 0
    assert not pid_file.exists()
