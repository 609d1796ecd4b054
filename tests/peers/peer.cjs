// gRPC's and Connect's own JavaScript as the other side, for tests/peers/wire_node.rs.
//
//   peer.cjs server                          a gRPC service; says its port, then what it sees of each call
//   peer.cjs call PORT NAME MS               asks for NAME, and says how it ended; no deadline for MS = 0
//   peer.cjs cancel PORT NAME                asks for NAME, and takes it back when told to by a line of input
//   peer.cjs watch PORT MS                   reads a stream until it ends, and says how
//   peer.cjs connect                         the same by connect-node for each line of input, PROTOCOL HTTP PORT NAME
//                                            MS: in the protocol connect, connect-json, connect-get, grpc or grpc-web
//                                            over HTTP 1.1 or 2; the NAME "stream" is one
"use strict";

const say = (...words) => process.stdout.write(words.join(" ") + "\n");
const deadline = (ms) => (Number(ms) ? { deadline: Date.now() + Number(ms) } : {});
const SERVICE = "/grpc.health.v1.Health/";

// HealthCheckRequest and HealthCheckResponse, by hand: a field each.
const request = (name) => Buffer.concat([Buffer.from([0x0a, name.length]), Buffer.from(name)]);
const SERVING = Buffer.from([0x08, 0x01]);
const raw = { serialize: (bytes) => bytes, deserialize: (bytes) => bytes };
const method = (name, requestStream, responseStream) => ({
  path: name.startsWith("/") ? name : SERVICE + name,
  requestStream,
  responseStream,
  requestSerialize: raw.serialize,
  requestDeserialize: raw.deserialize,
  responseSerialize: raw.serialize,
  responseDeserialize: raw.deserialize,
});

const grpc = () => require("@grpc/grpc-js");

function serve() {
  const { Server, ServerCredentials } = grpc();
  const server = new Server();
  const saw = (call) => {
    const at = call.getDeadline();
    say("remaining", at === Infinity ? "none" : ((at - Date.now()) / 1000).toFixed(3));
    call.on("cancelled", () => say("ended"));
  };
  server.addService(
    { Check: method("Check", false, false), Watch: method("Watch", false, true), Chat: method("/peer.Chat/Chat", true, true) },
    {
      Check(call, done) {
        saw(call);
        if (call.request.subarray(2).toString() !== "stuck") done(null, SERVING);
      },
      Watch(call) {
        saw(call);
        call.write(SERVING);
      },
      Chat(call) {
        saw(call);
        call.on("data", (message) => call.write(message));
        call.on("error", () => {});
      },
    },
  );
  server.bindAsync("127.0.0.1:0", ServerCredentials.createInsecure(), (error, port) => {
    if (error) throw error;
    say("port", port);
  });
  // Until what started this is gone.
  process.stdin.on("end", () => process.exit()).resume();
}

function client(port) {
  const { Client, credentials } = grpc();
  // The peer is on this machine, whatever proxy the environment names.
  return new Client(`127.0.0.1:${port}`, credentials.createInsecure(), { "grpc.enable_http_proxy": 0 });
}

const codes = () => Object.fromEntries(Object.entries(grpc().status).map(([name, code]) => [code, name]));

function outcome(start, code, details) {
  say(codes()[code], ((Date.now() - start) / 1000).toFixed(3), details ?? "");
  process.exit();
}

function call(port, name, ms) {
  const start = Date.now();
  return client(port).makeUnaryRequest(
    SERVICE + "Check", raw.serialize, raw.deserialize, request(name), deadline(ms),
    (error) => outcome(start, error ? error.code : 0, error?.details),
  );
}

function cancel(port, name) {
  const pending = call(port, name, 0);
  process.stdin.once("data", () => pending.cancel());
}

function watch(port, ms) {
  const start = Date.now();
  const stream = client(port).makeServerStreamRequest(
    SERVICE + "Watch", raw.serialize, raw.deserialize, request(""), deadline(ms),
  );
  stream.on("data", () => say("message"));
  stream.on("error", (error) => outcome(start, error.code, error.details));
  stream.on("end", () => outcome(start, 0, ""));
}

// The descriptor of the two methods that are asked for, without a compiler of protocols.
function health() {
  const { create, createFileRegistry } = require("@bufbuild/protobuf");
  const { FileDescriptorProtoSchema } = require("@bufbuild/protobuf/wkt");
  const field = (name, type) => ({ name, jsonName: name, number: 1, type, label: 1 });
  const unary = { name: "Check", inputType: ".grpc.health.v1.Ask", outputType: ".grpc.health.v1.Tell" };
  const file = create(FileDescriptorProtoSchema, {
    name: "health.proto",
    package: "grpc.health.v1",
    syntax: "proto3",
    messageType: [
      { name: "Ask", field: [field("service", 9)] },
      { name: "Tell", field: [field("status", 5)] },
    ],
    service: [
      {
        name: "Health",
        method: [
          { ...unary, options: { idempotencyLevel: 1 } },
          { ...unary, name: "Watch", serverStreaming: true },
        ],
      },
    ],
  });
  return createFileRegistry(file, () => undefined).getService("grpc.health.v1.Health");
}

async function connect() {
  for await (const line of require("node:readline").createInterface({ input: process.stdin })) {
    await connectOnce(...line.split(" "));
  }
}

async function connectOnce(protocol, http, port, name, ms) {
  const { createClient, Code, ConnectError } = require("@connectrpc/connect");
  const node = require("@connectrpc/connect-node");
  const options = {
    baseUrl: `http://127.0.0.1:${port}`,
    httpVersion: http,
    useBinaryFormat: protocol !== "connect-json",
    useHttpGet: protocol === "connect-get",
  };
  const transport = protocol.startsWith("connect")
    ? node.createConnectTransport(options)
    : protocol === "grpc"
      ? node.createGrpcTransport(options)
      : node.createGrpcWebTransport(options);
  const client = createClient(health(), transport);
  const given = Number(ms) ? { timeoutMs: Number(ms) } : {};
  const start = Date.now();
  const over = (code, details) => say(code, ((Date.now() - start) / 1000).toFixed(3), details);
  try {
    if (name === "stream") {
      for await (const _ of client.watch({ service: name }, given)) say("message");
    } else {
      await client.check({ service: name }, given);
    }
    over("OK", "");
  } catch (error) {
    const told = ConnectError.from(error);
    over(Code[told.code], told.rawMessage);
  }
}

const [mode, ...rest] = process.argv.slice(2);
({ server: serve, call, cancel, watch, connect })[mode](...rest);
