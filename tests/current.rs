//! The current context of a task: `scope`, `sync_scope`, `spawn` and `current`. Scopes nest, and the
//! previous context is current again however the inner scope was left.

mod common;

use std::future::{pending, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::{Poll, Waker};
use std::thread;

use common::{
    Cause, LONG, assert_same, current_thread, ended, ms, on_both, panic_text, poll, poll_once, word,
};
use futures::FutureExt as _;
use tokio::sync::oneshot;
use tokio_ctx::Context;

static BACKGROUND: Context = Context::background();

/// The value by which the tests distinguish contexts.
#[derive(Debug, PartialEq)]
struct Name(&'static str);

fn named(name: &'static str) -> Context {
    BACKGROUND.with_value(Name(name))
}

fn current() -> &'static str {
    Context::current().value::<Name>().map_or("background", |name| name.0)
}

#[test]
fn outside_any_scope_it_is_background() {
    let check = || {
        let current = Context::current();
        assert_eq!(current.to_string(), BACKGROUND.to_string());
        assert_eq!(current.deadline(), None);
        assert!(common::answer(&current).is_none());
        assert_eq!(current.value::<Name>(), None);
    };
    check();
    current_thread().block_on(async move { check() });
    on_both(move || async move { tokio::spawn(async move { check() }).await.unwrap() });
}

#[test]
fn in_a_scope_it_is_that_context_itself() {
    on_both(|| async {
        let ctx = named("a").with_timeout(LONG);
        let (before, after) = ctx
            .scope(async {
                assert_eq!(current(), "a");
                assert_eq!(Context::current().deadline(), ctx.deadline());
                let before = Context::current();
                tokio::task::yield_now().await;
                ctx.cancel_with(Cause("same"));
                (before, Context::current())
            })
            .await;
        assert_eq!(word(&ended(&before)), Some("same"));
        assert_same(&ended(&before), &ended(&after));
        assert_same(&ended(&ctx), &ended(&after));
        assert_eq!(current(), "background");
    });
}

#[test]
fn a_scope_does_not_bound_its_future() {
    on_both(|| async {
        let ctx = BACKGROUND.with_cancel();
        ctx.cancel();
        let finished = ctx
            .scope(async {
                tokio::task::yield_now().await;
                Context::current().is_done()
            })
            .await;
        assert!(finished);
    });
}

#[test]
fn scopes_nest_and_restore() {
    on_both(|| async {
        named("a")
            .scope(async {
                assert_eq!(current(), "a");
                named("b")
                    .scope(async {
                        assert_eq!(current(), "b");
                        tokio::task::yield_now().await;
                        assert_eq!(current(), "b");
                        let inner = named("c").sync_scope(|| {
                            let again = named("d").sync_scope(current);
                            (current(), again)
                        });
                        assert_eq!(inner, ("c", "d"));
                        assert_eq!(current(), "b");
                    })
                    .await;
                assert_eq!(current(), "a");
                tokio::task::yield_now().await;
                assert_eq!(current(), "a");
            })
            .await;
        assert_eq!(current(), "background");
    });
}

#[test]
fn sync_scopes_nest_and_restore_without_a_runtime() {
    let seen = named("a").sync_scope(|| {
        let inner = named("b").sync_scope(|| (current(), BACKGROUND.sync_scope(current), current()));
        (current(), inner, current())
    });
    assert_eq!(seen, ("a", ("b", "background", "b"), "a"));
    assert_eq!(current(), "background");
}

#[test]
fn a_panic_restores_the_outer_context() {
    named("a").sync_scope(|| {
        let text = panic_text(|| named("b").sync_scope(|| panic!("in {}", current())));
        assert_eq!(text, "in b");
        assert_eq!(current(), "a");
    });
    assert_eq!(current(), "background");

    on_both(|| async {
        named("a")
            .scope(async {
                let panicking = named("b").scope(async {
                    tokio::task::yield_now().await;
                    panic!("in {}", current());
                });
                let panic = AssertUnwindSafe(panicking).catch_unwind().await.unwrap_err();
                assert_eq!(*panic.downcast::<String>().unwrap(), "in b");
                assert_eq!(current(), "a");
            })
            .await;
        assert_eq!(current(), "background");
    });
}

/// A future that is dropped before it has finished leaves no current context, neither between polls nor after
/// the drop.
#[test]
fn a_scope_dropped_half_way_leaves_nothing() {
    named("a").sync_scope(|| {
        {
            let mut half = pin!(named("b").scope(async {
                assert_eq!(current(), "b");
                pending::<()>().await;
            }));
            for _ in 0..3 {
                assert!(poll(half.as_mut(), Waker::noop()).is_pending());
                assert_eq!(current(), "a");
            }
        }
        assert_eq!(current(), "a");
        drop(named("c").scope(async { unreachable!("never polled") }));
        assert_eq!(current(), "a");
    });
    assert_eq!(current(), "background");
}

/// A drop that panics within a scope.
#[test]
fn a_scope_whose_future_panics_on_drop_leaves_nothing() {
    struct Panics;
    impl Drop for Panics {
        fn drop(&mut self) {
            panic!("in drop");
        }
    }
    named("a").sync_scope(|| {
        let half = named("b").scope(async {
            let _panics = Panics;
            pending::<()>().await;
        });
        let dropped = catch_unwind(AssertUnwindSafe(|| poll_once(half).is_pending()));
        assert!(dropped.is_err());
        assert_eq!(current(), "a");
    });
    assert_eq!(current(), "background");
}

#[test]
fn concurrent_scopes_on_one_task_do_not_mix() {
    on_both(|| async {
        async fn watch(name: &'static str) -> usize {
            for _ in 0..50 {
                assert_eq!(current(), name);
                tokio::task::yield_now().await;
            }
            assert_eq!(current(), name);
            1
        }
        let (a, b, c) = (named("a"), named("b"), named("c"));
        let polls =
            a.scope(async { tokio::join!(b.scope(watch("b")), c.scope(watch("c")), watch("a")) }).await;
        assert_eq!(polls, (1, 1, 1));
    });
}

#[test]
fn a_scope_moves_with_its_future_to_another_thread() {
    let mut scoped = Box::pin(named("a").scope(async {
        let mut names = vec![current()];
        for _ in 0..2 {
            let mut first = true;
            poll_fn(|_| if std::mem::take(&mut first) { Poll::Pending } else { Poll::Ready(()) }).await;
            names.push(current());
        }
        names
    }));
    assert!(poll(scoped.as_mut(), Waker::noop()).is_pending());
    let mut scoped = thread::spawn(move || {
        assert!(poll(scoped.as_mut(), Waker::noop()).is_pending());
        assert_eq!(current(), "background");
        scoped
    })
    .join()
    .unwrap();
    let Poll::Ready(names) = poll(scoped.as_mut(), Waker::noop()) else { panic!("not done") };
    assert_eq!(names, ["a", "a", "a"]);
}

#[test]
fn the_future_of_a_scope_keeps_its_context() {
    let scoped = {
        let ctx = named("a");
        ctx.scope(async { current() })
    };
    assert_eq!(poll_once(scoped), Poll::Ready("a"));
}

#[test]
fn spawn_propagates_it_to_the_new_task() {
    on_both(|| async {
        let ctx = named("a").with_cancel();
        let (name, inner) = ctx
            .spawn(async {
                tokio::task::yield_now().await;
                let inner = Context::current().spawn(async { current() }).await.unwrap();
                (current(), inner)
            })
            .await
            .unwrap();
        assert_eq!((name, inner), ("a", "a"));
        assert_eq!(current(), "background");

        let waiting = ctx.spawn(async { Context::current().done().await });
        ctx.cancel_with(Cause("to the task"));
        assert_eq!(word(&waiting.await.unwrap()), Some("to the task"));
    });
}

#[test]
fn a_plain_spawn_starts_without_it() {
    on_both(|| async {
        let plain = named("a").scope(async { tokio::spawn(async { current() }).await.unwrap() }).await;
        assert_eq!(plain, "background");
        let blocking =
            named("a").scope(async { tokio::task::spawn_blocking(current).await.unwrap() }).await;
        assert_eq!(blocking, "background");
    });
}

#[test]
fn a_spawned_task_sees_the_end_and_is_not_stopped() {
    on_both(|| async {
        let ctx = BACKGROUND.with_cancel();
        let (resume, resumed) = oneshot::channel();
        let task = ctx.spawn(async {
            resumed.await.unwrap();
            Context::current().is_done()
        });
        ctx.cancel();
        resume.send(()).unwrap();
        assert!(task.await.unwrap());
    });
}

#[test]
fn a_spawned_task_can_be_aborted_and_panics_like_any_other() {
    on_both(|| async {
        let task = named("a").spawn(pending::<()>());
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        let task = named("a").spawn(async { panic!("in {}", current()) });
        let panic = task.await.unwrap_err().into_panic();
        assert_eq!(*panic.downcast::<String>().unwrap(), "in a");
    });
}

#[tokio::test(start_paused = true)]
async fn within_makes_its_context_current() {
    let (budget, name) = named("a")
        .within(ms(50), async |ctx: Context| {
            assert_eq!(Context::current().deadline(), ctx.deadline());
            (Context::current().remaining(), current())
        })
        .await
        .unwrap();
    assert_eq!((budget, name), (Some(ms(50)), "a"));
    assert_eq!(current(), "background");
}

/// The current context is found in nested code that does not know about contexts.
#[test]
fn a_value_is_reached_through_code_that_does_not_know_it() {
    fn log_line() -> String {
        format!("[{}]", current())
    }
    async fn library<F: Future>(f: F) -> F::Output {
        tokio::task::yield_now().await;
        f.await
    }
    on_both(|| async {
        let ctx = named("request 7");
        let line = ctx.scope(library(async { log_line() })).await;
        assert_eq!(line, "[request 7]");
    });
}
