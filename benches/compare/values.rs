//! Values, and a request that uses everything.

use std::any::{Any, TypeId};
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_ctx::Context;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::derive::{reap, rooted};
use crate::drive::{scheduled, sync, timed};
use crate::row::{GO, LIST, NUMBER, Row, Run, WATCHER};

pub fn rows() -> Vec<Row> {
    vec![
        hit(10, 5.0, ten(Context::background()), ten(List::default())),
        miss(10, 5.0, ten(Context::background()), ten(List::default())),
        hit(100, 30.0, hundred(Context::background()), hundred(List::default())),
        miss(100, 30.0, hundred(Context::background()), hundred(List::default())),
        with_value(),
        request_row(),
    ]
}

struct Key<const N: usize>(#[allow(dead_code)] usize);

trait Carry: 'static {
    fn with<T: Send + Sync + 'static>(&self, value: T) -> Self;
    fn get<T: 'static>(&self) -> Option<&T>;
}

impl Carry for Context {
    fn with<T: Send + Sync + 'static>(&self, value: T) -> Self {
        self.with_value(value)
    }

    fn get<T: 'static>(&self) -> Option<&T> {
        self.value()
    }
}

/// Like Go's values.
#[derive(Clone, Default)]
struct List(Option<Arc<Node>>);

struct Node {
    id: TypeId,
    value: Box<dyn Any + Send + Sync>,
    next: List,
}

impl Carry for List {
    fn with<T: Send + Sync + 'static>(&self, value: T) -> Self {
        let (id, value) = (TypeId::of::<T>(), Box::new(value));
        List(Some(Arc::new(Node { id, value, next: self.clone() })))
    }

    fn get<T: 'static>(&self) -> Option<&T> {
        let mut node = self.0.as_ref()?;
        while node.id != TypeId::of::<T>() {
            node = node.next.0.as_ref()?;
        }
        node.value.downcast_ref()
    }
}

macro_rules! carry {
    ($list:ident: $($tens:literal)*) => { $(carry!($list; $tens; 0 1 2 3 4 5 6 7 8 9);)* };
    ($list:ident; $tens:literal; $($ones:literal)*) => {
        $($list = $list.with(Key::<{ $tens * 10 + $ones }>($ones));)*
    };
}

fn ten<C: Carry>(mut list: C) -> C {
    carry!(list: 0);
    list
}

fn hundred<C: Carry>(mut list: C) -> C {
    carry!(list: 0 1 2 3 4 5 6 7 8 9);
    list
}

/// Looks up the value that was added first, and is therefore the deepest.
fn hit(depth: usize, go: f64, ours: Context, list: List) -> Row {
    fn look_up(list: impl Carry) -> Run {
        sync(move || {
            black_box(black_box(&list).get::<Key<0>>().expect("it is there"));
        })
    }
    Row::new(format!("value-{depth}-hit"), format!("value, depth {depth}, hit"), look_up(ours))
        .peer(LIST, look_up(list))
        .target(GO, go)
}

/// Looks up ten missing types, because a single one may be fast by chance.
fn miss(depth: usize, go: f64, ours: Context, list: List) -> Row {
    fn look_up(list: impl Carry) -> Run {
        Box::new(move |times| {
            timed(times.div_ceil(10), || {
                macro_rules! look_up {
                    ($($n:literal)*) => { $(assert!(black_box(&list).get::<Key<$n>>().is_none());)* };
                }
                look_up!(100 101 102 103 104 105 106 107 108 109);
            })
        })
    }
    Row::new(format!("value-{depth}-miss"), format!("value, depth {depth}, miss"), look_up(ours))
        .peer(LIST, look_up(list))
        .target(GO, go)
}

fn with_value() -> Row {
    let ctx = rooted();
    let ours = sync(move || {
        black_box(black_box(ctx.context()).with_value(User(1)));
    });
    let list = List::default();
    let peer = sync(move || {
        black_box(black_box(&list).with(User(1)));
    });
    Row::new("with-value", "with_value, drop", ours).peer(LIST, peer).target(GO, 1.0)
}

struct User(u64);
struct Team(u64);

const REQUEST: Duration = Duration::from_millis(200);
const STEP: Duration = Duration::from_millis(50);

fn request_row() -> Row {
    let server = rooted();
    let ours = sync(move || {
        request(black_box(&server));
    });
    let server = CancellationToken::new();
    let by_hand = sync(move || request_by_hand(black_box(&server)));
    let work = "request: cancel, timeout, two values, timeout, two lookups, a check, all dropped";
    Row::new("request", work, ours)
        .peer(NUMBER, by_hand)
        .peer(WATCHER, request_watched())
        .target(NUMBER, 1.1)
        .target(GO, 5.0)
        .at_most_allocations(6.0)
}

/// What a handler does with the contexts of one request.
pub fn request(server: &Context) {
    let request = server.with_cancel();
    let ctx = request.with_timeout(REQUEST).with_value(User(1)).with_value(Team(2));
    let step = ctx.with_timeout(STEP);
    assert_eq!(step.value::<User>().map(|user| user.0), Some(1));
    assert_eq!(step.value::<Team>().map(|team| team.0), Some(2));
    let _checked = black_box(step.check());
}

/// The same with tokens, deadlines as numbers, and a list of values.
fn request_by_hand(server: &CancellationToken) {
    let request = server.child_token().drop_guard();
    let limited = request.token().child_token().drop_guard();
    let until = Instant::now() + REQUEST;
    let values = List::default().with(User(1)).with(Team(2));
    let step = limited.token().child_token().drop_guard();
    let until = until.min(Instant::now() + STEP);
    assert_eq!(values.get::<User>().map(|user| user.0), Some(1));
    assert_eq!(values.get::<Team>().map(|team| team.0), Some(2));
    black_box(step.token().is_cancelled() || Instant::now() >= until);
}

fn request_watched() -> Run {
    const BATCH: u64 = 64;
    let server = CancellationToken::new();
    let mut live = Vec::with_capacity(2 * BATCH as usize);
    scheduled(async move |times| {
        let start = Clock::start();
        for at in 0..times {
            let request = black_box(&server).child_token().drop_guard();
            let limited = crate::derive::watch(request.token(), REQUEST);
            let values = List::default().with(User(1)).with(Team(2));
            let step = crate::derive::watch(&limited.0, STEP);
            assert_eq!(values.get::<User>().map(|user| user.0), Some(1));
            assert_eq!(values.get::<Team>().map(|team| team.0), Some(2));
            black_box(step.0.is_cancelled());
            live.extend([limited, step]);
            if at % BATCH == BATCH - 1 || at == times - 1 {
                reap(&mut live).await;
            }
        }
        start.elapsed()
    })
}
