//! The contents of a snapshot: work that is still running after its end, everything that runs, and recent ends.
//!
//! There is one watch for the process, and tests run concurrently, so each test looks for its own lines and names.

#[path = "common/snapshot.rs"]
mod snapshot;

use std::future::pending;
use std::panic::Location;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use snapshot::{entry, is_gone, snapshot};
use tokio::sync::Notify;
use tokio::time::advance;
use tokio_ctx::shutdown::Fate;
use tokio_ctx::watch::{self, EndedLine, Entry, How, Kind, Lately, Phase, Snapshot, State, Watch};
use tokio_ctx::{CancelScope, Context, Error, Group, Shutdown};

const SECOND: Duration = Duration::from_secs(1);

/// Returns the line that is this many lines above the call.
#[track_caller]
fn line(above: u32) -> String {
    let here = Location::caller();
    format!("{}:{}", here.file(), here.line() - above)
}

fn of_line<'a>(snapshot: &'a Snapshot, line: &str) -> Vec<&'a Entry> {
    snapshot.entries.iter().filter(|entry| entry.line.to_string() == line).collect()
}

#[track_caller]
fn one<'a>(snapshot: &'a Snapshot, line: &str) -> &'a Entry {
    let found = of_line(snapshot, line);
    assert_eq!(found.len(), 1, "{line}: {found:#?}");
    found[0]
}

#[track_caller]
fn named<'a>(snapshot: &'a Snapshot, name: &str) -> &'a Entry {
    entry(snapshot, name).unwrap_or_else(|| panic!("{name} is not in the snapshot"))
}

fn ended<'a>(snapshot: &'a Snapshot, line: &str) -> Option<&'a EndedLine> {
    snapshot.ended.iter().find(|ended| ended.line.to_string() == line)
}

#[track_caller]
fn ended_now(line: &str) -> EndedLine {
    ended(&snapshot(), line)
        .unwrap_or_else(|| panic!("no work of {line} has ended and is still running"))
        .clone()
}

fn lately(line: &str, how: How) -> Option<Lately> {
    let lately = snapshot().lately;
    lately.into_iter().find(|lately| lately.how == how && lately.line.to_string() == line)
}

/// Returns the scope of a root that a watch has registered.
#[track_caller]
fn root() -> CancelScope {
    watch::install();
    Context::background().with_cancel()
}

mod ended_still_running {
    use super::*;

    #[tokio::test]
    async fn a_task_is_listed_by_its_line_until_it_ends() {
        let ctx = root();
        let started = Arc::new(Notify::new());
        let start = started.clone();
        let task = ctx.spawn(async move {
            start.notify_one();
            pending::<()>().await
        });
        let spawned = line(4);
        started.notified().await;
        assert!(ended(&snapshot(), &spawned).is_none());
        ctx.cancel_with("hung up");
        let canceled = line(1);

        let here = ended_now(&spawned);
        assert_eq!((here.kind, here.count, here.inside), (Kind::Task, 1, 0));
        assert_eq!((here.state, here.end.how), (State::Waiting, How::Canceled));
        assert_eq!(here.end.line.to_string(), canceled);
        assert_eq!(here.end.text, format!("context canceled at {canceled}"));
        assert_eq!(here.end.cause, None, "a cause is hidden");
        assert_eq!(here.end.cause_type, Some("&str"));
        task.abort();
        let _ = task.await;
        assert!(of_line(&snapshot(), &spawned).is_empty());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_busy_loop_is_distinguished_from_a_task_that_waits() {
        let ctx = root();
        let (go_on, blocked) = mpsc::channel::<()>();
        let (entered, inside) = mpsc::channel();
        let task = ctx.spawn(async move {
            entered.send(()).unwrap();
            let _over = blocked.recv();
        });
        let spawned = line(4);
        inside.recv().unwrap();
        ctx.cancel();

        let here = ended_now(&spawned);
        assert_eq!((here.state, here.inside), (State::Busy, 1));
        assert!(here.poll.unwrap().inside);
        drop(go_on);
        task.await.unwrap();
        assert!(of_line(&snapshot(), &spawned).is_empty());
    }

    #[tokio::test]
    async fn a_task_that_was_never_polled_is_shown_as_such() {
        let ctx = root();
        let task = ctx.spawn(pending::<()>());
        let spawned = line(1);
        ctx.cancel();
        assert_eq!(ended_now(&spawned).state, State::NeverPolled);
        task.abort();
        let _ = task.await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_shows_its_longest_entry() {
        let scopes: Vec<CancelScope> = (0..3).map(|_| root()).collect();
        let spawn = |ctx: &CancelScope| ctx.spawn(pending::<()>());
        let spawned = line(1);
        let tasks: Vec<_> = scopes.iter().map(spawn).collect();
        scopes[1].cancel_with("first");
        let first = line(1);
        advance(SECOND).await;
        scopes[0].cancel();
        scopes[2].cancel();
        let here = ended_now(&spawned);
        assert_eq!((here.count, here.end.line.to_string(), here.longest), (3, first, SECOND));
        tasks.iter().for_each(|task| task.abort());
    }

    #[tokio::test(start_paused = true)]
    async fn a_snapshot_shows_an_unnoticed_deadline_and_ends_nothing() {
        let ctx = root().detach().with_timeout(SECOND);
        let made = line(1);
        let below = ctx.with_cancel();
        let task = below.spawn(pending::<()>());
        let spawned = line(1);
        advance(SECOND / 2).await;
        assert_eq!(one(&snapshot(), &spawned).left, Some(SECOND / 2));
        advance(SECOND).await;
        let here = ended_now(&spawned);
        assert_eq!((here.end.how, here.longest), (How::Deadline, SECOND / 2));
        assert_eq!(here.end.line.to_string(), made);
        assert!(lately(&made, How::Deadline).is_none(), "the snapshot ended the context");
        assert!(below.is_done());
        assert!(lately(&made, How::Deadline).is_some());
        task.abort();
    }

    /// By an idle limit, by a deadline with a cause, and by the deadline of the second parent of a merged context.
    #[tokio::test(start_paused = true)]
    async fn other_ends_that_no_query_has_noticed_are_shown_and_not_settled() {
        let idle = root().detach().with_idle(SECOND);
        let limited = line(1);
        let timed = root().detach().with_timeout_cause(SECOND, "slow");
        let made = line(1);
        let merged = root().detach().merge(&timed);
        let below = [&idle, &timed, &merged].map(|ctx| ctx.with_cancel());
        let tasks = [
            below[0].spawn(pending::<()>()),
            below[1].spawn(pending::<()>()),
            below[2].spawn(pending::<()>()),
        ];
        let spawned = [line(4), line(3), line(2)];
        let expected = [(&limited, "NoProgress"), (&made, "&str"), (&made, "&str")];
        advance(SECOND / 2).await;
        assert!(spawned.iter().all(|line| ended(&snapshot(), line).is_none()));
        advance(SECOND).await;
        for (line, (set_at, cause)) in spawned.iter().zip(expected) {
            let here = ended_now(line);
            assert_eq!((here.end.how, here.longest), (How::Deadline, SECOND / 2), "{line}");
            assert_eq!((here.end.line.to_string(), here.end.cause_type), (set_at.clone(), Some(cause)));
        }
        assert!(lately(&limited, How::Deadline).is_none() && lately(&made, How::Deadline).is_none());
        assert!(below.iter().all(|ctx| ctx.is_done()));
        assert!(lately(&limited, How::Deadline).is_some() && lately(&made, How::Deadline).is_some());
        tasks.iter().for_each(|task| task.abort());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn blocking_functions_are_listed() {
        let ctx = root();
        let (go_on, blocked) = mpsc::channel::<()>();
        let (entered, inside) = mpsc::channel();
        let blocking = ctx.spawn_blocking(move || {
            entered.send(()).unwrap();
            blocked.recv()
        });
        let spawned = line(4);
        inside.recv().unwrap();
        ctx.cancel();
        let here = ended_now(&spawned);
        assert_eq!((here.kind, here.state), (Kind::Blocking, State::Busy));
        drop(go_on);
        let _ = blocking.await.unwrap();
        assert!(of_line(&snapshot(), &spawned).is_empty());
    }

    #[tokio::test]
    async fn members_of_groups_are_listed() {
        let ctx = root();
        let (mut group, _ctx) = Group::<(), Error>::new(&ctx);
        let made = line(1);
        group.spawn(pending());
        let spawned = line(1);
        tokio::task::yield_now().await;
        let before = snapshot();
        let (of_group, member) = (one(&before, &made), one(&before, &spawned));
        assert_eq!((of_group.kind, member.kind), (Kind::Group, Kind::Task));
        assert_eq!(member.parent, Some(of_group.id));
        ctx.cancel();
        assert_eq!(ended_now(&spawned).kind, Kind::Task);
        drop(group);
        tokio::task::yield_now().await;
        let after = snapshot();
        assert!(of_line(&after, &spawned).is_empty());
        assert!(of_line(&after, &made).iter().all(|entry| entry.kind != Kind::Group));
    }

    #[tokio::test]
    async fn a_cleanup_is_listed_while_it_runs() {
        let ctx = root();
        let go_on = Arc::new(Notify::new());
        let wait = go_on.clone();
        ctx.after_func(move || async move { wait.notified().await });
        let registered = line(1);
        assert_eq!(one(&snapshot(), &registered).kind, Kind::AfterFunc);
        ctx.cancel();
        tokio::task::yield_now().await;
        assert_eq!(ended_now(&registered).kind, Kind::AfterFunc);
        go_on.notify_one();
        tokio::task::yield_now().await;
        assert!(of_line(&snapshot(), &registered).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_held_context_is_listed_after_a_second_and_after_work() {
        let ctx = root().named("held");
        let held = ctx.clone();
        ctx.cancel();
        let is_held = |ended: &EndedLine| ended.name.as_deref() == Some("held");
        assert!(!snapshot().ended.iter().any(is_held));
        advance(2 * SECOND).await;
        let seen = snapshot();
        let at = seen.ended.iter().position(is_held).expect("a context that something keeps");
        assert_eq!(seen.ended[at].state, State::Held);
        // No work comes after it.
        let is_work = |ended: &EndedLine| seen.entry(ended.first).is_some_and(|entry| entry.is_work);
        assert!(!seen.ended[at..].iter().any(is_work));
        drop((held, ctx));
        is_gone("held");
    }
}

mod the_tree {
    use super::*;

    #[tokio::test]
    async fn descendants_that_are_waited_on_are_found() {
        let top = root().named("top of a tree");
        let middle = top.with_cancel();
        let made = line(1);
        let leaf = middle.with_timeout(60 * SECOND);
        let leaf_made = line(1);
        assert!(of_line(&snapshot(), &leaf_made).is_empty(), "nothing leads there yet");
        let mut done = tokio_test_waits(&leaf, 3);
        let seen = snapshot();
        let (top_entry, middle_entry) = (named(&seen, "top of a tree"), one(&seen, &made));
        let leaf_entry = one(&seen, &leaf_made);
        assert_eq!(
            (leaf_entry.parent, middle_entry.parent),
            (Some(middle_entry.id), Some(top_entry.id))
        );
        assert_eq!((leaf_entry.waiters, middle_entry.waiters), (3, 0));
        assert_eq!((top_entry.kind, leaf_entry.kind), (Kind::Named, Kind::Context));
        assert_eq!(leaf_entry.budget, Some(60 * SECOND));
        assert!(leaf_entry.age.is_some() && !leaf_entry.is_work);
        done.pop();
        let again = snapshot();
        assert_eq!(one(&again, &leaf_made).id, leaf_entry.id, "a number stays");
        assert_eq!(one(&again, &leaf_made).waiters, 2);
    }

    /// Returns waits that have been polled once.
    fn tokio_test_waits(ctx: &Context, count: usize) -> Vec<std::pin::Pin<Box<tokio_ctx::DoneOwned>>> {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        let wait = |_| {
            let mut done = Box::pin(ctx.done_owned());
            assert!(std::future::Future::poll(done.as_mut(), &mut cx).is_pending());
            done
        };
        (0..count).map(wait).collect()
    }

    #[tokio::test]
    async fn a_tree_shows_the_first_children() {
        let top = root().named("a wide one");
        let spawn = |_| top.spawn(pending::<()>());
        let tasks: Vec<_> = (0..1_198).map(spawn).collect();
        let seen = snapshot();
        let id = named(&seen, "a wide one").id;
        let text = seen.under(id).unwrap().to_string();
        assert_eq!(text.lines().count(), 1 + 8 + 1, "{text}");
        assert_eq!(text.lines().last(), Some("  … and 1,190 more"));
        assert!(text.starts_with("named a wide one tests/watch.rs:"), "{text}");
        let wider = seen.under(id).unwrap().breadth(2_000).to_string();
        assert_eq!(wider.lines().count(), 1 + 1_198);
        tasks.iter().for_each(|task| task.abort());
    }

    #[tokio::test]
    async fn a_snapshot_can_be_cut_to_the_most_important_entries() {
        let top = root().named("to be cut");
        let alive: Vec<_> = (0..50).map(|_| top.spawn(pending::<()>())).collect();
        let below = top.with_cancel();
        let late = below.spawn(pending::<()>());
        let spawned = line(1);
        below.cancel();
        let seen = snapshot();
        let id = named(&seen, "to be cut").id;
        let listed = seen.entries.len();
        let below_it = seen.below(id);
        assert_eq!(below_it.entries.len(), 53);
        assert_eq!(below_it.totals.unlisted, listed - 53);
        assert_eq!(below_it.entries[0].id, id);
        let cut = below_it.cut(4);
        assert_eq!((cut.entries.len(), cut.totals.unlisted), (4, listed - 4));
        assert!(!of_line(&cut, &spawned).is_empty(), "ended work is kept");
        assert_eq!(cut.entries[0].id, id);
        assert_eq!(cut.entries[0].children, 51, "what is there, listed or not");
        late.abort();
        alive.iter().for_each(|task| task.abort());
    }

    #[test]
    fn a_merged_context_is_under_its_first_parent_once() {
        let (one_parent, other) = (root().named("first parent"), root().named("second parent"));
        let both = one_parent.merge(&other);
        let made = line(1);
        let seen = snapshot();
        assert_eq!(one(&seen, &made).parent, Some(named(&seen, "first parent").id));
        other.cancel();
        let seen = snapshot();
        assert!(one_opt(&seen, &made).is_none_or(|entry| entry.end.is_some()));
        assert!(both.is_done());
    }

    fn one_opt<'a>(snapshot: &'a Snapshot, line: &str) -> Option<&'a Entry> {
        of_line(snapshot, line).first().copied()
    }

    #[test]
    fn a_deep_tree_needs_little_time_and_stack() {
        let deep = || {
            let top = root().named("a deep one").detach();
            let mut leaf = top.clone();
            for _ in 0..20_000 {
                leaf = leaf.with_cancel().detach();
            }
            let entry = leaf.named("the bottom");
            let seen = snapshot();
            let (top, bottom) = (named(&seen, "a deep one"), named(&seen, "the bottom"));
            let path = std::iter::successors(Some(bottom), |entry| seen.entry(entry.parent?));
            // A linear search for each entry would take quadratic time.
            assert!(path.take(50).count() == 50);
            let id = top.id;
            assert!(seen.below(id).entries.len() > 20_000);
            drop(entry);
        };
        thread::Builder::new().stack_size(512 * 1024).spawn(deep).unwrap().join().unwrap();
    }
}

mod lines {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn running_work_is_counted_by_line() {
        let roots: Vec<Context> = (0..3).map(|_| root().detach()).collect();
        let make = |nth: usize, secs| roots[nth].with_timeout(secs * SECOND);
        let scopes = [make(0, 50), make(1, 40), make(2, 60)];
        let made = line(2);
        advance(10 * SECOND).await;
        let seen = snapshot();
        // These contexts are not linked, and only their roots are registered.
        assert!(seen.alive.iter().all(|alive| alive.line.to_string() != made));
        let tasks = scopes.each_ref().map(|scope| scope.spawn_bounded(pending::<()>()));
        let spawned = line(1);
        tokio::task::yield_now().await;
        let seen = snapshot();
        let contexts = seen
            .alive
            .iter()
            .find(|alive| alive.line.to_string() == made && alive.kind == Kind::Context);
        let contexts = contexts.unwrap();
        assert_eq!((contexts.count, contexts.waiters), (3, 3));
        assert_eq!((contexts.oldest, contexts.least_left), (Some(10 * SECOND), Some(30 * SECOND)));
        let work = seen.alive.iter().find(|alive| alive.line.to_string() == spawned).unwrap();
        assert_eq!((work.kind, work.count, work.least_left), (Kind::Task, 3, Some(30 * SECOND)));
        tasks.iter().for_each(|task| task.abort());
    }

    #[tokio::test(start_paused = true)]
    async fn nearly_overdue_is_less_than_a_tenth_of_the_budget() {
        let ctx = root().detach().with_timeout(10 * SECOND);
        let task = ctx.spawn(pending::<()>());
        let spawned = line(1);
        let nearly = || {
            let nearly = snapshot().nearly_overdue;
            nearly.into_iter().find(|nearly| nearly.line.to_string() == spawned)
        };
        advance(9 * SECOND).await;
        assert!(nearly().is_none());
        advance(Duration::from_millis(1)).await;
        let nearly = nearly().unwrap();
        assert_eq!((nearly.left, nearly.budget), (Duration::from_millis(999), 10 * SECOND));
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn ends_are_counted_by_kind_and_line() {
        let parent = root();
        let make = |secs: u64| parent.with_timeout(Duration::from_secs(secs));
        let made = line(1);
        for lived in [1, 3] {
            let ctx = make(60);
            advance(lived * SECOND).await;
            ctx.cancel();
        }
        let expired = make(0);
        assert!(expired.is_done());
        // A dropped scope counts as an end only if another handle exists.
        let dropped = make(60);
        let seen = dropped.clone();
        drop(dropped);
        assert!(seen.is_done());
        for _ in 0..5 {
            assert!(expired.run(async {}).await.is_err());
        }
        assert!(make(9).require(10 * SECOND).is_err());

        let canceled = lately(&made, How::Canceled).unwrap();
        assert_eq!((canceled.count, canceled.total, canceled.cause_type), (2, 2, None));
        assert_eq!((canceled.mean_lived, canceled.max_lived), (Some(2 * SECOND), Some(3 * SECOND)));
        assert_eq!(lately(&made, How::Deadline).unwrap().count, 1);
        assert_eq!(lately(&made, How::Refused).unwrap().count, 6);
        advance(200 * SECOND).await;
        assert!(lately(&made, How::Canceled).is_none(), "that was too long ago");
    }

    #[tokio::test(start_paused = true)]
    async fn late_work_is_counted_by_class() {
        let ctx = root();
        let go_on = Arc::new(Notify::new());
        let wait = go_on.clone();
        let task = ctx.spawn(async move { wait.notified().await });
        let spawned = line(1);
        let on_time = root();
        let punctual = on_time.spawn(async {});
        let punctual_line = line(1);
        ctx.cancel();
        advance(5 * SECOND).await;
        go_on.notify_one();
        task.await.unwrap();
        punctual.await.unwrap();
        let classes = snapshot().late;
        assert_eq!(classes.len(), 6);
        assert!(classes[..5].iter().all(|class| class.up_to.is_some()) && classes[5].up_to.is_none());
        let lines = |class: &watch::LateClass, of: &str| {
            class.last.iter().filter(|late| late.line.to_string() == of).count()
        };
        assert_eq!(classes.iter().map(|class| lines(class, &spawned)).sum::<usize>(), 1);
        assert_eq!(lines(&classes[4], &spawned), 1, "five seconds are up to ten");
        assert_eq!(classes.iter().map(|class| lines(class, &punctual_line)).sum::<usize>(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_is_the_last_to_hold_its_context_is_late_as_well() {
        let go_on = Arc::new(Notify::new());
        let ctx = root();
        let wait = go_on.clone();
        let task = ctx.spawn(async move { wait.notified().await });
        let spawned = line(1);
        let grouped = root();
        let (mut group, _) = Group::<(), Error>::new(&grouped);
        let wait = go_on.clone();
        group.spawn(async move {
            wait.notified().await;
            Ok(())
        });
        let in_group = line(4);
        let kept = root();
        let wait = go_on.clone();
        let handed = kept.spawn_with(async move |ctx| {
            wait.notified().await;
            drop(ctx);
        });
        let handed_line = line(4);
        let aborted = root();
        let abort = aborted.spawn(std::future::pending::<()>());
        let aborted_line = line(1);
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
        for ctx in [ctx, grouped, kept, aborted] {
            ctx.cancel();
        }
        advance(5 * SECOND).await;
        go_on.notify_waiters();
        task.await.unwrap();
        handed.await.unwrap();
        abort.abort();
        assert!(abort.await.is_err());
        group.join().await.ok();
        let seen = snapshot();
        for line in [spawned, in_group, handed_line, aborted_line] {
            let is_it = |late: &&watch::Late| late.line.to_string() == line;
            assert_eq!(seen.late[4].last.iter().filter(is_it).count(), 1, "{line}: {seen}");
        }
    }
}

mod shutdowns {
    use super::*;

    fn state(line: &str) -> watch::ShutdownState {
        let states = snapshot().shutdowns;
        states.into_iter().find(|state| state.line.to_string() == line).expect("the shutdown is watched")
    }

    #[tokio::test(start_paused = true)]
    async fn the_snapshot_and_the_report_agree_in_every_phase() {
        watch::install();
        let shutdown = Shutdown::new(&Context::background()).grace(8 * SECOND).cleanup(2 * SECOND);
        let made = line(1);
        let stuck = shutdown.named("stuck").spawn(pending::<()>());
        let spawned = line(1);
        let _ticket = shutdown.named("held").ticket();
        let held = line(1);
        let polite = shutdown.named("polite").spawn(async { Context::current().done().await });
        assert_eq!(state(&made).phase, Phase::Running);
        assert_eq!((state(&made).running, state(&made).overdue), (3, 0));
        let report = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { shutdown.wait().await }
        });
        tokio::task::yield_now().await;

        shutdown.begin("SIGTERM");
        tokio::task::yield_now().await;
        advance(SECOND).await;
        let soft = state(&made);
        assert_eq!((soft.phase, soft.since, soft.left), (Phase::Soft, Some(SECOND), Some(7 * SECOND)));
        assert_eq!((soft.running, soft.overdue), (3, 0));
        assert_eq!(soft.why.unwrap().how, How::Canceled);

        tokio::time::sleep(8 * SECOND).await;
        let hard = state(&made);
        assert_eq!((hard.phase, hard.running, hard.overdue), (Phase::Hard, 2, 3));
        let waits_for: Vec<_> =
            hard.waits_for.iter().map(|waits| waits.name.as_deref().unwrap()).collect();
        assert_eq!((waits_for, hard.waits_for[0].overdue), (vec!["stuck", "held"], 1));
        assert_eq!(ended_now(&spawned).end.how, How::Shutdown);

        tokio::time::sleep(2 * SECOND).await;
        let abort = state(&made);
        assert_eq!((abort.phase, abort.running), (Phase::Abort, 1));
        drop(shutdown.clone().cleanup(Duration::MAX));
        assert!(state(&made).left.unwrap() > Duration::MAX / 2);

        let report = report.await.unwrap();
        assert_eq!(state(&made).phase, Phase::Over);
        assert_eq!(report.overdue().len(), state(&made).overdue);
        let still: Vec<_> =
            report.overdue().iter().filter(|late| late.fate() == Fate::Running).collect();
        assert_eq!(still.len(), state(&made).running);
        assert_eq!(still[0].name(), state(&made).waits_for[0].name.as_deref());
        let ticket = ended_now(&held);
        assert_eq!((ticket.kind, ticket.name.as_deref()), (Kind::Ticket, Some("held")));
        assert!(stuck.await.unwrap_err().is_cancelled());
        polite.await.unwrap();
        drop(shutdown);
        assert!(snapshot().shutdowns.iter().all(|state| state.line.to_string() != made));
    }

    #[tokio::test]
    async fn tasks_futures_and_tickets_are_work() {
        watch::install();
        let shutdown =
            Shutdown::new(&Context::background()).grace(Duration::ZERO).cleanup(Duration::ZERO);
        let made = line(1);
        let task = shutdown.spawn(pending::<()>());
        let spawned = line(1);
        let tracked = shutdown.track(async {});
        let tracked_at = line(1);
        let ticket = shutdown.ticket();
        let ticket_at = line(1);
        let seen = snapshot();
        let of_shutdown = one(&seen, &made);
        assert_eq!(of_shutdown.kind, Kind::Shutdown);
        for (line, kind) in
            [(&spawned, Kind::Task), (&tracked_at, Kind::Tracked), (&ticket_at, Kind::Ticket)]
        {
            assert_eq!((one(&seen, line).kind, one(&seen, line).parent), (kind, Some(of_shutdown.id)));
        }
        drop((tracked, ticket));
        task.abort();
        let _ = task.await;
        assert!(of_line(&snapshot(), &spawned).is_empty());
    }
}

mod forms {
    use super::*;

    #[tokio::test]
    async fn json_has_the_documented_fields() {
        let ctx = root().named("<b>\"json\" & co</b>");
        let timed = ctx.with_timeout(60 * SECOND);
        let task = timed.spawn_bounded(pending::<()>());
        tokio::task::yield_now().await;
        let seen = snapshot();
        let id = named(&seen, "<b>\"json\" & co</b>").id;
        let json: serde_json::Value = serde_json::from_str(&seen.below(id).to_json()).unwrap();
        assert_eq!(json["format"], 1);
        let fields = |value: &serde_json::Value| -> Vec<String> {
            let mut names: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
            names.sort();
            names
        };
        assert_eq!(
            fields(&json),
            [
                "alive",
                "ended",
                "entries",
                "format",
                "late",
                "lately",
                "nearly_overdue",
                "shutdowns",
                "taken_at_ms",
                "took_ms",
                "totals"
            ]
        );
        let entries = json["entries"].as_array().unwrap();
        assert_eq!(entries.len(), 3);
        assert_eq!(
            fields(&entries[0]),
            [
                "age_ms",
                "budget_ms",
                "children",
                "end",
                "id",
                "is_held",
                "is_work",
                "kind",
                "left_ms",
                "line",
                "name",
                "parent",
                "poll",
                "waiters"
            ]
        );
        assert_eq!(entries[0]["name"], "<b>\"json\" & co</b>");
        assert_eq!(
            (&entries[0]["parent"], &entries[0]["left_ms"]),
            (&serde_json::Value::Null, &serde_json::Value::Null)
        );
        assert_eq!(entries[2]["parent"], entries[1]["id"]);
        assert_eq!(entries[2]["kind"], "task");
        assert!(entries[2]["poll"]["ago_ms"].as_f64().unwrap() < 60_000.0);
        let left = entries[1]["left_ms"].as_f64().unwrap();
        assert!((0.0..=60_000.0).contains(&left), "{left}");
        // JavaScript can represent these numbers exactly.
        assert!(entries.iter().all(|entry| entry["id"].as_u64().unwrap() < 1 << 53));
        task.abort();
    }

    #[tokio::test]
    async fn the_text_begins_with_ended_work_and_fits_a_terminal() {
        let ctx = root().named(
            "a name that is much too long for a terminal of a hundred columns, and then some more of it",
        );
        let task = ctx.spawn(pending::<()>());
        let spawned = line(1);
        tokio::task::yield_now().await;
        ctx.cancel_with("secret");
        let text = snapshot().to_string();
        let ended = text.find("ENDED, STILL RUNNING").unwrap();
        assert!(text.find(&spawned).is_some_and(|at| at > ended), "{text}");
        assert!(!text.contains("secret"), "a cause is hidden");
        for heading in ["NEARLY OVERDUE", "SHUTDOWNS", "ALIVE, BY LINE", "CONTEXTS ENDED LATELY"] {
            assert!(text.find(heading).is_none_or(|at| at > ended), "{text}");
        }
        let widest = text.lines().max_by_key(|line| line.chars().count()).unwrap();
        assert!(widest.chars().count() <= 100, "{widest}");
        task.abort();
    }

    #[test]
    fn values_are_never_shown() {
        struct Secret(#[expect(dead_code)] &'static str);
        let ctx = root().with_value(Secret("password")).with_value("password").named("with values");
        let seen = snapshot();
        assert!(!seen.to_json().contains("password") && !seen.to_string().contains("password"));
        drop(ctx);
    }
}

#[test]
fn installing_again_returns_the_same_watch_or_an_error() {
    let watch = watch::install();
    assert!(Watch::builder().max_entries(1).install().is_err());
    let ctx = Context::background().with_cancel().named("installed again");
    assert!(
        watch::install()
            .snapshot()
            .entries
            .iter()
            .any(|entry| entry.name.as_deref() == Some("installed again"))
    );
    assert!(
        watch.snapshot().entries.iter().any(|entry| entry.name.as_deref() == Some("installed again"))
    );
    drop(ctx);
}

#[test]
fn the_background_has_no_name_and_its_work_is_listed() {
    watch::install();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let background = Context::background().named("nothing");
    let entered = runtime.enter();
    let task = background.spawn(pending::<()>());
    let spawned = line(1);
    let seen = snapshot();
    assert!(seen.entries.iter().all(|entry| entry.name.as_deref() != Some("nothing")));
    assert_eq!((one(&seen, &spawned).parent, one(&seen, &spawned).kind), (None, Kind::Task));
    // A runtime that is dropped drops its tasks.
    drop(entered);
    drop(runtime);
    assert!(of_line(&snapshot(), &spawned).is_empty());
    drop(task);
}

#[test]
fn a_name_replaces_the_previous_one() {
    let ctx = root();
    for nth in 0..100_000 {
        ctx.context().named(format_args!("name {nth}"));
    }
    let seen = snapshot();
    let names: Vec<_> = seen.entries.iter().filter_map(|entry| entry.name.as_deref()).collect();
    let names: Vec<_> = names.into_iter().filter(|name| name.starts_with("name ")).collect();
    assert_eq!(names, ["name 99999"]);
    assert_eq!(seen.totals.unregistered, 0);
    drop(ctx);
}

#[test]
fn a_root_is_listed_until_its_last_handle_is_dropped() {
    let ctx = root();
    let keep = ctx.clone().named("kept root");
    drop(ctx);
    let seen = snapshot();
    assert_eq!(named(&seen, "kept root").end.as_ref().map(|end| end.how), Some(How::Dropped));
    drop(keep);
    is_gone("kept root");
}
