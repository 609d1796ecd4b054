//! `with_cancel_when`: any future as the reason, and nothing left behind.

mod common;

use std::future::{pending, ready};

use common::{
    Cause, Drops, assert_same, current_thread, ended, ms, multi_thread, on_both, panic_text, paused,
    spin_until, watched, word,
};
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio_ctx::Context;

static BACKGROUND: Context = Context::background();

async fn no_task_is_left() {
    while Handle::current().metrics().num_alive_tasks() != 0 {
        tokio::task::yield_now().await;
    }
}

#[test]
fn its_output_is_the_cause_and_its_line_the_origin() {
    on_both(|| async {
        let (stop, stopped) = oneshot::channel();
        let line = line!() + 1;
        let ctx = BACKGROUND.with_cancel_when(async { stopped.await.unwrap() });
        let child = ctx.with_cancel();
        assert!(!ctx.is_done());
        stop.send(Cause("asked to")).unwrap();
        let error = child.done().await;
        assert!(error.is_canceled());
        assert_eq!(word(&error), Some("asked to"));
        assert_eq!(error.origin().canceled_at().unwrap().line(), line);
        assert_same(&error, &ended(&ctx));
        no_task_is_left().await;
    });
}

#[test]
fn a_flag_that_changes_ends_it() {
    on_both(|| async {
        let (flag, mut watched) = watch::channel(0);
        let reason = async move { format!("flag {}", *watched.wait_for(|n| *n > 1).await.unwrap()) };
        let ctx = BACKGROUND.with_cancel_when(reason);
        flag.send(1).unwrap();
        tokio::task::yield_now().await;
        assert!(!ctx.is_done());
        flag.send(2).unwrap();
        assert_eq!(ctx.done().await.cause().unwrap().to_string(), "flag 2");
    });
}

#[test]
fn one_that_is_ready_ends_it_soon() {
    on_both(|| async {
        let ctx = BACKGROUND.with_cancel_when(ready("at once"));
        assert_eq!(ctx.done().await.cause().unwrap().to_string(), "at once");
    });
}

#[test]
fn an_ended_context_does_not_poll_it() {
    on_both(|| async {
        let parent = BACKGROUND.with_cancel();
        parent.cancel_with(Cause("dead"));
        let reason = async { unreachable!("a dead context started work") as &str };
        let ctx = parent.with_cancel_when(reason);
        assert_eq!(word(&ended(&ctx)), Some("dead"));
        no_task_is_left().await;
    });
}

#[test]
fn another_end_drops_it() {
    on_both(|| async {
        for end in 0..3 {
            let above = BACKGROUND.with_cancel();
            let parent = above.with_timeout(if end == 0 { ms(5) } else { common::LONG });
            let drops = Drops::default();
            let counted = drops.counted();
            let scope = parent.with_cancel_when(async move {
                let _counted = counted;
                pending::<&str>().await
            });
            let ctx = scope.clone();
            tokio::task::yield_now().await;
            match end {
                0 => drop(ctx.done().await),
                1 => drop(above),
                _ => drop(scope),
            }
            no_task_is_left().await;
            assert_eq!(drops.count(), 1);
            assert!(ended(&ctx).cause().is_none());
        }
    });
}

#[test]
fn its_context_is_the_parent() {
    on_both(|| async {
        let ctx = BACKGROUND.with_value(7_u8).with_cancel_when(async {
            assert!(!Context::current().is_done());
            format!("{:?}", Context::current().value::<u8>())
        });
        assert_eq!(ctx.value::<u8>(), Some(&7));
        assert_eq!(ctx.done().await.cause().unwrap().to_string(), "Some(7)");
    });
}

#[test]
fn a_panic_ends_it_and_is_the_cause() {
    on_both(|| async {
        let reason = async {
            tokio::task::yield_now().await;
            panic!("no lease {}", 3);
            #[allow(unreachable_code)]
            "unreachable"
        };
        let ctx = BACKGROUND.with_cancel_when(reason);
        let error = ctx.done().await;
        assert_eq!(
            error.cause().unwrap().to_string(),
            "the future that was to end the context panicked: no lease 3"
        );
        no_task_is_left().await;
    });
}

#[test]
fn a_runtime_that_shuts_down_ends_it_as_well() {
    watched(|| {
        for runtime in [current_thread(), multi_thread(1)] {
            let ctx = runtime.block_on(async { BACKGROUND.with_cancel_when(pending::<&str>()) });
            assert!(!ctx.is_done());
            drop(runtime);
            let error = ended(&ctx);
            let text = error.cause().unwrap().to_string();
            assert!(text.starts_with("the future given at tests/when.rs:"), "{text}");
            assert!(text.ends_with(" was dropped before it resolved"), "{text}");
            drop(ctx);
        }
    });
}

#[test]
fn detached_it_is_left_to_the_future() {
    on_both(|| async {
        let (stop, stopped) = oneshot::channel::<&str>();
        let ctx = BACKGROUND.with_cancel_when(async { stopped.await.unwrap() }).detach();
        tokio::task::yield_now().await;
        assert!(!ctx.is_done());
        stop.send("done").unwrap();
        assert!(ctx.done().await.is_canceled());
    });
}

#[test]
fn the_first_end_decides_in_a_race() {
    watched(|| {
        let runtime = multi_thread(2);
        runtime.block_on(async {
            for _round in 0..500 {
                let (stop, stopped) = oneshot::channel();
                let (ctx, guard) = BACKGROUND.with_cancel_when(async { stopped.await.unwrap() }).split();
                let rival = tokio::spawn(async move { guard.cancel_with(Cause("guard")) });
                stop.send(Cause("future")).unwrap_or(());
                let first = word(&ctx.done().await);
                assert!(matches!(first, Some("guard" | "future")));
                rival.await.unwrap();
                assert_eq!(word(&ended(&ctx)), first);
            }
        });
        spin_until(|| runtime.metrics().num_alive_tasks() == 0);
    });
}

#[test]
fn a_deadline_that_comes_first_wins() {
    paused().block_on(async {
        let parent = BACKGROUND.with_timeout(ms(10));
        let ctx = parent.with_cancel_when(async {
            tokio::time::sleep(ms(20)).await;
            "too late"
        });
        assert!(ctx.done().await.is_deadline_exceeded());
    });
}

#[test]
fn outside_a_runtime_it_panics_as_tokio_does() {
    let text = panic_text(|| drop(BACKGROUND.with_cancel_when(pending::<&str>())));
    assert!(text.contains("no reactor running"), "{text}");
}
