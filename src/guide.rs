//! How to put it to use, one program at a time.

#[cfg(all(feature = "axum", feature = "tonic"))]
#[doc = include_str!("guide/from_service_to_service.md")]
pub mod from_service_to_service {}
