//! What an error is, prints and hides: for programs that were written from the documentation alone.

mod common;

use common::{Cause, ended};
use tokio_ctx::{Context, Error};

/// An error is a plain value: no larger than ten words, and a clone shares the cause.
#[test]
fn an_error_is_a_plain_value_that_shares_its_cause() {
    assert!(size_of::<Error>() <= 80, "{}", size_of::<Error>());
    let ctx = Context::background().with_cancel();
    ctx.cancel_with(Cause("shared"));
    let error = ended(&ctx);
    assert!(std::ptr::eq(error.cause_as::<Cause>().unwrap(), error.clone().cause_as().unwrap()));
    drop(ctx);
    assert_eq!(error.cause().unwrap().to_string(), "shared");
}
