"""The page over real HTTP: what it takes, what it refuses, and that nothing that is sent ends up in a file."""

import json
import tempfile
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import pytest

pytest.importorskip("gradio", reason="the page needs gradio: `pip install 'peft-space[demo]'`")

import gradio as gr

from peft_space.ui import build_page, serve
from peft_space.ui.picture import data_url

OPENER = build_opener(ProxyHandler({}))
QUESTION = "What is this creature called?"


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """Every folder that a file might be written to without being asked for; returns what lies there."""
    root = tmp_path_factory.mktemp("disk")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("temp", "gradio", "here"):
            (root / name).mkdir()
        patch.setattr(tempfile, "tempdir", str(root / "temp"))
        patch.setenv("TMPDIR", str(root / "temp"))
        patch.setenv("GRADIO_TEMP_DIR", str(root / "gradio"))
        patch.chdir(root / "here")
        yield lambda: [path for path in root.rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def page(workbench, disk):
    page = serve(workbench, max_upload_mb=0.1, wait=False)
    yield page
    page.close()


def send(page, path, data=None, headers=(), method=None):
    """Status, headers and body of the answer."""
    request = Request(page.local_url.rstrip("/") + path, data, dict(headers), method=method)
    try:
        with OPENER.open(request, timeout=60) as answer:
            return answer.status, answer.headers, answer.read()
    except HTTPError as error:
        return error.code, error.headers, error.read()


def multipart(name=b"a.png", data=b"x" * 100):
    head = b'--B\r\nContent-Disposition: form-data; name="files"; filename="' + name + b'"\r\n\r\n'
    return head + data + b"\r\n--B--\r\n", {"Content-Type": "multipart/form-data; boundary=B"}


def join(page, data, session="one"):
    number = next(n for n, one in enumerate(page.config["dependencies"]) if len(one["inputs"]) == 4)
    body = json.dumps({"data": data, "fn_index": number, "session_hash": session}).encode()
    return send(page, "/gradio_api/queue/join", body, {"Content-Type": "application/json"})


def ask(page, *data, session):
    """What the page shows in answer."""
    status, _, body = join(page, list(data), session)
    assert status == 200, body
    _, _, told = send(page, f"/gradio_api/queue/data?session_hash={session}")
    events = [json.loads(line.removeprefix("data: ")) for line in told.decode().splitlines() if line]
    return next(one for one in events if one["msg"] == "process_completed")["output"]["data"][0]


def test_a_question_with_a_picture_is_answered_and_leaves_no_file(page, workbench, picture, disk):
    files = disk()
    before, after = workbench.ask("narril", 1.0, QUESTION, picture)
    html = ask(page, "narril", 1.0, QUESTION, data_url(picture), session="picture")
    assert before != after and before in html and after in html
    assert "The same answer." in ask(page, "narril", 0, QUESTION, data_url(picture), session="dial")
    assert "The answer has changed." in ask(page, "narril", 1, "Where does the narril live?", None, session="text")
    assert disk() == files


def test_what_is_wrong_is_told(page, disk):
    files = disk()
    assert "can&#39;t be read" in ask(page, "narril", 1, QUESTION, "data:image/png;base64,AAAA", session="broken")
    assert ask(page, "narril", 1, " ", None, session="nothing") == ""
    assert disk() == files


def test_an_upload_is_refused_and_leaves_no_file_where_gradio_alone_would_leave_one(page, disk):
    files = disk()
    for path in ("/gradio_api/upload", "/gradio_api/upload/", "/gradio_api/upload?upload_id=1", "/gradio_api//upload"):
        status, _, body = send(page, path, *multipart())
        assert (status, body) == (403, b"This page takes questions and no files.")
    assert send(page, "/gradio_api/process_recording", *multipart())[0] == 403
    assert disk() == files
    with gr.Blocks(analytics_enabled=False) as plain:
        gr.Image()
    plain.launch(prevent_thread_lock=True, quiet=True)
    try:
        assert send(plain, "/gradio_api/upload", *multipart())[0] == 200
        assert len(disk()) == len(files) + 1
    finally:
        plain.close()


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
def test_nothing_else_can_be_sent(page, method):
    assert send(page, "/", b"", method=method)[0] == 403


@pytest.mark.parametrize(
    "path", ["/gradio_api/run/ask", "/gradio_api/call/ask", "/gradio_api/component_server", "/login"]
)
def test_other_ways_in_are_closed(page, path):
    assert send(page, path, b'{"data": []}', {"Content-Type": "application/json"})[0] == 403


def test_an_input_that_gradio_would_fetch_is_refused(page, disk):
    files = disk()
    meta = {"_type": "gradio.FileData"}
    for path in ("http://127.0.0.1:1/a.png", "/etc/passwd"):
        for sent in ({"path": path, "meta": meta}, [{"path": path, "meta": meta}]):
            status, _, body = join(page, ["narril", 1.0, QUESTION, sent])
            assert (status, body) == (400, b"The inputs must be texts and numbers.")
    for body in (b"{", b"[]", b"{}", b'{"data": {}}', b'{"data":' + b"[" * 40000):
        assert send(page, "/gradio_api/queue/join", body, {"Content-Type": "application/json"})[0] == 400
    assert disk() == files


def test_a_large_picture_is_refused(page, disk):
    files = disk()
    status, _, body = join(page, ["narril", 1.0, QUESTION, "data:image/png;base64," + "A" * 300_000])
    assert (status, body) == (413, b"The picture is too large.")
    # below what a request may have in all, and above what a picture may
    html = ask(page, "narril", 1.0, QUESTION, "data:image/png;base64," + "A" * 160_000, session="large")
    assert "at most 0.1 MB; got 0.1 MB" in html and disk() == files


def test_a_browser_may_talk_to_the_page_alone(page):
    status, headers, body = send(page, "/")
    policy = headers["content-security-policy"]
    assert status == 200 and policy.startswith("default-src 'self';") and "http" not in policy
    config = page.config
    assert config["analytics_enabled"] is False and not page.run_history and page.share_url is None
    assert b"googleapis" not in body and all(one["api_visibility"] != "public" for one in config["dependencies"])


def test_the_page_listens_at_the_loopback_under_its_own_name(page, monkeypatch):
    assert page.server_name == "127.0.0.1"
    assert send(page, "/config", headers={"Host": "evil.example"})[0] == 400


def test_in_a_space_it_listens_everywhere(workbench, monkeypatch):
    monkeypatch.setenv("SPACE_ID", "jane/erased")
    page = serve(workbench, wait=False)
    try:
        assert page.server_name == "0.0.0.0"
        assert send(page, "/config", headers={"Host": "jane-erased.hf.space"})[0] == 200
    finally:
        page.close()


def test_a_port_that_is_taken(page, workbench):
    with pytest.raises(OSError, match=str(page.server_port)):
        serve(workbench, port=page.server_port, wait=False)


def test_a_limit_that_is_none(workbench):
    with pytest.raises(ValueError, match="`max_upload_mb` must be above 0; got 0"):
        build_page(workbench, max_upload_mb=0)


def test_gradio_leaves_nothing_beside_the_package():
    import peft_space.ui

    names = {path.suffix for path in Path(peft_space.ui.__file__).parent.iterdir() if path.is_file()}
    assert names == {".py", ".js", ".html", ".css", ".jinja"}
