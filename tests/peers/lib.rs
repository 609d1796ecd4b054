//! Tests against real peers: gRPC's Python, tonic, nginx, curl, reqwest, SQLite, PostgreSQL. A peer that is not
//! installed is skipped, and its tests say so.
//!
//! The guide "From service to service" talks to some of them as well: its code is tested here, not in the
//! crate, whose own tests then need none.

#[cfg(doctest)]
#[doc = include_str!("../../src/guide/from_service_to_service.md")]
pub struct Guide;
