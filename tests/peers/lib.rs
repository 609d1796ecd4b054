//! Tests against real peers: gRPC's Python and JavaScript, Connect's, tonic, OpenTelemetry, Envoy, nginx, curl, reqwest. A peer
//! that is not installed is skipped, and its tests say so.
//!
//! Two guides talk to some of them as well: their code is tested here, not in the crate, whose own tests then need
//! none.

#[cfg(doctest)]
#[doc = include_str!("../../src/guide/from_service_to_service.md")]
pub struct FromServiceToService;

#[cfg(doctest)]
#[doc = include_str!("../../src/guide/services.md")]
pub struct Services;
