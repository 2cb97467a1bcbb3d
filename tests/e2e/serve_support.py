"""Clients of `thinwire serve` for the end-to-end tests: gRPC through the server's own reflection,
HTTP with the standard library. Needs grpcio and protobuf (python3-grpcio, python3-protobuf)."""

import contextlib
import http.client
import json
import time
import unittest

import support

try:
    import grpc
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
except ImportError:
    grpc = None

needs_grpc = unittest.skipUnless(grpc, "no Python grpcio here (package python3-grpcio)")

STRING, BYTES, MESSAGE = 9, 12, 11
SERVING, NOT_SERVING = 1, 2


class Messages:
    """Message classes of a descriptor pool, by full name."""

    def __init__(self, pool):
        self.pool = pool
        self.factory = message_factory.MessageFactory(pool)

    def of(self, descriptor):
        return self.factory.GetPrototype(descriptor)

    def __getitem__(self, name):
        return self.of(self.pool.FindMessageTypeByName(name))


def reflection_messages():
    """What is needed of grpc.reflection.v1alpha."""
    file = descriptor_pb2.FileDescriptorProto(name="reflection.proto", package="r",
                                              syntax="proto3")

    def add(name, *fields):
        message = file.message_type.add(name=name)
        for number, field, kind, repeated in fields:
            message.field.add(name=field, number=number, label=3 if repeated else 1,
                              type=MESSAGE if isinstance(kind, str) else kind,
                              type_name=f".r.{kind}" if isinstance(kind, str) else None)

    add("Request", (4, "symbol", STRING, False), (7, "list", STRING, False))
    add("Files", (1, "file", BYTES, True))
    add("Service", (1, "name", STRING, False))
    add("Services", (1, "service", "Service", True))
    add("Response", (4, "files", "Files", False), (6, "services", "Services", False))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return Messages(pool)


class Client:
    """Calls what a listener offers, knowing only its address."""

    def __init__(self, address, credentials=None, options=()):
        options = [("grpc.enable_http_proxy", 0), *options]
        if credentials is None:
            self.channel = grpc.insecure_channel(address, options)
        else:
            self.channel = grpc.secure_channel(address, credentials, options)
        self.reflection = reflection_messages()
        self.messages = None

    def close(self):
        self.channel.close()

    def _reflect(self, **request):
        call = self.channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=self.reflection["r.Response"].FromString)
        return next(call(iter([self.reflection["r.Request"](**request)]), timeout=30))

    def services(self):
        return [service.name for service in self._reflect(list="*").services.service]

    def method(self, path, name):
        """(The callable, its request class); `path` is a service's full name."""
        if self.messages is None:
            pool = descriptor_pool.DescriptorPool()
            for file in self._reflect(symbol=path).files.file:
                pool.Add(descriptor_pb2.FileDescriptorProto.FromString(file))
            self.messages = Messages(pool)
        method = self.messages.pool.FindServiceByName(path).FindMethodByName(name)
        request = self.messages.of(method.input_type)
        streams = {"Generate": "unary_unary", "GenerateStream": "unary_stream",
                   "GenerateBatch": "stream_stream", "WatchLoad": "unary_stream",
                   "Drain": "unary_stream"}.get(name, "unary_unary")
        call = getattr(self.channel, streams)(
            f"/{path}/{name}", request_serializer=request.SerializeToString,
            response_deserializer=self.messages.of(method.output_type).FromString)
        return call, request

    def call(self, name, request=None, timeout=support.TIMEOUT_S, **kwargs):
        call, message = self.method(self.SERVICE, name)
        return call(request or message(**kwargs), timeout=timeout)

    def health(self, service=""):
        """Of a service, as a number: SERVING, NOT_SERVING."""
        call = self.channel.unary_unary("/grpc.health.v1.Health/Check")
        return call(health_request(service), timeout=30)[1]

    def watch_health(self, service):
        """Numbers, as they change."""
        call = self.channel.unary_stream("/grpc.health.v1.Health/Watch")
        return (reply[1] for reply in call(health_request(service), timeout=support.TIMEOUT_S))


def health_request(service):
    return b"\x0a" + bytes([len(service)]) + service.encode()


class Inference(Client):
    SERVICE = "thinwire.v1.Inference"

    def request(self, prompt=None, token_ids=None, max_tokens=16, temperature=0.0, seed=0, stop=(),
                top_k=0, top_p=1.0, ignore_eos=False, **kwargs):
        _, message = self.method(self.SERVICE, "Generate")
        request = message(
            sampling={"temperature": temperature, "seed": seed, "top_k": top_k, "top_p": top_p},
            stopping={"max_tokens": max_tokens, "stop": [stop] if isinstance(stop, str) else stop,
                      "ignore_eos": ignore_eos}, **kwargs)
        if prompt is None:
            request.token_ids.ids.extend(token_ids)
        else:
            request.prompt = prompt
        return request

    def generate(self, **kwargs):
        return self.call("Generate", self.request(**kwargs))

    def stream(self, timeout=support.TIMEOUT_S, **kwargs):
        return self.call("GenerateStream", self.request(**kwargs), timeout=timeout)

    def batch(self, requests):
        call, message = self.method(self.SERVICE, "GenerateBatch")
        return call((message(tag=tag, request=request) for tag, request in requests),
                    timeout=support.TIMEOUT_S)


class Control(Client):
    SERVICE = "thinwire.v1.Control"

    def load(self):
        return self.call("GetLoad").load


class Server:
    """A server on free ports; ready when the constructor returns, unless `wait` is False."""

    def __init__(self, model, *flags, ranks=0, wait=True, grpc_port=0, http_port=0):
        self.running = support.Running(
            ["serve", "--model", model, "--json", "--grpc", f"127.0.0.1:{grpc_port}", "--admin",
             "127.0.0.1:0", "--http", f"127.0.0.1:{http_port}", "--threads", 1, *flags],
            ranks=ranks)
        try:
            self.addresses = self.event("listening")
            if wait:
                self.event("ready")
        except BaseException:
            self.close()
            raise

    def event(self, name):
        """Waits for a line of standard output."""
        give_up = time.monotonic() + support.TIMEOUT_S
        while True:
            for line in self.running.output()[0].decode().splitlines(keepends=True):
                if line.endswith("\n") and json.loads(line)["event"] == name:
                    return json.loads(line)
            if self.running.process.poll() is not None or time.monotonic() > give_up:
                raise AssertionError(f"no event {name}: {self.running.result()}")
            time.sleep(0.02)

    def inference(self):
        return contextlib.closing(Inference(self.addresses["grpc"]))

    def control(self):
        return contextlib.closing(Control(self.addresses["admin"]))

    def http(self, method, path, body=None, headers=None):
        """(Status, body, headers.)"""
        connection = http.client.HTTPConnection(self.addresses["http"], timeout=support.TIMEOUT_S)
        with contextlib.closing(connection):
            if isinstance(body, (dict, list)):
                body = json.dumps(body)
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.read().decode(), dict(response.getheaders())

    def post(self, path, **body):
        """The JSON answer of a request that succeeds."""
        status, text, _ = self.http("POST", path, body)
        if status != 200:
            raise AssertionError(f"HTTP status {status}: {text}")
        return json.loads(text)

    def post_stream(self, path, **body):
        """The JSON events of a stream, which ends well."""
        status, text, headers = self.http("POST", path, {**body, "stream": True})
        if status != 200 or headers["Content-Type"] != "text/event-stream":
            raise AssertionError(f"HTTP status {status}: {text}")
        events = text.split("\n\n")
        if events[-2:] != ["data: [DONE]", ""]:
            raise AssertionError(f"the stream ends with {events[-2:]}")
        return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]

    def leader(self):
        """The process id of rank 0."""
        rank = self.running.rank_process(0)
        return self.running.process.pid if rank is None else rank

    def close(self):
        self.running.__exit__()
