//! Queues of items that carry their context: overdue items are skipped, counted and reported.

mod common;

use std::future::pending;
use std::pin::pin;
use std::sync::{Arc, Mutex};

use common::{LONG, ms};
use futures::StreamExt as _;
use tokio::sync::mpsc::{channel, unbounded_channel};
use tokio::time::{Instant, advance, sleep, timeout};
use tokio_ctx::Context;
use tokio_ctx::budget::Queue;

static BACKGROUND: Context = Context::background();

#[tokio::test(start_paused = true)]
async fn items_whose_context_has_ended_are_skipped_counted_and_reported() {
    let (sender, receiver) = channel(8);
    let reported = Arc::new(Mutex::new(Vec::new()));
    let mut queue = Queue::from(receiver).on_skip({
        let reported = reported.clone();
        move |carried, why| reported.lock().unwrap().push((*carried.item(), why))
    });
    let (canceled, timed) = (BACKGROUND.with_cancel(), BACKGROUND.with_timeout(ms(10)));
    let idle = BACKGROUND.with_idle(ms(10));
    for (item, ctx) in
        [(1, canceled.context()), (2, timed.context()), (3, &BACKGROUND), (4, idle.context())]
    {
        sender.send(ctx.carry(item)).await.unwrap();
    }
    drop(sender);
    canceled.cancel_with("client left");
    advance(ms(10)).await;
    assert_eq!(*queue.recv().await.unwrap().item(), 3);
    assert!(queue.recv().await.is_none());
    assert_eq!(queue.skipped().get(), 3);
    let reported = reported.lock().unwrap();
    assert_eq!(reported.iter().map(|(item, _)| *item).collect::<Vec<_>>(), [1, 2, 4]);
    assert_eq!(reported[0].1.context_error().unwrap().cause().unwrap().to_string(), "client left");
    assert!(reported[1..].iter().all(|(_, why)| why.context_error().unwrap().is_deadline_exceeded()));
}

#[tokio::test(start_paused = true)]
async fn items_with_too_little_time_left_are_skipped_with_the_line_of_their_budget() {
    let (sender, receiver) = unbounded_channel();
    let reported = Arc::new(Mutex::new(None));
    let mut queue = Queue::from(receiver).least(ms(20)).on_skip({
        let reported = reported.clone();
        move |_, why| *reported.lock().unwrap() = Some(why)
    });
    let [short, just] = [19, 20].map(|left| BACKGROUND.with_timeout(ms(left)));
    let set_at = line!() - 1;
    sender.send(short.carry("short")).unwrap();
    sender.send(just.carry("just")).unwrap();
    assert_eq!(*queue.recv().await.unwrap().item(), "just");
    let why = reported.lock().unwrap().take().unwrap();
    assert_eq!((why.required(), why.left()), (ms(20), ms(19)));
    assert_eq!(why.set_at().unwrap().line(), set_at);
}

#[tokio::test]
async fn skipping_many_items_lets_other_tasks_run() {
    let (sender, receiver) = unbounded_channel();
    let dead = BACKGROUND.with_cancel();
    dead.cancel();
    for item in 0..100_000 {
        sender.send(dead.carry(item)).unwrap();
    }
    let mut queue = Queue::from(receiver);
    let skipped = queue.skipped();
    let mut polls = 0;
    tokio::select! {
        biased;
        _ = queue.recv() => unreachable!("a sender is there"),
        () = async { while skipped.get() < 100_000 { polls += 1; tokio::task::yield_now().await; } } => {}
    }
    assert!(polls > 100, "{polls}");
    drop(sender);
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_is_dropped_loses_no_item() {
    let (sender, receiver) = channel(8);
    let mut queue = Queue::from(receiver);
    for item in 0..20 {
        assert!(timeout(ms(1), queue.recv()).await.is_err());
        sender.send(BACKGROUND.carry(item)).await.unwrap();
        assert_eq!(*queue.recv().await.unwrap().item(), item);
    }
    drop(sender);
    assert_eq!(queue.count().await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_pool_runs_each_item_under_its_context_and_checks_it_when_a_worker_is_free() {
    let (sender, receiver) = unbounded_channel();
    for item in 0..10_u64 {
        sender.send(BACKGROUND.with_value(item).with_timeout(ms(35)).detach().carry(item)).unwrap();
    }
    drop(sender);
    let queue = Queue::from(receiver).least(ms(10));
    let (skipped, done) = (queue.skipped(), Arc::new(Mutex::new(Vec::new())));
    let pool = BACKGROUND.with_value("the pool's").with_cancel();
    let work = |ctx: Context, item: u64| {
        let done = done.clone();
        async move {
            assert_eq!((ctx.value(), ctx.value()), (Some(&item), Some(&"the pool's")));
            assert_eq!(Context::current().value(), Some(&item));
            if ctx.sleep(ms(10)).await.is_ok() {
                done.lock().unwrap().push(item);
            }
        }
    };
    queue.for_each_task(&pool, 2, work).await.unwrap();
    // At 0, 10 and 20 ms; at 30 there is too little time.
    assert_eq!(*done.lock().unwrap(), [0, 1, 2, 3, 4, 5]);
    assert_eq!(skipped.get(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_pool_ends_with_its_context_and_so_do_its_items() {
    let (sender, receiver) = channel(8);
    let (queue, pool) = (Queue::from(receiver), BACKGROUND.with_cancel());
    for item in 0..3 {
        sender.send(BACKGROUND.carry(item)).await.unwrap();
    }
    let reported = Arc::new(Mutex::new(0));
    let work = |ctx: Context, _| {
        let reported = reported.clone();
        async move {
            ctx.done().await;
            *reported.lock().unwrap() += 1;
        }
    };
    let cancel = async {
        sleep(ms(5)).await;
        pool.cancel_with("shutting down");
    };
    let (ended, ()) = tokio::join!(queue.for_each_task(&pool, 2, work), cancel);
    assert_eq!(ended.unwrap_err().cause().unwrap().to_string(), "shutting down");
    assert_eq!(*reported.lock().unwrap(), 2);
    assert!(sender.send(BACKGROUND.carry(9)).await.is_err(), "the channel is closed");
}

#[tokio::test(start_paused = true)]
async fn an_item_that_ends_or_panics_does_not_affect_others() {
    let (sender, receiver) = unbounded_channel();
    let short = BACKGROUND.with_timeout(ms(10));
    sender.send(short.carry(0)).unwrap();
    sender.send(BACKGROUND.carry(1)).unwrap();
    drop(sender);
    let done = Arc::new(Mutex::new(Vec::new()));
    let work = |ctx: Context, item| {
        let done = done.clone();
        async move {
            let through = ctx.sleep(ms(20)).await.is_ok();
            done.lock().unwrap().push((item, through));
        }
    };
    Queue::from(receiver).for_each_task(&BACKGROUND, 2, work).await.unwrap();
    assert_eq!(*done.lock().unwrap(), [(0, false), (1, true)]);

    let (sender, receiver) = unbounded_channel();
    sender.send(BACKGROUND.carry(())).unwrap();
    drop(sender);
    let pool = tokio::spawn(async {
        Queue::from(receiver).for_each_task(&BACKGROUND, 1, |_, ()| async { panic!("the work") }).await
    });
    assert!(pool.await.unwrap_err().is_panic());
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_is_dropped_aborts_its_tasks() {
    struct OnDrop(Arc<Mutex<u32>>);
    impl Drop for OnDrop {
        fn drop(&mut self) {
            *self.0.lock().unwrap() += 1;
        }
    }
    let (sender, receiver) = unbounded_channel();
    let dropped = Arc::new(Mutex::new(0));
    for _ in 0..3 {
        sender.send(BACKGROUND.carry(OnDrop(dropped.clone()))).unwrap();
    }
    let begun = Instant::now();
    {
        let work = |_, item| async move {
            let _item = item;
            pending::<()>().await;
        };
        let pool = pin!(Queue::from(receiver).for_each_task(&BACKGROUND, 2, work));
        assert!(timeout(ms(5), pool).await.is_err());
    }
    tokio::task::yield_now().await;
    assert_eq!(*dropped.lock().unwrap(), 3);
    assert!(begun.elapsed() < LONG);
}
