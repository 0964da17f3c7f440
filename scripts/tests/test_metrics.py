"""Tests of what the metrics test is made of, without any of the processes that it runs."""

import http.server
import json
import pathlib
import socket
import sys
import threading
import unittest
import xml.etree.ElementTree

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import charts
import dashboards
import prometheus
from nats_wire import Connection
from services import Failed


class FasterRules(unittest.TestCase):
    def test_times_are_divided_and_nothing_else(self):
        rules = "expr: rate(a[5m]) > 5 unless b offset 1h\n        for: 2m\n        x: max_over_time(a:rate5m[90s]) / 60\n"
        expected = "expr: rate(a[15000ms]) > 5 unless b offset 180000ms\n        for: 6000ms\n        x: max_over_time(a:rate5m[4500ms]) / 60\n"
        self.assertEqual(prometheus.faster(rules, 20), expected)

    def test_every_time_of_the_shipped_rules_is_divided(self):
        rules = dashboards.RULES.read_text()
        divided = prometheus.faster(rules, 20)
        self.assertEqual(len(rules.split("\n")), len(divided.split("\n")))
        for before, after in zip(dashboards.blocks(rules), dashboards.blocks(divided)):
            self.assertEqual(before.get("for") is None, after.get("for") is None)
            if "for" in after:
                self.assertRegex(after["for"], r"^\d+ms$")
            self.assertNotRegex(after["expr"], r"\[\d+[smhd]\]|offset \d+[smhd]\b")
            self.assertEqual(dashboards.names_in(before["expr"]), dashboards.names_in(after["expr"]))


class Queries(unittest.TestCase):
    def test_variables_are_filled_in_as_all(self):
        given = 'rate(a{op=~"$op", node=~"${node}"}[$__rate_interval])'
        self.assertEqual(prometheus.filled_in(given, "15s"), 'rate(a{op=~".*", node=~".*"}[15s])')

    def test_only_numbers_are_values(self):
        self.assertFalse(prometheus.has_values([]))
        self.assertFalse(prometheus.has_values([{"values": [[1, "NaN"], [2, "+Inf"]]}]))
        self.assertTrue(prometheus.has_values([{"values": [[1, "NaN"], [2, "0"]]}]))
        self.assertTrue(prometheus.has_values([{"value": [1, "0.5"]}]))

    def test_what_prometheus_refuses_is_a_failure(self):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                good = "query=up" in self.path
                data = {"resultType": "vector", "result": [{"metric": {}, "value": [0, "2"]}]}
                body = json.dumps({"status": "success", "data": data} if good else {"status": "error", "error": "parse error"}).encode()
                self.send_response(200 if good else 400)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        api = prometheus.Api(f"http://127.0.0.1:{server.server_port}")
        self.assertEqual(api.number("up"), 2)
        with self.assertRaisesRegex(Failed, "parse error: sum\\("):
            api.instant("sum(")


class Wire(unittest.TestCase):
    def test_a_message_is_seen_and_published_again_as_it_was(self):
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)
        said = []

        def serve():
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as lines:
                connection.sendall(b"INFO {}\r\n")
                lines.readline()  # CONNECT
                lines.readline()  # PING
                connection.sendall(b"PONG\r\n")
                said.append(lines.readline())
                lines.readline()
                head, body = b"NATS/1.0\r\nA: b\r\n\r\n", b"two\r\nlines"
                connection.sendall(b"PONG\r\nPING\r\nHMSG a.b 1 %d %d\r\n" % (len(head), len(head) + len(body)) + head + body + b"\r\n")
                while (line := lines.readline()) != b"lines\r\n":
                    said.append(line)

        server = threading.Thread(target=serve, daemon=True)
        server.start()
        connection = Connection(f"nats://127.0.0.1:{listener.getsockname()[1]}")
        self.addCleanup(connection.close)
        connection.subscribe("a.>")
        subject, reply, header, body = connection.next()
        self.assertEqual((subject, reply, header, body), ("a.b", "", b"NATS/1.0\r\nA: b\r\n\r\n", b"two\r\nlines"))
        connection.publish(subject, header, body)
        server.join(10)
        self.assertEqual(b"".join(said), b"SUB a.> 1\r\nPONG\r\nHPUB a.b 18 28\r\nNATS/1.0\r\nA: b\r\n\r\ntwo\r\n")


class Charts(unittest.TestCase):
    RUN = {
        "seconds": 100.0,
        "charts": [
            {"title": "Jobs", "unit": "jobs/s", "series": [{"name": "sign & more", "points": [[1, 2.0], [2, 3.5], [50, 1.0]]}]},
            {"title": "Nothing", "unit": "s", "series": []},
        ],
        "alerts": {"TrefoilNodeDown": [60.0, 61.0, 62.0, 70.0]},
        "outages": [{"what": "kill node 1", "from": 55.0, "to": 65.0}],
    }

    def test_the_pictures_are_labelled_and_well_formed(self):
        for drawn in (charts.overview(self.RUN), charts.outages(self.RUN), charts.outages({**self.RUN, "alerts": {}, "outages": []})):
            words = "".join(xml.etree.ElementTree.fromstring(drawn).itertext())
            self.assertIn("drawn from a test run, not Grafana", words)
        self.assertIn("sign & more", "".join(xml.etree.ElementTree.fromstring(charts.overview(self.RUN)).itertext()))

    def test_missing_points_are_not_drawn_over(self):
        self.assertEqual(charts.pieces([[1, 5], [2, 6], [9, 7]]), [[[1, 5], [2, 6]], [[9, 7]]])

    def test_axes_end_at_round_numbers_above_what_is_shown(self):
        for value, highest in ((0, 1), (0.0031, 0.004), (0.7, 0.8), (1, 1), (7, 8), (11.5, 20), (230, 300), (999, 1_000)):
            self.assertAlmostEqual(charts.rounded(value), highest)


if __name__ == "__main__":
    unittest.main()
