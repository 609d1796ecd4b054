//! Tests with real peers: gRPC for Python and JavaScript, Connect, tonic, OpenTelemetry, Envoy, nginx, curl, reqwest. The
//! tests of a peer that is not installed are skipped, and print that.
//!
//! Two guides use some of these peers as well. Their code is tested here, so that the tests of the crate need no peers.

#[cfg(doctest)]
#[doc = include_str!("../../src/guide/from_service_to_service.md")]
pub struct FromServiceToService;

#[cfg(doctest)]
#[doc = include_str!("../../src/guide/services.md")]
pub struct Services;
