"""gRPC for Python as a peer, for tests/peers/wire_python.rs.

    peer.py server                  serves health checks; prints its port, and the remaining time and the end of each call
    peer.py call PORT NAME SECONDS  checks the service NAME with a deadline, or without one if SECONDS is 0; prints the
                                    outcome
    peer.py cancel PORT NAME        checks the service NAME, and cancels the call at the first line of input; prints the
                                    outcome
    peer.py watch PORT SECONDS      reads a stream until it ends; prints each message and the outcome
"""

import sys
import threading
import time
from concurrent import futures

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc


def print_line(*words):
    print(*words, flush=True)


class Health(health_pb2_grpc.HealthServicer):
    def Check(self, request, context):
        remaining = context.time_remaining()
        print_line("remaining", "none" if remaining is None or remaining > 1e6 else f"{remaining:.3f}")
        if request.service == "stuck":
            ended = threading.Event()
            if context.add_callback(ended.set):
                ended.wait(60)
            print_line("ended")
        if request.service == "late":
            context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "too slow for me")
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)

    def Watch(self, request, context):
        # A callback, because the code after a yield does not run once the call has ended.
        ended = threading.Event()
        context.add_callback(lambda: (print_line("ended"), ended.set()))
        yield health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
        ended.wait(60)


def chat(messages, context):
    context.add_callback(lambda: print_line("ended"))
    print_line("chat")
    for message in messages:
        yield message


def serve():
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    health_pb2_grpc.add_HealthServicer_to_server(Health(), server)
    handlers = {"Chat": grpc.stream_stream_rpc_method_handler(chat)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("peer.Chat", handlers),))
    print_line("port", server.add_insecure_port("127.0.0.1:0"))
    server.start()
    # Runs until the test closes its end of the pipe.
    sys.stdin.read()


def stub(port):
    # The peer is on this machine, so a proxy from the environment is ignored.
    options = [("grpc.enable_http_proxy", 0)]
    return health_pb2_grpc.HealthStub(grpc.insecure_channel(f"127.0.0.1:{port}", options=options))


def outcome(start, code, details):
    print_line(code.name, f"{time.monotonic() - start:.3f}", details or "")


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
            print_line("message")
        outcome(start, grpc.StatusCode.OK, "")
    except grpc.RpcError as error:
        outcome(start, error.code(), error.details())


if __name__ == "__main__":
    mode, *rest = sys.argv[1:]
    {"server": serve, "call": call, "cancel": cancel, "watch": watch}[mode](*rest)
