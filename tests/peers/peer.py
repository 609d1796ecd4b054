"""gRPC's own Python as the other side, for tests/wire_python.rs.

    peer.py server                   a health service; says its port, then what it sees of each call
    peer.py call PORT NAME SECONDS   asks for NAME, and says how it ended; no deadline for SECONDS = 0
    peer.py cancel PORT NAME         asks for NAME, and takes it back when told to by a line of input
    peer.py watch PORT SECONDS       watches until the stream ends, and says how
"""

import sys
import threading
import time
from concurrent import futures

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc


def say(*words):
    print(*words, flush=True)


class Health(health_pb2_grpc.HealthServicer):
    def Check(self, request, context):
        remaining = context.time_remaining()
        say("remaining", "none" if remaining is None or remaining > 1e6 else f"{remaining:.3f}")
        if request.service == "stuck":
            ended = threading.Event()
            if context.add_callback(ended.set):
                ended.wait(60)
            say("ended")
        if request.service == "late":
            context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "too slow for me")
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)

    def Watch(self, request, context):
        # By a callback: after an end, nobody comes back to what follows a yield.
        ended = threading.Event()
        context.add_callback(lambda: (say("ended"), ended.set()))
        yield health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
        ended.wait(60)


def chat(messages, context):
    context.add_callback(lambda: say("ended"))
    say("chat")
    for message in messages:
        yield message


def serve():
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    health_pb2_grpc.add_HealthServicer_to_server(Health(), server)
    handlers = {"Chat": grpc.stream_stream_rpc_method_handler(chat)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("peer.Chat", handlers),))
    say("port", server.add_insecure_port("127.0.0.1:0"))
    server.start()
    # Until whoever started this is gone.
    sys.stdin.read()


def stub(port):
    # The peer is on this machine, whatever proxy the environment names.
    options = [("grpc.enable_http_proxy", 0)]
    return health_pb2_grpc.HealthStub(grpc.insecure_channel(f"127.0.0.1:{port}", options=options))


def outcome(start, code, details):
    say(code.name, f"{time.monotonic() - start:.3f}", details or "")


def call(port, name, seconds):
    start = time.monotonic()
    try:
        stub(port).Check(health_pb2.HealthCheckRequest(service=name), timeout=float(seconds) or None)
        outcome(start, grpc.StatusCode.OK, "")
    except grpc.RpcError as error:
        outcome(start, error.code(), error.details())


def cancel(port, name):
    start = time.monotonic()
    pending = stub(port).Check.future(health_pb2.HealthCheckRequest(service=name))
    sys.stdin.readline()
    pending.cancel()
    outcome(start, pending.code(), pending.details())


def watch(port, seconds):
    start = time.monotonic()
    request = health_pb2.HealthCheckRequest(service="")
    try:
        for _ in stub(port).Watch(request, timeout=float(seconds) or None):
            say("message")
        outcome(start, grpc.StatusCode.OK, "")
    except grpc.RpcError as error:
        outcome(start, error.code(), error.details())


if __name__ == "__main__":
    mode, *rest = sys.argv[1:]
    {"server": serve, "call": call, "cancel": cancel, "watch": watch}[mode](*rest)
