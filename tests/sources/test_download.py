import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.errors import InputError
from pipeline.sources import download as module
from pipeline.sources.download import download, ensure_free

BODY = os.urandom(300_000)
MD5 = hashlib.md5(BODY).hexdigest()


@pytest.fixture(autouse=True)
def pauses(monkeypatch) -> list[float]:
    """The pauses asked for between retries, instead of the pauses themselves."""
    asked = []
    monkeypatch.setattr(module.time, "sleep", asked.append)
    return asked


@pytest.fixture
def served(server):
    (server.root / "a.bin").write_bytes(BODY)
    return server


@pytest.fixture
def fetch(served, tmp_path):
    def fetch(**options):
        return download(
            f"{served.url}/a.bin", tmp_path / "here" / "a.bin", progress=False, **options
        )

    return fetch


def nothing_under_the_final_name(tmp_path) -> bool:
    return not (tmp_path / "here" / "a.bin").exists()


def test_a_whole_download_leaves_the_file_and_nothing_else(fetch):
    path = fetch(size=len(BODY), md5=MD5)
    assert path.read_bytes() == BODY
    assert [p.name for p in path.parent.iterdir() if not p.name.endswith(".lock")] == ["a.bin"]


def test_a_verified_file_is_not_asked_for_again_and_a_stale_one_is(fetch, served):
    path = fetch(md5=MD5)
    fetch(md5=MD5)
    assert len(served.asked("a.bin")) == 1
    path.write_bytes(b"stale")
    assert fetch(md5=MD5).read_bytes() == BODY


@pytest.mark.parametrize("after", [0, 1, 65_536, 299_999])
def test_a_cut_connection_is_resumed_at_the_byte_it_broke(fetch, served, after):
    served.fail("a.bin", cut_after=after, times=1)
    assert fetch().read_bytes() == BODY
    assert served.asked("a.bin")[1].get("Range") == (f"bytes={after}-" if after else None)


def test_cuts_that_bring_new_bytes_do_not_use_up_the_retries(fetch, served):
    served.fail("a.bin", cut_after=20_000)
    assert fetch(retries=1).read_bytes() == BODY
    assert len(served.asked("a.bin")) == len(BODY) // 20_000


def test_a_later_call_goes_on_where_an_earlier_one_gave_up(fetch, served, tmp_path):
    served.fail("a.bin", cut_after=1000)
    with pytest.raises(
        InputError, match="gave up after 1 failures.*1000 bytes are kept in .*a.bin.part"
    ):
        fetch(retries=0)
    assert nothing_under_the_final_name(tmp_path)
    served.fail("a.bin")
    assert fetch().read_bytes() == BODY
    assert served.asked("a.bin")[-1]["Range"] == "bytes=1000-"


def test_killed_between_the_last_byte_and_the_rename_asks_for_nothing(
    fetch, served, tmp_path, monkeypatch
):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "_difference", killed)
        fetch()
    assert nothing_under_the_final_name(tmp_path)
    assert fetch().read_bytes() == BODY
    assert len(served.asked("a.bin")) == 1


def test_a_server_that_ignores_range_starts_the_file_again(fetch, served):
    served.fail("a.bin", cut_after=1000)
    with pytest.raises(InputError):
        fetch(retries=0)
    served.fail("a.bin", ignore_range=True)
    assert fetch(md5=MD5).read_bytes() == BODY
    assert served.asked("a.bin")[-1]["Range"] == "bytes=1000-"


def test_a_server_that_ignores_range_and_always_cuts_ends_in_an_error(fetch, served, tmp_path):
    served.fail("a.bin", ignore_range=True, cut_after=1000)
    with pytest.raises(InputError, match="gave up after 3 failures"):
        fetch(retries=2)
    assert nothing_under_the_final_name(tmp_path)
    assert len(served.asked("a.bin")) == 3


def test_a_wrong_content_range_is_not_glued(fetch, served):
    served.fail("a.bin", cut_after=1000)
    with pytest.raises(InputError):
        fetch(retries=0)
    served.fail("a.bin", wrong_range=True, times=1)
    assert fetch().read_bytes() == BODY
    assert "Range" not in served.asked("a.bin")[-1]


@pytest.mark.parametrize("ignore_if_range", [False, True])
def test_a_file_that_changed_meanwhile_is_not_glued(fetch, served, ignore_if_range):
    served.fail("a.bin", cut_after=1000)
    with pytest.raises(InputError):
        fetch(retries=0)
    changed = os.urandom(len(BODY))
    (served.root / "a.bin").write_bytes(changed)
    served.fail("a.bin", ignore_if_range=ignore_if_range)
    assert fetch().read_bytes() == changed
    assert served.asked("a.bin")[1]["If-Range"] == f'"{MD5}"'


def test_a_file_that_became_shorter_than_the_part_starts_again(fetch, served):
    served.fail("a.bin", cut_after=1000)
    with pytest.raises(InputError):
        fetch(retries=0)
    (served.root / "a.bin").write_bytes(b"short")
    served.fail("a.bin", ignore_if_range=True)  # answers 416
    assert fetch().read_bytes() == b"short"


@pytest.mark.parametrize(
    ("md5", "asked"), [(None, None), (MD5, "bytes=1000-")], ids=["without", "with"]
)
def test_without_a_validator_only_a_checksum_allows_to_resume(fetch, served, md5, asked):
    served.fail("a.bin", cut_after=1000, no_validator=True)
    with pytest.raises(InputError):
        fetch(retries=0)
    served.fail("a.bin", no_validator=True)
    assert fetch(md5=md5).read_bytes() == BODY
    assert served.asked("a.bin")[-1].get("Range") == asked


def test_without_a_length_the_expected_size_tells_a_cut(fetch, served):
    served.fail("a.bin", no_length=True, cut_after=1000, times=1)
    assert fetch(size=len(BODY)).read_bytes() == BODY


def test_the_pause_doubles_and_the_server_may_ask_for_more(fetch, served, pauses):
    served.fail("a.bin", status=503, times=3)
    assert fetch().read_bytes() == BODY
    assert pauses == [1, 2, 4]
    served.fail("a.bin", status=429, retry_after="7", times=1)
    (served.root / "a.bin").write_bytes(b"new")
    assert fetch(size=3).read_bytes() == b"new"
    assert pauses[3:] == [7]
    served.fail("a.bin", status=429, retry_after="86400", times=1)
    (served.root / "a.bin").write_bytes(b"newer")
    assert fetch(size=5).read_bytes() == b"newer"
    assert pauses[4:] == [60]  # not a day


def test_no_answer_at_all_is_retried_and_then_said(tmp_path, pauses):
    with pytest.raises(InputError, match="gave up after 3 failures in a row .*Connection refused"):
        download("http://127.0.0.1:9/a.bin", tmp_path / "a.bin", retries=2)
    assert pauses == [1, 2]


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ({"status": 404}, "HTTP 404 Not Found; check the URL"),
        ({"status": 403}, "HTTP 403 Forbidden, the server lets nobody in without leave; sign in"),
        ({"html": True}, "a web page instead of the file"),
        ({"content": b"\n<html><body>proxy</body></html>"}, "a web page instead of the file"),
        ({"content": b"wrong size"}, "10 bytes offered, 300000 expected"),
        ({"content": bytes(300_000)}, "the md5 is .* where .* is expected"),
    ],
)
def test_a_wrong_answer_is_an_error_at_once(fetch, served, tmp_path, pauses, fault, sentence):
    served.fail("a.bin", **fault)
    with pytest.raises(InputError, match=sentence):
        fetch(size=len(BODY), md5=MD5)
    assert nothing_under_the_final_name(tmp_path)
    assert len(served.asked("a.bin")) == 1 and not pauses
    served.fail("a.bin")
    assert fetch(size=len(BODY), md5=MD5).read_bytes() == BODY


@pytest.mark.parametrize("fault", [{"status": 404}, {"html": True}])
def test_a_wrong_answer_does_not_cost_the_part_that_is_here(fetch, served, fault):
    served.fail("a.bin", cut_after=1000)
    with pytest.raises(InputError):
        fetch(retries=0)
    served.fail("a.bin", **fault)
    with pytest.raises(InputError):
        fetch()
    served.fail("a.bin")
    assert fetch().read_bytes() == BODY
    assert served.asked("a.bin")[-1]["Range"] == "bytes=1000-"


def test_two_that_want_the_same_file_fetch_it_once(fetch, served):
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: fetch(md5=MD5), range(4)))
    assert {path.read_bytes() for path in paths} == {BODY}
    assert len(served.asked("a.bin")) == 1


def test_a_disk_too_small_is_noticed_before_the_first_byte(fetch, tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 200_000}))
    with pytest.raises(InputError, match="needs 0.00 GB and the disk has 0.00 GB free; make space"):
        fetch()
    assert nothing_under_the_final_name(tmp_path)
    ensure_free(tmp_path / "not" / "there" / "yet", 200_000, "a test")


def test_only_http_and_file_urls(tmp_path):
    (tmp_path / "a file").write_bytes(BODY)
    path = download((tmp_path / "a file").as_uri(), tmp_path / "copy", size=len(BODY), md5=MD5)
    assert path.read_bytes() == BODY
    with pytest.raises(InputError, match="no such file"):
        download((tmp_path / "other").as_uri(), tmp_path / "copy2")
    for url in ("ftp://example.org/a", "a.bin", "javascript:1"):
        with pytest.raises(InputError, match="only http, https and file URLs"):
            download(url, tmp_path / "a.bin")
