"""Finding the control server and the key for it, and every refusal as one sentence and an exit code."""

import contextlib
import socket
import threading

import pytest
from haltwire_cli.home import Endpoints, Home

KEY = "hwk_" + "k" * 43
LOCAL = "hwk_" + "l" * 43


@pytest.fixture
def home(tmp_path, control):
    """A data directory on which `up` runs: the fake control server is its."""
    home = Home(tmp_path / "data")
    with home.claimed():
        home.publish(Endpoints("http://127.0.0.1:1", control.url, "/ca.pem"))
        home.admin_key.write_text(LOCAL + "\n")
        yield home


def where(home: Home, **more: str) -> dict[str, str]:
    return {"HALTWIRE_DATA_DIR": str(home.path), **more}


@pytest.fixture(autouse=True)
def no_kills(control):
    control.will("GET", "/v1/mesh/kills", {"ok": True, "kills": []})


def test_the_local_data_directory_is_enough(haltwire, control, home):
    assert haltwire("kills", env=where(home)).output == "No orders are in force.\n"
    assert control.keys == [f"Bearer {LOCAL}"]


def test_a_key_of_ones_own_beats_the_local_one(haltwire, control, home, tmp_path):
    haltwire("kills", env=where(home, HALTWIRE_API_KEY=KEY))
    file = tmp_path / "key"
    file.write_text("hwk_" + "f" * 43)
    haltwire("kills", "--key-file", str(file), env=where(home, HALTWIRE_API_KEY=KEY))
    assert control.keys == [f"Bearer {KEY}", f"Bearer hwk_{'f' * 43}"]


def test_a_typed_directory_beats_the_environments_url(haltwire, control, home):
    env = {"HALTWIRE_URL": "http://127.0.0.1:1"}
    assert haltwire("kills", "--data-dir", str(home.path), env=env).exit_code == 0


def test_the_local_key_is_shown_to_no_other_server(haltwire, home):
    result = haltwire("kills", "--url", "http://127.0.0.1:9", env=where(home))
    assert result.exit_code == 1
    assert "there is no key for http://127.0.0.1:9" in result.stderr


def test_where_nothing_runs_it_says_what_to_do(haltwire, tmp_path):
    result = haltwire("kills", env={"HALTWIRE_DATA_DIR": str(tmp_path)})
    assert result.exit_code == 1
    assert (
        result.stderr
        == f"Error: no haltwire runs on {tmp_path}: start one with `haltwire up`, or name a control server with --url.\n"
    )


def test_a_server_that_is_not_there(haltwire):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    result = haltwire("kills", "--url", url)
    assert result.exit_code == 1
    assert f"no control server answers at {url} (Connection refused)" in result.stderr


@pytest.mark.parametrize(
    "answer", [b"SSH-2.0-OpenSSH_9.9\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n<ht>", b""]
)
def test_a_server_that_is_something_else(haltwire, answer):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def reply() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=reply)
        thread.start()
        result = haltwire("kills", "--url", f"http://127.0.0.1:{server.getsockname()[1]}")
        thread.join()
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1


def test_a_server_that_does_not_answer(haltwire, monkeypatch):
    monkeypatch.setattr("haltwire_cli.orders.ANSWER_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        result = haltwire("kill", "acme/prod/mailer", "--wait", "0", "--url", url)
    assert result.exit_code == 1
    assert "did not answer within 0.1 s: whether this was done is not known" in result.stderr


@pytest.mark.parametrize(
    ("status", "exit_code", "words"),
    [
        (400, 2, "it is so"),
        (401, 4, "does not know this key (it is so)"),
        (403, 4, "this key may not do that (it is so)"),
        (404, 3, "it is so"),
        (409, 1, "it is so"),
        (422, 2, "it is so"),
        (500, 1, "it is so"),
        (503, 1, "it is so"),
    ],
)
def test_each_refusal_has_its_exit_code(haltwire, control, status, exit_code, words):
    error = {"error": {"code": "x", "message": "it is so.", "retryable": False}}
    control.will("GET", "/v1/mesh/kills", error, status)
    result = haltwire("kills")
    assert result.exit_code == exit_code
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert KEY not in result.output


def test_what_a_server_says_cannot_steer_the_terminal(haltwire, control):
    control.will("GET", "/v1/mesh/kills", {"error": {"message": "\x1b[2J\nnew line"}}, 500)
    assert haltwire("kills").stderr == "Error: \\x1b[2J\\nnew line.\n"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://x", "is no URL such as"),
        ("localhost:8081", "is no URL such as"),
        ("http://", "is no URL such as"),
        ("http://x:port", "is no URL"),
        ("http://me:secret@x", "the key goes into a file"),
        ("http://x?y", "the key goes into a file"),
    ],
)
def test_what_is_no_url_is_a_usage_error(haltwire, url, words):
    result = haltwire("kills", "--url", url)
    assert result.exit_code == 2
    assert words in result.stderr
    assert "secret" not in result.stderr


def test_a_key_in_clear_text_over_a_network_is_warned_of(haltwire):
    result = haltwire("kills", "--url", "http://no-such-host.invalid")
    assert "the key travels unencrypted to no-such-host.invalid" in result.stderr


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("hwa_" + "a" * 43, "holds an agent's token"),
        ("hwk_\nX-Evil: 1", "holds no key"),
        ("ключ", "holds no key"),
        (" ", "holds no key"),
    ],
)
def test_what_is_no_operators_key_is_not_sent(haltwire, control, key, words):
    result = haltwire("kills", env={"HALTWIRE_URL": control.url, "HALTWIRE_API_KEY": key})
    assert result.exit_code == 4
    assert words in result.stderr
    assert key.strip() == "" or key not in result.stderr
    assert control.calls == []


def test_an_unreadable_key_file_is_named(haltwire, home):
    home.admin_key.unlink()
    result = haltwire("kills", env=where(home))
    assert result.exit_code == 4
    assert f"{home.admin_key} cannot be read (No such file or directory)" in result.stderr


def test_json_is_the_servers_own(haltwire, control):
    control.will("GET", "/v1/mesh/kills", b'{"ok" :true,"kills":[ ]}\n')
    assert haltwire("kills", "--json").stdout == '{"ok" :true,"kills":[ ]}\n'


def test_another_users_directory_is_called_so_and_a_url_with_a_key_goes_on(
    haltwire, control, home, monkeypatch
):
    def refuse(_: Home) -> bool:
        raise PermissionError

    monkeypatch.setattr(Home, "_is_claimed", refuse)
    result = haltwire("kills", env=where(home))
    assert result.exit_code == 4
    assert f"{home.path} is another user's: ask for a key" in result.stderr
    assert haltwire("kills").exit_code == 0


class Flaky:
    """A control server that ends the first connections after having read their requests."""

    def __init__(self, drops: int) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self.requests: list[bytes] = []
        self._drops = drops
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(5)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                with connection:
                    said = connection.recv(65536)
                    if not said:
                        continue  # whoever asks whether this speaks TLS
                    while b"}" not in said and said.startswith(b"POST"):
                        said += connection.recv(65536)
                    if said[:1] == b"\x16":
                        continue
                    self.requests.append(said)
                    if len(self.requests) > self._drops:
                        body = b'{"ok": true, "kill_id": "K0123456789AB", "note": {"at": "now"}}'
                        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n"
                        connection.sendall(head.encode() + body)


def key_of(request: bytes) -> str:
    return next(x for x in request.decode().split("\r\n") if x.startswith("Idempotency-Key: "))


def test_a_write_whose_answer_was_lost_is_asked_again_under_the_same_key(haltwire):
    with Flaky(drops=1) as server:
        result = haltwire("note", "K0123456789AB", "why", "--url", server.url)
        assert result.exit_code == 0, result.stderr
        first, second = map(key_of, server.requests)
        assert first == second
        haltwire("note", "K0123456789AB", "why", "--url", server.url)
        assert key_of(server.requests[2]) != first


def test_a_write_whose_answer_is_lost_twice_is_not_known_to_be_done(haltwire):
    with Flaky(drops=2) as server:
        result = haltwire("note", "K0123456789AB", "why", "--url", server.url)
        assert result.exit_code == 1
        assert "whether this was done is not known" in result.stderr
        assert len(server.requests) == 2


def test_a_question_bears_no_key(haltwire):
    with Flaky(drops=1) as server:
        assert haltwire("kills", "--url", server.url).exit_code == 1
        assert len(server.requests) == 1
        assert b"Idempotency-Key" not in server.requests[0]
