// grpc-js and connect-node as peers, for tests/peers/wire_node.rs.
//
//   peer.cjs server             serves gRPC; prints its port, and the remaining time and the end of each call
//   peer.cjs call PORT NAME MS  checks the service NAME with a deadline, or without one if MS is 0; prints the outcome
//   peer.cjs cancel PORT NAME   checks the service NAME, and cancels the call at the first line of input; prints the outcome
//   peer.cjs watch PORT MS      reads a stream until it ends; prints each message and the outcome
//   peer.cjs connect            makes a call with connect-node for each line of input, PROTOCOL HTTP PORT NAME MS. The
//                               protocol is connect, connect-json, connect-get, grpc or grpc-web, the version of HTTP is
//                               1.1 or 2, and the NAME "stream" reads a stream
"use strict";

const print = (...words) => process.stdout.write(words.join(" ") + "\n");
const deadline = (ms) => (Number(ms) ? { deadline: Date.now() + Number(ms) } : {});
const SERVICE = "/grpc.health.v1.Health/";

// HealthCheckRequest and HealthCheckResponse, encoded by hand. Each has one field.
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
  const report = (call) => {
    const at = call.getDeadline();
    print("remaining", at === Infinity ? "none" : ((at - Date.now()) / 1000).toFixed(3));
    call.on("cancelled", () => print("ended"));
  };
  server.addService(
    { Check: method("Check", false, false), Watch: method("Watch", false, true), Chat: method("/peer.Chat/Chat", true, true) },
    {
      Check(call, done) {
        report(call);
        if (call.request.subarray(2).toString() !== "stuck") done(null, SERVING);
      },
      Watch(call) {
        report(call);
        call.write(SERVING);
      },
      Chat(call) {
        report(call);
        call.on("data", (message) => call.write(message));
        call.on("error", () => {});
      },
    },
  );
  server.bindAsync("127.0.0.1:0", ServerCredentials.createInsecure(), (error, port) => {
    if (error) throw error;
    print("port", port);
  });
  // Runs until the test closes its end of the pipe.
  process.stdin.on("end", () => process.exit()).resume();
}

function client(port) {
  const { Client, credentials } = grpc();
  // The peer is on this machine, so a proxy from the environment is ignored.
  return new Client(`127.0.0.1:${port}`, credentials.createInsecure(), { "grpc.enable_http_proxy": 0 });
}

const codes = () => Object.fromEntries(Object.entries(grpc().status).map(([name, code]) => [code, name]));

function outcome(start, code, details) {
  print(codes()[code], ((Date.now() - start) / 1000).toFixed(3), details ?? "");
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
  stream.on("data", () => print("message"));
  stream.on("error", (error) => outcome(start, error.code, error.details));
  stream.on("end", () => outcome(start, 0, ""));
}

// Returns the descriptor of the two methods, built without a protobuf compiler.
function health() {
  const { create, createFileRegistry } = require("@bufbuild/protobuf");
  const { FileDescriptorProtoSchema } = require("@bufbuild/protobuf/wkt");
  const field = (name, type) => ({ name, jsonName: name, number: 1, type, label: 1 });
  const unary = { name: "Check", inputType: ".grpc.health.v1.HealthCheckRequest", outputType: ".grpc.health.v1.HealthCheckResponse" };
  const file = create(FileDescriptorProtoSchema, {
    name: "health.proto",
    package: "grpc.health.v1",
    syntax: "proto3",
    messageType: [
      { name: "HealthCheckRequest", field: [field("service", 9)] },
      { name: "HealthCheckResponse", field: [field("status", 5)] },
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
  const printOutcome = (code, details) => print(code, ((Date.now() - start) / 1000).toFixed(3), details);
  try {
    if (name === "stream") {
      for await (const _ of client.watch({ service: name }, given)) print("message");
    } else {
      await client.check({ service: name }, given);
    }
    printOutcome("OK", "");
  } catch (error) {
    const connectError = ConnectError.from(error);
    printOutcome(Code[connectError.code], connectError.rawMessage);
  }
}

const [mode, ...rest] = process.argv.slice(2);
({ server: serve, call, cancel, watch, connect })[mode](...rest);
