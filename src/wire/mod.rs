//! Propagates a context from one service to the next.
//!
//! Three things are propagated:
//!
//! - The remaining time. It is not a date, so the clocks need not agree. [`DeadlineAt`] is the exception.
//! - The cancellation: dropping a request closes its connection or resets its stream.
//! - The values whose types implement [`Travel`], if both sides select these types.
//!
//! | | feature | use |
//! |---|---|---|
//! | a server on tower: axum, tonic, hyper | `tower` | [`ServerLayer`] |
//! | the same, part of a shutdown | `tower` | [`ServerLayer::with_shutdown`] |
//! | a client on tower: hyper-util's, tonic's channels | `tower` | [`ClientLayer`] |
//! | a route whose handler completes even if the client has left | `tower` | [`FinishLayer`] |
//! | a WebSocket, or work that outlives its request but not the service | `http` | [`Context::beyond_request`] |
//! | another server | `http` | [`Context::extract`] |
//! | another client, such as `reqwest` | `http` | [`Context::inject`], and [`run`](crate::Context::run) around the call |
//! | another transport: metadata, string maps, NATS, AMQP, Kafka | `http` | the same two methods, with a [`Carrier`] |
//! | a message that waits in a queue | `http` | [`DeadlineAt`] |
//! | calls that the peer cancels with a message: JSON-RPC, MCP, LSP | none | [`Calls`] |
//! | the request's context in an axum handler | `axum` | [`Context`](crate::Context) as an argument; `?` converts an [`Error`](crate::Error) into the response that the layer would send |
//! | the request's context in a tonic handler | `tonic` | [`Context::of_request`]; `?` converts an `Error` into a `Status` |
//!
//! # Status codes
//!
//! The layer responds in the protocol of the request, and so does a handler that returns the context's
//! [`Error`](crate::Error):
//!
//! | the context ended | HTTP | gRPC, gRPC-Web | Connect |
//! |---|---|---|---|
//! | at its deadline | 504 | `DEADLINE_EXCEEDED` | `deadline_exceeded` |
//! | with the service, which is shutting down | 503 | `UNAVAILABLE` | `unavailable` |
//! | because the handler canceled a part of its work | 503 | `CANCELLED` | `canceled` |
//! | because the request was dropped, or the client left | 499 | `CANCELLED` | `canceled` |
//!
//! If the response has already begun, gRPC sends the status in its trailers, gRPC-Web in its trailers frame (base64 in
//! a text body), and Connect in its end-of-stream frame. A body that cannot carry a status is aborted with an error:
//! plain HTTP, a unary response of Connect, a message that is only half sent, a body with a content encoding or a known
//! length.
//!
//! # Traps
//!
//! - Apply the layers outside of a middleware that moves requests to another task, such as `tower::buffer`. The current
//!   context does not move with the request.
//! - A WebSocket outlives its request, and so does work that must complete after the client has left. Use
//!   [`Context::beyond_request`], which ends with the service;
//!   [`without_cancel`](crate::Context::without_cancel) does not end at all.
//! - Over HTTP/1, hyper notices that the client has left only if it has read the complete request, and no other bytes
//!   have arrived. A second request that was sent before the first was answered (pipelining) hides the disconnect, and
//!   so does a body that is incomplete or that the handler does not read. The request then ends at its deadline.
//! - Over HTTP/1, a client that closes only its sending half while it waits (`nc -N`) counts as one that has left, unless
//!   hyper's server is set to `half_close`.
//! - The context of a request is made when the inner service is called. The time that a request waits until the service
//!   is ready, for example for a `ConcurrencyLimit` inside of the layer, is not part of its deadline. Shed load instead
//!   (`tower::load_shed`), or limit the concurrency inside the handler.
//! - A request that is dropped by an outer timeout ends like one whose client has left, with
//!   [`RequestEnd::Dropped`]. The layer cannot tell the two apart.
//! - When a context ends, the bodies of its request are dropped even if the transport does not poll them. The stream
//!   itself is reset when hyper polls it next. Over HTTP/2 that is when the peer sends a window update, or closes the
//!   stream.
//! - Deadlines of some ten milliseconds need `TCP_NODELAY` on both sides. Without it, a small body waits up to 40 ms for
//!   an acknowledgment. tonic's channels set the option. hyper-util's `HttpConnector` and `axum::serve` do not, unless
//!   they are configured to.
//! - A proxy that buffers responses hides a client that has left. A proxy that retries sends the same time twice.
//!
// Without these features, the names link to the published documentation.
#![cfg_attr(not(feature = "tonic"), doc = include_str!("links.md"))]
#![cfg_attr(feature = "tonic", doc = "[`Context::beyond_request`]: crate::Context::beyond_request")]
#![cfg_attr(feature = "tonic", doc = "[`Context::extract`]: crate::Context::extract")]
#![cfg_attr(feature = "tonic", doc = "[`Context::inject`]: crate::Context::inject")]
#![cfg_attr(feature = "tonic", doc = "[`Context::of_request`]: crate::Context::of_request")]

mod calls;

#[cfg(feature = "http")]
mod baggage;
#[cfg(feature = "http")]
mod carrier;
#[cfg(feature = "http")]
mod date;
#[cfg(feature = "http")]
mod inbound;
#[cfg(feature = "http")]
mod outbound;
#[cfg(feature = "http")]
mod timeout;
#[cfg(feature = "http")]
mod travel;
#[cfg(feature = "http")]
mod warn;

#[cfg(feature = "tower")]
mod body;
#[cfg(feature = "tower")]
mod call;
#[cfg(feature = "tower")]
mod client;
#[cfg(feature = "tower")]
mod end;
#[cfg(feature = "tower")]
mod envelope;
#[cfg(feature = "tower")]
mod finish;
#[cfg(feature = "tower")]
mod open;
#[cfg(feature = "tower")]
mod outcome;
#[cfg(feature = "tower")]
mod refusal;
#[cfg(feature = "tower")]
mod reply;
#[cfg(feature = "tower")]
mod request_body;
#[cfg(feature = "tower")]
mod request_line;
#[cfg(feature = "tower")]
mod route;
#[cfg(feature = "tower")]
mod send;
#[cfg(feature = "tower")]
mod server;
#[cfg(feature = "tower")]
mod slot;
#[cfg(feature = "tower")]
mod unsent;

#[cfg(feature = "axum")]
mod axum;
#[cfg(feature = "tonic")]
mod tonic;

pub use calls::{Call, Calls, CanceledByPeer, ConnectionLost, IdInUse};

#[cfg(feature = "http")]
#[cfg_attr(docsrs, doc(cfg(feature = "http")))]
pub use carrier::{Carrier, GetWith, NotSent, SetWith, get_with, set_with};
#[cfg(feature = "http")]
#[cfg_attr(docsrs, doc(cfg(feature = "http")))]
pub use date::DeadlineAt;
#[cfg(feature = "http")]
#[cfg_attr(docsrs, doc(cfg(feature = "http")))]
pub use inbound::{Budget, Inbound};
#[cfg(feature = "http")]
#[cfg_attr(docsrs, doc(cfg(feature = "http")))]
pub use outbound::Outbound;
#[cfg(feature = "http")]
#[cfg_attr(docsrs, doc(cfg(feature = "http")))]
pub use timeout::{BadHeader, DeadlineHeader};
#[cfg(feature = "http")]
#[cfg_attr(docsrs, doc(cfg(feature = "http")))]
pub use travel::Travel;

#[cfg(feature = "tower")]
#[cfg_attr(docsrs, doc(cfg(feature = "tower")))]
pub use client::{ClientBody, ClientFuture, ClientLayer, ClientService};
#[cfg(feature = "tower")]
#[cfg_attr(docsrs, doc(cfg(feature = "tower")))]
pub use end::RequestEnd;
#[cfg(feature = "tower")]
#[cfg_attr(docsrs, doc(cfg(feature = "tower")))]
pub use finish::{FinishBody, FinishFuture, FinishLayer, FinishService};
#[cfg(feature = "tower")]
#[cfg_attr(docsrs, doc(cfg(feature = "tower")))]
pub use request_body::RequestBody;
#[cfg(feature = "tower")]
#[cfg_attr(docsrs, doc(cfg(feature = "tower")))]
pub use send::{SendFuture, SendLayer, SendService};
#[cfg(feature = "tower")]
#[cfg_attr(docsrs, doc(cfg(feature = "tower")))]
pub use server::{ServerBody, ServerFuture, ServerLayer, ServerService};

#[cfg(feature = "axum")]
#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
pub use axum::MissingContext;
#[cfg(feature = "tonic")]
#[cfg_attr(docsrs, doc(cfg(feature = "tonic")))]
pub use tonic::StatusExt;
