"""What the exporter answers, to whom, and to how many."""

import contextlib
import http.client
import json
import socket
import threading
import time

import pytest
from prometheus_client import CollectorRegistry

from lightllm_otel.exporter import http_server as server_module
from lightllm_otel.exporter.event_stream import MOST_LISTENERS, EventStream
from lightllm_otel.exporter.http_server import MetricsServer


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def event_stream():
    return EventStream()


@pytest.fixture
def server(event_stream):
    started = MetricsServer(CollectorRegistry(), "127.0.0.1", free_port(), event_stream)
    yield started
    started.close()


def ask(server, path="/", method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    answer.text = answer.read().decode()
    connection.close()
    return answer


@contextlib.contextmanager
def listener(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", "/events")
    answer = connection.getresponse()
    yield answer
    answer.close()
    connection.close()


def until(condition):
    for _ in range(200):
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_the_page_may_use_nothing_but_itself(server):
    policy = dict(part.split(" ", 1) for part in ask(server).headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert policy["script-src"].startswith("'sha256-")
    assert "unsafe" not in " ".join(policy.values())


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("path", ["/", "/metrics", "/events"])
def test_it_is_for_reading_only(server, method, path):
    answer = ask(server, path, method)
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")


def test_a_head_has_the_headers_and_no_body(server):
    answer = ask(server, "/", "HEAD")
    assert (answer.status, answer.text) == (200, "")
    assert int(answer.headers["Content-Length"]) == len(ask(server).text.encode())


@pytest.mark.parametrize("path", ["/", "/metrics", "/events", "/live.json"])
def test_a_foreign_name_that_points_here_is_turned_away(server, path):
    assert ask(server, path, Host="attacker.example").status == 421
    assert ask(server, path, Host="127.0.0.1.attacker.example:9464").status == 421


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:1", "[::1]:9464", "page.localhost"])
def test_whatever_name_this_machine_gives_itself_is_served(server, host):
    assert ask(server, Host=host).status == 200


def test_an_exporter_that_is_made_reachable_answers_to_any_name(event_stream):
    server = MetricsServer(CollectorRegistry(), "0.0.0.0", free_port(), event_stream)
    try:
        assert ask(server, "/metrics", Host="gpu-7.cluster.example:9464").status == 200
    finally:
        server.close()


def test_pages_of_other_sites_cannot_take_a_place(server):
    assert ask(server, "/events", Sec_Fetch_Site="cross-site").status == 403
    assert ask(server, "/", Sec_Fetch_Site="cross-site").status == 200  # a link may lead here


def test_a_listener_gets_each_text_when_it_comes(server, event_stream):
    with listener(server) as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
        assert until(lambda: event_stream.listeners == 1)
        event_stream.publish(b'{"number":1}')
        lines = [answer.readline() for _ in range(4)]
    assert b'data: {"number":1}\n' in lines


def test_there_are_so_many_listeners_and_no_more(server, event_stream):
    with contextlib.ExitStack() as stack:
        for _ in range(MOST_LISTENERS):
            stack.enter_context(listener(server))
        assert until(lambda: event_stream.listeners == MOST_LISTENERS)
        assert ask(server, "/events").status == 503
        assert ask(server, "/metrics").status == 200
    event_stream.publish(b"{}")  # writing is what shows that they are gone
    event_stream.publish(b"{}")

    def gone():
        event_stream.publish(b"{}")
        return event_stream.listeners == 0

    assert until(gone)


def test_a_listener_that_takes_nothing_is_let_go(server, event_stream, monkeypatch):
    monkeypatch.setattr(server_module._Handler, "timeout", 0.3)
    with socket.create_connection(("127.0.0.1", server.port)) as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert until(lambda: event_stream.listeners == 1)

        def gone():
            event_stream.publish(b"x" * (1 << 20))
            return event_stream.listeners == 0

        assert until(gone)


def test_listeners_are_told_when_the_server_has_ended(server, event_stream):
    with listener(server) as answer:
        assert until(lambda: event_stream.listeners == 1)
        event_stream.close()
        assert b"event: ended" in answer.read()


def test_an_exporter_that_reads_nothing_any_more_says_so(server, monkeypatch):
    monkeypatch.setattr(server_module, "SILENCE_SECONDS", 0.1)
    answer = ask(server, "/live.json")
    assert answer.status == 503
    assert "doctor" in answer.text


def test_the_frozen_page_has_the_data_in_it_and_asks_for_nothing(server, event_stream):
    def publish():
        assert until(lambda: event_stream.listeners == 1)
        event_stream.publish(b'{"kind":"live","name":"</script>"}')

    poll = threading.Thread(target=publish)
    poll.start()
    answer = ask(server, "/frozen.html")
    poll.join()
    embedded = answer.text.split('id="data">')[1].split("</script>")[0]
    assert json.loads(embedded) == {"kind": "live", "name": "</script>"}
    assert "connect-src" not in answer.headers["Content-Security-Policy"]


def test_a_request_that_fails_in_us_is_one_line_of_the_log(server, monkeypatch, caplog, capfd):
    monkeypatch.setattr(server_module, "choose_encoder", lambda accept: 1 / 0)
    with pytest.raises(http.client.RemoteDisconnected):
        ask(server, "/metrics")
    assert until(lambda: "ZeroDivisionError" in caplog.text)
    assert "Traceback" not in capfd.readouterr().err
