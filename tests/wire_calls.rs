//! The calls of a peer by their IDs: every way in which a call ends, and ends that happen concurrently.

mod common;

use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use tokio_ctx::Context;
use tokio_ctx::wire::{Calls, CanceledByPeer, ConnectionLost};

use common::{ended, ms};

fn reason(ctx: &Context) -> Option<String> {
    ended(ctx)
        .cause_as::<CanceledByPeer>()
        .expect("its peer has canceled it")
        .reason()
        .map(str::to_owned)
}

#[test]
fn a_cancel_ends_its_call_and_no_other() {
    let calls = Calls::new(&Context::background());
    let (a, b) = (calls.begin("a".to_string()).unwrap(), calls.begin("b".to_string()).unwrap());
    let below = a.with_cancel();
    assert_eq!((calls.len(), a.id().as_str()), (2, "a"));
    let line = line!() + 1;
    assert!(calls.cancel("a", String::from("the user pressed Escape")));
    assert_eq!(reason(&a).as_deref(), Some("the user pressed Escape"));
    assert_eq!(ended(&a).origin().canceled_at().unwrap().line(), line);
    common::assert_same(&ended(&below), &ended(&a));
    assert!(!b.is_done());
    assert_eq!(calls.len(), 2, "it is under way until it is dropped");
    // The first reason is kept.
    assert!(calls.cancel("a", "again"));
    assert_eq!(reason(&a).as_deref(), Some("the user pressed Escape"));
    assert!(a.finish() && !b.finish());
    assert!(calls.is_empty());
}

#[test]
fn a_cancel_of_a_finished_or_unknown_call_returns_false() {
    let calls = Calls::new(&Context::background());
    assert!(!calls.cancel(&1, ""));
    let call = calls.begin(1).unwrap();
    let seen = call.clone();
    drop(call);
    assert!(!calls.cancel(&1, "too late"));
    assert!(ended(&seen).cause_as::<CanceledByPeer>().is_none());
    assert!(ended(&seen).to_string().ends_with(": call over"));

    // A finished call does not remove the next call with the same ID.
    let (first, second) = (calls.begin(2).unwrap(), calls.begin(3).unwrap());
    assert!(!first.finish());
    let again = calls.begin(2).unwrap();
    assert!(calls.cancel(&2, ""));
    assert!(again.is_done() && !second.is_done());
    assert_eq!(reason(&again), None);
}

/// A call that serves another call: the peer that cancels the outer one is not the peer of the inner one.
#[test]
fn a_cancel_by_another_peer_is_not_one_by_its_own() {
    let outer = Calls::new(&Context::background());
    let serving = outer.begin(1).unwrap();
    let inner = Calls::new(&serving);
    let (answered, canceled) = (inner.begin(1).unwrap(), inner.begin(2).unwrap());
    assert!(outer.cancel(&1, "the user left"));
    assert!(answered.is_done() && canceled.is_done());
    // The peer does not know that the call has ended, and does not expect a response to this one.
    assert!(inner.cancel(&2, ""));
    assert!(!answered.finish(), "its own peer waits for the response");
    assert!(canceled.finish());
    assert!(serving.finish());
}

#[test]
fn an_id_in_use_is_refused_and_its_call_continues() {
    let calls = Calls::new(&Context::background());
    let call = calls.begin(1).unwrap();
    assert!(calls.begin(1).is_err());
    assert!(!call.is_done());
    assert_eq!(calls.len(), 1);
    assert!(calls.cancel(&1, ""));
    // A canceled call stays in the table until it is finished.
    assert!(calls.begin(1).is_err());
    drop(call);
    assert!(calls.begin(1).is_ok());
}

#[test]
fn a_lost_connection_ends_its_calls_unless_they_outlive_it() {
    let service = Context::background().with_cancel();
    let calls = Calls::new(&service);
    let call = calls.begin(1).unwrap();
    calls.lost("reset by peer");
    calls.lost("again");
    assert_eq!(
        ended(&call).cause_as::<ConnectionLost>().unwrap().to_string(),
        "connection lost: reset by peer"
    );
    assert!(!call.finish(), "its peer has not taken it back");
    // A request that was read before the loss was noticed.
    assert!(calls.begin(2).unwrap().is_done());
    drop(calls);

    let calls = Calls::outliving(&service);
    let call = calls.begin(1).unwrap();
    calls.lost("reset by peer");
    assert!(!call.is_done() && !calls.begin(2).unwrap().is_done());
    drop(calls);
    assert!(!call.is_done());
    service.cancel_with("going down");
    assert_eq!(ended(&call).cause().unwrap().to_string(), "going down");
    assert!(!call.finish());
}

/// The loop ends by a return, an error, or a panic.
#[test]
fn the_end_of_the_loop_ends_its_calls() {
    let call = catch_unwind(AssertUnwindSafe(|| {
        let calls = Calls::new(&Context::background());
        let call = calls.begin(1).unwrap();
        std::panic::panic_any(call);
        #[allow(unreachable_code)]
        drop(calls);
    }))
    .unwrap_err();
    let call = call.downcast::<tokio_ctx::wire::Call<i32>>().unwrap();
    assert_eq!(ended(&call).cause_as::<ConnectionLost>().unwrap().to_string(), "connection lost");
    // The call outlives its table.
    drop(call);
}

#[test]
fn a_long_reason_is_truncated() {
    let calls = Calls::new(&Context::background());
    for (id, (long, kept)) in [
        ("x".repeat(1024), 1024),
        ("x".repeat(1025), 1024),
        ("ü".repeat(100_000), 1024),
        (format!("x{}", "ü".repeat(100_000)), 1023),
    ]
    .into_iter()
    .enumerate()
    {
        let call = calls.begin(id).unwrap();
        calls.cancel(&id, long);
        assert_eq!(reason(&call).unwrap().len(), kept);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_bounds_its_work() {
    let calls = Arc::new(Calls::new(&Context::background().with_timeout(ms(500)).detach()));
    let call = calls.begin(1).unwrap();
    let cancels = calls.clone();
    tokio::spawn(async move {
        tokio::time::sleep(ms(50)).await;
        cancels.cancel(&1, "enough");
    });
    let error = call.run(std::future::pending::<()>()).await.unwrap_err();
    assert_eq!(error.cause().unwrap().to_string(), "canceled by the peer: enough");
    // The parent of the table bounds all calls.
    let error = calls.begin(2).unwrap().run(std::future::pending::<()>()).await.unwrap_err();
    assert!(error.is_deadline_exceeded());
}

/// A cancel calls wakers, which may use the table.
#[test]
fn a_waker_may_use_the_table() {
    struct Uses(Arc<Calls<u32>>, AtomicBool);
    impl std::task::Wake for Uses {
        fn wake(self: Arc<Self>) {
            drop(self.0.begin(2).unwrap());
            assert!(self.0.cancel(&1, "") && !self.0.is_empty());
            self.1.store(true, Ordering::SeqCst);
        }
    }
    let calls = Arc::new(Calls::new(&Context::background()));
    let call = calls.begin(1).unwrap();
    let uses = Arc::new(Uses(calls.clone(), AtomicBool::new(false)));
    let mut done = std::pin::pin!(call.done());
    assert!(common::poll(done.as_mut(), &uses.clone().into()).is_pending());
    calls.cancel(&1, "");
    assert!(uses.1.load(Ordering::SeqCst));
}

/// An ID whose comparison panics affects its call, and not the table.
#[test]
fn an_id_that_panics_leaves_the_table_intact() {
    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Id(u32);
    impl Hash for Id {
        fn hash<H: Hasher>(&self, state: &mut H) {
            assert_ne!(self.0, 13);
            self.0.hash(state);
        }
    }
    let calls = Calls::new(&Context::background());
    let call = calls.begin(Id(1)).unwrap();
    assert!(catch_unwind(AssertUnwindSafe(|| calls.begin(Id(13)).is_ok())).is_err());
    assert_eq!(calls.len(), 1);
    assert!(calls.cancel(&Id(1), "") && call.finish());
}

#[test]
fn a_cancel_races_with_the_end_of_its_call() {
    for _ in 0..500 {
        let calls = Calls::new(&Context::background());
        let call = calls.begin(1).unwrap();
        let seen = call.clone();
        let barrier = Barrier::new(2);
        let (canceled, finished) = thread::scope(|scope| {
            let cancels = scope.spawn(|| {
                barrier.wait();
                calls.cancel(&1, "race")
            });
            let finishes = scope.spawn(|| {
                barrier.wait();
                call.finish()
            });
            (cancels.join().unwrap(), finishes.join().unwrap())
        });
        // If `finish` returned false, no cancel was seen before.
        assert!(canceled || !finished);
        assert!(seen.is_done() && calls.is_empty());
        assert!(calls.begin(1).is_ok());
    }
}

#[test]
fn many_concurrent_calls_leave_no_entries() {
    let calls = Calls::new(&Context::background());
    thread::scope(|scope| {
        for worker in 0..4_u32 {
            let calls = &calls;
            scope.spawn(move || {
                for round in 0..500 {
                    let call = calls.begin((worker, round % 3)).unwrap();
                    // A call of any thread, in any state.
                    calls.cancel(&((worker + 1) % 4, round % 3), "");
                    if round % 2 == 0 {
                        drop(call);
                    } else {
                        call.finish();
                    }
                }
            });
        }
    });
    assert!(calls.is_empty());
    let ids: HashSet<_> = (0..10).map(|id| *calls.begin((id, 0)).unwrap().id()).collect();
    assert_eq!(ids.len(), 10);
}
