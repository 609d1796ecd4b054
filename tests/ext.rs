//! `bounded_by` on futures and on streams, which end with the context.

mod common;

mod futures_are_bounded {
    use std::future::{pending, ready};
    use std::pin::pin;
    use std::task::{Poll, Waker};

    use tokio::sync::oneshot;
    use tokio::time::Instant;
    use tokio_ctx::{Context, FutureExt as _};

    use crate::common::{Cause, Drops, LONG, assert_same, ended, ms, on_both, poll, word};

    static BACKGROUND: Context = Context::background();

    #[tokio::test(start_paused = true)]
    async fn to_their_result_or_the_contexts_end() {
        let start = Instant::now();
        let ctx = BACKGROUND.with_timeout(ms(100));
        assert_eq!(ready(1).bounded_by(&ctx).await.unwrap(), 1);
        tokio::time::sleep(ms(40)).bounded_by(&ctx).await.unwrap();
        let error = tokio::time::sleep(LONG).bounded_by(&ctx).await.unwrap_err();
        assert!(start.elapsed() >= ms(100) && start.elapsed() <= ms(101));
        assert_same(&error, &ended(&ctx));
        assert_eq!(ready(2).bounded_by(&BACKGROUND).await.unwrap(), 2);
    }

    #[test]
    fn and_not_polled_if_the_context_has_ended() {
        on_both(|| async {
            let ctx = BACKGROUND.with_cancel();
            ctx.cancel_with(Cause("dead"));
            let work = async { unreachable!("a dead context started work") };
            let error = work.bounded_by(&ctx).await.unwrap_err();
            assert_eq!(word(&error), Some("dead"));
        });
    }

    #[test]
    fn with_a_ready_result_before_the_end() {
        let ctx = BACKGROUND.with_cancel();
        let (send, receive) = oneshot::channel();
        let mut bounded = pin!(receive.bounded_by(&ctx));
        assert!(poll(bounded.as_mut(), Waker::noop()).is_pending());
        send.send(3).unwrap();
        ctx.cancel();
        assert!(matches!(poll(bounded.as_mut(), Waker::noop()), Poll::Ready(Ok(Ok(3)))));
    }

    #[test]
    fn and_dropped_before_they_return() {
        let ctx = BACKGROUND.with_cancel();
        let drops = Drops::default();
        let counted = drops.counted();
        let work = async move {
            let _counted = counted;
            pending::<()>().await;
        };
        let mut bounded = pin!(work.bounded_by(&ctx));
        assert!(poll(bounded.as_mut(), Waker::noop()).is_pending());
        ctx.cancel();
        assert!(matches!(poll(bounded.as_mut(), Waker::noop()), Poll::Ready(Err(_))));
        assert_eq!(drops.count(), 1);
    }
}

mod streams_are_bounded {
    use std::pin::{Pin, pin};
    use std::sync::Arc;
    use std::task::{self, Poll, Waker};
    use std::thread;

    use futures::stream::{FusedStream as _, Stream};
    use futures::{StreamExt as _, stream};
    use tokio::sync::{mpsc, oneshot};
    use tokio::time::{Instant, advance};
    use tokio_ctx::{Context, StreamExt as _};
    use tokio_stream::wrappers::{IntervalStream, UnboundedReceiverStream};

    use crate::common::{Cause, Drops, HANG, LONG, Wakes, answer, ended, ms, on_both};

    static BACKGROUND: Context = Context::background();

    fn poll_next<S: Stream>(stream: Pin<&mut S>, waker: &Waker) -> Poll<Option<S::Item>> {
        stream.poll_next(&mut task::Context::from_waker(waker))
    }

    #[tokio::test]
    async fn item_by_item_to_their_own_end() {
        let ctx = BACKGROUND.with_cancel();
        let items: Vec<_> = stream::iter(1..=5).bounded_by(&ctx).collect().await;
        assert_eq!(items, [1, 2, 3, 4, 5]);
        assert!(answer(&ctx).is_none(), "the end of the stream ended the context");
        assert_eq!(stream::iter(1..=5).bounded_by(&BACKGROUND).count().await, 5);
    }

    #[tokio::test(start_paused = true)]
    async fn to_the_deadline() {
        let start = Instant::now();
        let ctx = BACKGROUND.with_timeout(ms(100));
        let ticks = IntervalStream::new(tokio::time::interval(ms(30)));
        let ticked = ticks.bounded_by(&ctx).count().await;
        assert_eq!(ticked, 4, "at 0, 30, 60 and 90 ms");
        assert!(start.elapsed() >= ms(100) && start.elapsed() <= ms(101));
        assert!(ended(&ctx).is_deadline_exceeded());
    }

    #[test]
    fn to_a_cancel_while_they_wait() {
        on_both(|| async {
            let scope = BACKGROUND.with_cancel();
            let ctx = scope.clone();
            let (send, receive) = mpsc::unbounded_channel();
            let (got, has_got) = oneshot::channel();
            let task = tokio::spawn(async move {
                let mut items = pin!(UnboundedReceiverStream::new(receive).bounded_by(&ctx));
                let first = items.next().await;
                got.send(first).unwrap();
                (items.next().await, items.next().await)
            });
            send.send(1).unwrap();
            assert_eq!(has_got.await.unwrap(), Some(1));
            scope.cancel();
            assert_eq!(task.await.unwrap(), (None, None));
        });
    }

    #[tokio::test]
    async fn to_no_items_by_an_ended_context() {
        let ctx = BACKGROUND.with_cancel();
        ctx.cancel_with(Cause("dead"));
        let polled =
            stream::poll_fn(|_| -> Poll<Option<()>> { unreachable!("polled under an ended context") });
        assert_eq!(polled.bounded_by(&ctx).next().await, None);

        // Created before the end, and first polled after it.
        let ctx = BACKGROUND.with_cancel();
        let polled =
            stream::poll_fn(|_| -> Poll<Option<()>> { unreachable!("polled under an ended context") });
        let mut bounded = pin!(polled.bounded_by(&ctx));
        ctx.cancel();
        assert_eq!(bounded.next().await, None);
    }

    /// A stream that is always ready does not hide the end.
    #[test]
    fn also_if_they_are_always_ready() {
        on_both(|| async {
            let (ctx, guard) = BACKGROUND.with_cancel().split();
            let (started, has_started) = oneshot::channel();
            let canceler = thread::spawn(move || {
                has_started.blocking_recv().unwrap();
                guard.cancel();
            });
            started.send(()).unwrap();
            let endless = stream::repeat(()).bounded_by(&ctx).count();
            tokio::time::timeout(HANG, endless).await.expect("never ended");
            canceler.join().unwrap();

            let ctx = BACKGROUND.with_timeout(ms(10));
            stream::repeat(()).bounded_by(&ctx).count().await;
            assert!(ended(&ctx).is_deadline_exceeded());
        });
    }

    /// A busy channel uses up the task's cooperative budget. The end is seen nevertheless.
    #[test]
    fn also_if_they_exhaust_the_tasks_budget() {
        on_both(|| async {
            let ctx = BACKGROUND.with_timeout(ms(10));
            let (send, receive) = mpsc::unbounded_channel();
            send.send(()).unwrap();
            let mut items = pin!(UnboundedReceiverStream::new(receive).bounded_by(&ctx));
            while items.next().await.is_some() {
                send.send(()).unwrap();
            }
            assert!(ended(&ctx).is_deadline_exceeded());
        });
    }

    #[test]
    fn and_lose_no_item() {
        let ctx = BACKGROUND.with_cancel();
        let (send, receive) = mpsc::unbounded_channel();
        let receive = std::cell::RefCell::new(receive);
        let mut bounded =
            pin!(stream::poll_fn(|cx| receive.borrow_mut().poll_recv(cx)).bounded_by(&ctx));
        send.send(1).unwrap();
        assert_eq!(poll_next(bounded.as_mut(), Waker::noop()), Poll::Ready(Some(1)));
        assert_eq!(poll_next(bounded.as_mut(), Waker::noop()), Poll::Pending);
        send.send(2).unwrap();
        ctx.cancel();
        assert_eq!(poll_next(bounded.as_mut(), Waker::noop()), Poll::Ready(None));
        // Items that were not returned are still in the source.
        assert_eq!(receive.borrow_mut().try_recv(), Ok(2));
    }

    #[test]
    fn and_are_dropped_when_they_end_and_stay_ended() {
        let ctx = BACKGROUND.with_cancel();
        let drops = Drops::default();
        let counted = drops.counted();
        let endless = stream::poll_fn(move |_| {
            let _ = &counted;
            Poll::Ready(Some(()))
        });
        let mut bounded = pin!(endless.bounded_by(&ctx));
        assert!(poll_next(bounded.as_mut(), Waker::noop()).is_ready());
        assert!(!bounded.is_terminated());
        ctx.cancel();
        assert_eq!(drops.count(), 0);
        assert_eq!(poll_next(bounded.as_mut(), Waker::noop()), Poll::Ready(None));
        assert_eq!(drops.count(), 1);
        assert!(bounded.is_terminated());
        assert_eq!(poll_next(bounded.as_mut(), Waker::noop()), Poll::Ready(None));
    }

    #[test]
    fn and_are_woken_by_their_item_and_by_the_end() {
        let ctx = BACKGROUND.with_cancel();
        let (send, receive) = mpsc::unbounded_channel();
        let mut bounded = pin!(UnboundedReceiverStream::new(receive).bounded_by(&ctx));
        let (wakes, waker) = Wakes::new();
        assert!(poll_next(bounded.as_mut(), &waker).is_pending());
        send.send(1).unwrap();
        assert_eq!(wakes.count(), 1);
        assert_eq!(poll_next(bounded.as_mut(), &waker), Poll::Ready(Some(1)));
        assert!(poll_next(bounded.as_mut(), &waker).is_pending());
        ctx.cancel();
        assert_eq!(wakes.count(), 2);
        assert_eq!(poll_next(bounded.as_mut(), &waker), Poll::Ready(None));
    }

    #[test]
    fn and_leave_no_waker_when_dropped() {
        let ctx = BACKGROUND.with_cancel();
        let (wakes, waker) = Wakes::new();
        {
            let mut bounded = pin!(stream::pending::<()>().bounded_by(&ctx));
            assert!(poll_next(bounded.as_mut(), &waker).is_pending());
        }
        drop(waker);
        assert_eq!(Arc::strong_count(&wakes), 1);
        ctx.cancel();
    }

    /// It also keeps none after an item was returned, or after the end of the stream or of the context. Code that keeps
    /// the stream then keeps no task alive.
    #[tokio::test(start_paused = true)]
    async fn and_leave_no_waker_unless_they_are_pending() {
        let parent = BACKGROUND.with_timeout(LONG * 2);
        let child = parent.with_cancel();
        for ctx in [BACKGROUND.with_cancel(), BACKGROUND.with_timeout(LONG), child] {
            let (wakes, waker) = Wakes::new();
            for last in ["item", "dry", "end"] {
                let (send, receive) = mpsc::unbounded_channel();
                let mut bounded = pin!(UnboundedReceiverStream::new(receive).bounded_by(&ctx));
                for item in 0..3 {
                    assert!(poll_next(bounded.as_mut(), &waker).is_pending());
                    send.send(item).unwrap();
                    assert_eq!(poll_next(bounded.as_mut(), &waker), Poll::Ready(Some(item)));
                    assert_eq!(Arc::strong_count(&wakes), 2, "a waker was kept by an item");
                }
                assert!(poll_next(bounded.as_mut(), &waker).is_pending());
                match last {
                    "item" => send.send(3).unwrap(),
                    "dry" => drop(send),
                    _ if ctx.deadline().is_some_and(|at| at <= Instant::now() + LONG) => {
                        advance(LONG + ms(1)).await;
                    }
                    _ => ctx.cancel(),
                }
                assert!(poll_next(bounded.as_mut(), &waker).is_ready());
                assert_eq!(Arc::strong_count(&wakes), 2, "a waker was kept at the {last}");
            }
        }
    }

    #[test]
    fn and_their_size_hint_has_no_lower_bound() {
        let ctx = BACKGROUND.with_cancel();
        assert_eq!(stream::iter(1..=5).bounded_by(&ctx).size_hint(), (0, Some(5)));
        assert_eq!(stream::repeat(()).bounded_by(&ctx).size_hint(), (0, None));
    }

    #[tokio::test(start_paused = true)]
    async fn by_an_unobserved_deadline() {
        let ctx = BACKGROUND.with_timeout(ms(100));
        let mut bounded = pin!(stream::repeat(()).bounded_by(&ctx));
        assert_eq!(bounded.next().await, Some(()));
        advance(LONG).await;
        assert_eq!(bounded.next().await, None);
    }
}

mod streams_are_checked {
    use std::io;
    use std::pin::{Pin, pin};
    use std::task::{self, Poll, Waker};

    use futures::stream::{self, FusedStream as _, Stream, StreamExt as _};
    use tokio::sync::mpsc;
    use tokio_ctx::{Context, Error, StreamExt as _};
    use tokio_stream::wrappers::UnboundedReceiverStream;

    use crate::common::{Cause, Drops, assert_same, ended, ms, on_both, word};

    static BACKGROUND: Context = Context::background();

    fn poll_next<S: Stream>(stream: Pin<&mut S>) -> Poll<Option<S::Item>> {
        stream.poll_next(&mut task::Context::from_waker(Waker::noop()))
    }

    #[tokio::test(start_paused = true)]
    async fn with_the_reason_as_the_last_item() {
        let ctx = BACKGROUND.with_timeout(ms(50));
        let source = stream::iter([1, 2]).chain(stream::pending());
        let items: Vec<_> = source.checked_by(&ctx).collect().await;
        assert!(matches!(items[..2], [Ok(1), Ok(2)]));
        assert_eq!(items.len(), 3);
        assert_same(items[2].as_ref().unwrap_err(), &ended(&ctx));
    }

    #[tokio::test]
    async fn without_one_if_they_end_first() {
        let ctx = BACKGROUND.with_cancel();
        let mut bounded = pin!(stream::iter([1]).checked_by(&ctx));
        assert!(matches!(bounded.next().await, Some(Ok(1))));
        assert!(bounded.next().await.is_none());
        ctx.cancel();
        assert!(bounded.next().await.is_none(), "it had ended before");
    }

    #[test]
    fn and_dropped_before_the_reason_is_returned_once() {
        let ctx = BACKGROUND.with_cancel();
        let drops = Drops::default();
        let counted = drops.counted();
        let endless = stream::poll_fn(move |_| {
            let _ = &counted;
            Poll::Ready(Some(()))
        });
        let mut checked = pin!(endless.checked_by(&ctx));
        assert!(matches!(poll_next(checked.as_mut()), Poll::Ready(Some(Ok(())))));
        assert!(!checked.is_terminated());
        ctx.cancel_with(Cause("enough"));
        let Poll::Ready(Some(Err(error))) = poll_next(checked.as_mut()) else { panic!("no reason") };
        assert_eq!(word(&error), Some("enough"));
        assert_eq!(drops.count(), 1);
        assert!(checked.is_terminated());
        assert!(matches!(poll_next(checked.as_mut()), Poll::Ready(None)));
    }

    #[tokio::test]
    async fn with_only_the_reason_by_an_ended_context() {
        let ctx = BACKGROUND.with_cancel();
        ctx.cancel();
        let polled =
            stream::poll_fn(|_| -> Poll<Option<()>> { unreachable!("polled under an ended context") });
        let items: Vec<_> = polled.checked_by(&ctx).collect().await;
        assert!(matches!(items[..], [Err(_)]));
    }

    /// A stream of results keeps its error type, and continues after its own errors.
    #[test]
    fn and_results_stay_results() {
        on_both(|| async {
            let ctx = BACKGROUND.with_cancel();
            let (send, receive) = mpsc::unbounded_channel::<io::Result<u32>>();
            send.send(Ok(1)).unwrap();
            send.send(Err(io::ErrorKind::InvalidData.into())).unwrap();
            send.send(Ok(2)).unwrap();
            let mut results = pin!(UnboundedReceiverStream::new(receive).try_bounded_by(&ctx));
            assert_eq!(results.next().await.unwrap().unwrap(), 1);
            let own = results.next().await.unwrap().unwrap_err();
            assert_eq!(own.kind(), io::ErrorKind::InvalidData);
            assert_eq!(results.next().await.unwrap().unwrap(), 2);
            ctx.cancel_with(Cause("enough"));
            let error = results.next().await.unwrap().unwrap_err();
            let inner = error.get_ref().unwrap().downcast_ref::<Error>().unwrap();
            assert_eq!(word(inner), Some("enough"));
            assert!(results.is_terminated());
            assert!(results.next().await.is_none());
            assert!(send.is_closed(), "the source is dropped");
        });
    }

    #[test]
    fn and_their_size_hint_includes_the_reason() {
        let ctx = BACKGROUND.with_cancel();
        let mut checked = pin!(stream::iter(1..=5).checked_by(&ctx));
        assert_eq!(checked.size_hint(), (0, Some(6)));
        assert_eq!(stream::repeat(()).checked_by(&ctx).size_hint(), (0, None));
        let results = stream::iter([Ok::<_, Error>(1)]).try_bounded_by(&ctx);
        assert_eq!(results.size_hint(), (0, Some(2)));
        ctx.cancel();
        assert!(poll_next(checked.as_mut()).is_ready());
        assert_eq!(checked.size_hint(), (0, Some(0)));
    }
}
