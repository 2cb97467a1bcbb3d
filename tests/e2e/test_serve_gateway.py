"""Servers as others run them: behind nginx with the example configuration, and over TLS."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
import unittest

import serve_support
import support
from serve_support import Server
from support import OPT

try:
    import grpc
except ImportError:
    grpc = None

CONFIGURATION = support.NANO_MODELS.parent.parent / "launcher" / "gateways" / "nginx.conf"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
RETRY = json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": {
    "maxAttempts": 5, "initialBackoff": "0.05s", "maxBackoff": "1s", "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"]}}]})


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


@unittest.skipUnless(NGINX, "no nginx here (package nginx-light)")
@serve_support.needs_grpc
class NginxTestCase(support.TestCase):
    """Two replicas behind nginx."""

    REPLICA_PORTS = ((8080, 50051), (8180, 50151))  # in CONFIGURATION: HTTP, gRPC

    def setUp(self):
        super().setUp()
        self.ports = {name: free_port() for name in (8000, 8001, 8080, 8180, 50051, 50151)}
        text = CONFIGURATION.read_text()
        for name, port in self.ports.items():
            self.assertIn(f"127.0.0.1:{name}", text)
            text = text.replace(f"127.0.0.1:{name}", f"127.0.0.1:{port}")
        temporary = "".join(f"{kind}_temp_path {self.folder}/{kind};"
                            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        text = text.replace("http {", "http { " + temporary, 1)
        path = self.write("nginx.conf", f"daemon off; pid {self.folder}/pid;\n"
                          f"error_log {self.folder}/errors.log;\n{text}")
        self.replicas = [self.replica(i) for i in range(2)]
        nginx = subprocess.Popen([NGINX, "-p", self.folder, "-c", path, "-e",
                                  self.folder / "errors.log"])
        self.addCleanup(nginx.wait)
        self.addCleanup(nginx.terminate)
        give_up = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.ports[8001])).close()
                break
            self.assertLess(time.monotonic(), give_up)
            time.sleep(0.05)

    def replica(self, i):
        http_port, grpc_port = self.REPLICA_PORTS[i]
        server = Server(OPT, http_port=self.ports[http_port], grpc_port=self.ports[grpc_port])
        self.addCleanup(server.close)
        return server

    def ask_over_http(self, i):
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[8000], timeout=60)
        with contextlib.closing(connection):
            connection.request("POST", "/v1/completions", json.dumps(
                {"prompt": [5, i % 900], "max_tokens": 24, "temperature": 0, "ignore_eos": True}))
            response = connection.getresponse()
            body = response.read()
            if response.status != 200:
                raise AssertionError(f"HTTP status {response.status}: {body}")
            return json.loads(body)["choices"][0]["token_ids"]

    def ask_over_grpc(self, i):
        return list(self.inference.generate(token_ids=[5, i % 900], max_tokens=24,
                                            ignore_eos=True).token_ids)


class RollingTest(NginxTestCase):
    """Replicas are restarted in turn, THINWIRE_GATEWAY_RESTARTS times (2), then one is lost."""

    def test_replicas_come_and_go_under_load_and_nobody_notices(self):
        """But those whose answers a lost replica had begun: nothing can end them."""
        self.inference = serve_support.Inference(f"127.0.0.1:{self.ports[8001]}",
                                                 options=[("grpc.service_config", RETRY)])
        self.addCleanup(self.inference.close)
        self.inference.call("GetModelInfo")
        stop, lost = threading.Event(), threading.Event()
        errors, counts = [], [0, 0]

        def load(way, ask):
            i = 0
            while not stop.is_set():
                try:
                    if len(ask(i)) != 24:
                        errors.append("a short answer")
                except Exception as error:  # whatever it is, the client noticed
                    begun = isinstance(error, http.client.IncompleteRead) or (
                        isinstance(error, grpc.RpcError) and cut_off(error))
                    if not (begun and lost.is_set()):
                        errors.append(error)
                counts[way] += 1
                i += 1

        threads = [threading.Thread(target=load, args=(way, ask)) for _ in range(4)
                   for way, ask in enumerate((self.ask_over_http, self.ask_over_grpc))]
        for thread in threads:
            thread.start()
        try:
            time.sleep(0.5)
            restarts = int(os.environ.get("THINWIRE_GATEWAY_RESTARTS", 2))
            for restart in range(restarts):
                i = restart % 2
                os.kill(self.replicas[i].leader(), signal.SIGTERM)
                self.assertEqual(self.replicas[i].running.wait().exit_code, 0)
                self.replicas[i] = self.replica(i)
                time.sleep(0.4)
            lost.set()
            os.kill(self.replicas[0].leader(), signal.SIGKILL)
            time.sleep(0.5)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        print(f"{restarts} restarts: {counts} answers over HTTP and gRPC, {len(errors)} lost")
        self.assertEqual(errors[:3], [], (self.folder / "errors.log").read_text()[-2000:])
        self.assertGreater(min(counts), 10, counts)


def cut_off(error):
    """Whether nginx ended a stream whose replica was lost: what it says then is INTERNAL, without
    the details that the replicas' own statuses have."""
    return error.code() == grpc.StatusCode.INTERNAL and "grpc-status-details-bin" not in dict(
        error.trailing_metadata() or ())


class KillsTest(NginxTestCase):
    """Replicas are killed, one after the other, THINWIRE_GATEWAY_KILLS times (2), and come back."""

    ATTEMPTS = 40

    def ask_over_stream(self, i):
        """As who reads a stream must: what was emitted before the loss is thrown away."""
        return [token for event in self.inference.stream(token_ids=[5, i % 900], max_tokens=24,
                                                         ignore_eos=True)
                for token in event.token_ids]

    def ask_until_answered(self, ask, i):
        """The answer, asked for again where the error says that this is of use."""
        for _ in range(self.ATTEMPTS):
            try:
                return ask(i)
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE and not cut_off(error):
                    raise
            except (OSError, http.client.HTTPException):
                pass  # the gateway's connection
            except AssertionError as error:
                if not str(error).startswith(("HTTP status 502", "HTTP status 503")):
                    raise
            with self.lock:
                self.retries += 1
            time.sleep(0.1)
        raise AssertionError(f"no answer to {i} in {self.ATTEMPTS} attempts")

    def test_no_request_is_lost_by_those_who_ask_again(self):
        self.inference = serve_support.Inference(f"127.0.0.1:{self.ports[8001]}")
        self.addCleanup(self.inference.close)
        self.inference.call("GetModelInfo")
        kills = int(os.environ.get("THINWIRE_GATEWAY_KILLS", 2))
        self.lock, self.retries = threading.Lock(), 0
        asks = (self.ask_over_http, self.ask_over_grpc, self.ask_over_stream)
        expected = [self.ask_over_grpc(i) for i in range(50)]
        stop, lost, counts = threading.Event(), [], [0] * len(asks)

        def load(way, i):
            while not stop.is_set():
                i = (i + 1) % len(expected)
                try:
                    if self.ask_until_answered(asks[way], i) != expected[i]:
                        lost.append(f"another answer to {i}")
                except Exception as error:  # whatever it is, the request is lost
                    lost.append(error)
                with self.lock:
                    counts[way] += 1

        threads = [threading.Thread(target=load, args=(way, 7 * n)) for n in range(3)
                   for way in range(len(asks))]
        for thread in threads:
            thread.start()
        try:
            for kill in range(kills):
                time.sleep(0.3 + 0.1 * (kill % 5))
                which = kill % 2
                os.kill(self.replicas[which].leader(), signal.SIGKILL)
                self.assertNotEqual(self.replicas[which].running.wait().exit_code, 0)
                time.sleep(0.2)
                self.replicas[which] = self.replica(which)
                time.sleep(1.2)  # nginx tries it again
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        print(f"{kills} kills: {counts} answers over HTTP, gRPC and its streams, "
              f"{self.retries} asked for again, {len(lost)} lost")
        self.assertEqual(lost[:3], [], (self.folder / "errors.log").read_text()[-2000:])
        self.assertGreater(min(counts), 10, counts)


@unittest.skipUnless(shutil.which("openssl"), "no openssl here")
@serve_support.needs_grpc
class TlsTest(support.TestCase):

    def openssl(self, *args):
        subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True,
                       cwd=self.folder)

    def certificate(self, name, issuer="ca"):
        self.openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out",
                     f"{name}.csr", "-subj", f"/CN={name}", "-addext",
                     "subjectAltName=DNS:localhost,IP:127.0.0.1")
        self.openssl("x509", "-req", "-in", f"{name}.csr", "-CA", f"{issuer}.crt", "-CAkey",
                     f"{issuer}.key", "-CAcreateserial", "-days", "2", "-copy_extensions", "copy",
                     "-out", f"{name}.crt")

    def test_listeners_speak_tls_and_know_their_clients(self):
        for name in ("ca", "other"):
            self.openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout",
                         f"{name}.key", "-out", f"{name}.crt", "-subj", f"/CN={name}")
        self.certificate("server")
        self.certificate("client")
        self.certificate("stranger", "other")
        file = lambda name: self.folder / name
        server = Server(OPT, "--tls-cert", file("server.crt"), "--tls-key", file("server.key"),
                        "--tls-client-ca", file("ca.crt"))
        self.addCleanup(server.close)
        root = file("ca.crt").read_bytes()

        def generate(**pair):
            client = serve_support.Inference(
                server.addresses["grpc"], grpc.ssl_channel_credentials(root, **pair),
                [("grpc.ssl_target_name_override", "localhost")])
            with contextlib.closing(client):
                return len(client.generate(prompt="a", max_tokens=3, ignore_eos=True).token_ids)

        def pair(name):
            return {"private_key": file(f"{name}.key").read_bytes(),
                    "certificate_chain": file(f"{name}.crt").read_bytes()}

        self.assertEqual(generate(**pair("client")), 3)
        for wrong in ({}, pair("stranger")):
            with self.assertRaises(grpc.RpcError) as caught:
                generate(**wrong)
            self.assertEqual(caught.exception.code(), grpc.StatusCode.UNAVAILABLE)

        def ready(name):
            context = ssl.create_default_context(cafile=file("ca.crt"))
            if name:
                context.load_cert_chain(file(f"{name}.crt"), file(f"{name}.key"))
            connection = http.client.HTTPSConnection(server.addresses["http"], context=context,
                                                     timeout=30)
            with contextlib.closing(connection):
                connection.request("GET", "/readyz")
                return connection.getresponse().status

        self.assertEqual(ready("client"), 200)
        for wrong in ("", "stranger"):
            with self.assertRaises(OSError):
                ready(wrong)

        # A client that comes again need not show its certificate again.
        host, port = server.addresses["http"].split(":")
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = ssl.create_default_context(cafile=file("ca.crt"))
            context.load_cert_chain(file("client.crt"), file("client.key"))
            context.minimum_version = context.maximum_version = version
            session = None
            for resumed in (False, True):
                with socket.create_connection((host, int(port)), timeout=30) as plain:
                    with context.wrap_socket(plain, server_hostname="localhost",
                                             session=session) as connection:
                        connection.sendall(b"GET /livez HTTP/1.1\r\n\r\n")
                        self.assertTrue(connection.recv(100).startswith(b"HTTP/1.1 200"))
                        self.assertEqual(connection.session_reused, resumed, version)
                        session = connection.session

        # Another certificate under the same names: HTTP takes it within two seconds.
        def serial_number():
            context = ssl.create_default_context(cafile=file("ca.crt"))
            context.load_cert_chain(file("client.crt"), file("client.key"))
            host, port = server.addresses["http"].split(":")
            with socket.create_connection((host, int(port)), timeout=30) as plain:
                with context.wrap_socket(plain, server_hostname="localhost") as connection:
                    return connection.getpeercert()["serialNumber"]

        before = serial_number()
        self.certificate("server")
        give_up = time.monotonic() + support.TIMEOUT_S
        while serial_number() == before:
            self.assertLess(time.monotonic(), give_up)
            time.sleep(0.2)
        self.assertEqual(ready("client"), 200)


@serve_support.needs_grpc
class TokenTest(support.TestCase):

    def test_only_those_who_know_the_token_get_answers(self):
        data, admin = self.write("data", "s3cret-for-clients\n"), self.write("admin", "a" * 20)
        server = Server(OPT, "--token-file", data, "--admin-token-file", admin)
        self.addCleanup(server.close)
        body = {"prompt": "a", "max_tokens": 2}
        for given, status in (("Bearer s3cret-for-clients", 200), ("Bearer s3cret-for-client", 401),
                              ("Bearer " + "a" * 20, 401), ("s3cret-for-clients", 401)):
            found, text, _ = server.http("POST", "/v1/completions", body, {"Authorization": given})
            self.assertEqual(found, status, text)
        self.assertEqual(server.http("POST", "/v1/completions", body)[0], 401)
        self.assertEqual(server.http("GET", "/readyz")[0], 200)
        with server.inference() as inference, server.control() as control:
            calls = [lambda: inference.generate(prompt="a"),
                     lambda: list(inference.stream(prompt="a")),
                     lambda: list(inference.batch([("a", inference.request(prompt="a"))])),
                     lambda: inference.call("Tokenize", text="a"), control.load,
                     lambda: list(control.call("Drain")), lambda: control.call("Abort", all=True)]
            for call in calls:
                with self.assertRaises(grpc.RpcError) as caught:
                    call()
                self.assertEqual(caught.exception.code(), grpc.StatusCode.UNAUTHENTICATED)
            tokenize, message = inference.method(inference.SERVICE, "Tokenize")
            reply = tokenize(message(text="a"), metadata=[("authorization",
                                                           "Bearer s3cret-for-clients")])
            self.assertTrue(reply.token_ids)


class ToolsTest(support.TestCase):

    @classmethod
    def setUpClass(cls):
        cls.server = Server(OPT, "--metrics", "127.0.0.1:0", "--metrics-compat", "vllm")
        cls.addClassCleanup(cls.server.close)

    def test_bench_serve_measures(self):
        report, = self.succeed(["bench", "serve", "--url",
                                f"http://{self.server.addresses['http']}", "--requests", 12,
                                "--concurrency", 4, "--prompt-tokens", 8, "--max-tokens", 6,
                                "--json"]).lines
        self.assertEqual((report["completed"], report["refused"], report["failed"]), (12, 0, 0))
        self.assertAlmostEqual(report["tokens_per_second"] * report["seconds"], 72, 3)
        self.fail_alike(["bench", "serve", "--url", f"http://127.0.0.1:{free_port()}"], 1,
                        "/v1/models", ranks=False)

    def test_the_metrics_listener_serves_no_models(self):
        host, port = self.server.addresses["metrics"].split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=30)
        with contextlib.closing(connection):
            connection.request("GET", "/metrics")
            self.assertIn("vllm:num_requests_waiting", connection.getresponse().read().decode())
            connection.request("GET", "/v1/models")
            self.assertEqual(connection.getresponse().status, 404)


if __name__ == "__main__":
    support.main()
