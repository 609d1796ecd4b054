//! Promise 7, *values*: they are looked up by type, nearest first, and kept by `without_cancel`. A private
//! newtype is a private key. `Debug` never prints a value.

mod common;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use common::{Dice, Drops, LONG, answer, ended, ms};
use tokio_ctx::Context;

static BACKGROUND: Context = Context::background();

#[derive(Debug, PartialEq)]
struct RequestId(u64);

#[derive(Debug, PartialEq)]
struct User(&'static str);

#[derive(Debug, PartialEq)]
struct Tenant(u64); // holds what RequestId holds, and is another key

#[test]
fn background_carries_nothing() {
    for root in [Context::background(), Context::todo(), Context::default()] {
        assert_eq!(root.value::<RequestId>(), None);
        assert_eq!(root.value::<()>(), None);
    }
}

#[test]
fn a_value_is_found_by_its_type() {
    let one = BACKGROUND.with_value(RequestId(1));
    assert_eq!(one.value(), Some(&RequestId(1)));
    assert_eq!(one.value::<Tenant>(), None);
    assert_eq!(one.value::<u64>(), None);

    let two = one.with_value(Tenant(2));
    let three = two.with_value(User("gopher"));
    assert_eq!(three.value(), Some(&RequestId(1)));
    assert_eq!(three.value(), Some(&Tenant(2)));
    assert_eq!(three.value(), Some(&User("gopher")));
    // A value is not visible in ancestors.
    assert_eq!(one.value::<Tenant>(), None);
    assert_eq!(two.value::<User>(), None);
    assert_eq!(BACKGROUND.value::<RequestId>(), None);
}

#[test]
fn the_nearest_value_of_a_type_wins_below_it_only() {
    let outer = BACKGROUND.with_value(RequestId(1)).with_value(User("a"));
    let inner = outer.with_value(RequestId(2));
    let innermost = inner.with_value(RequestId(3)).with_value(Tenant(9));
    assert_eq!(outer.value(), Some(&RequestId(1)));
    assert_eq!(inner.value(), Some(&RequestId(2)));
    assert_eq!(innermost.value(), Some(&RequestId(3)));
    assert_eq!(innermost.value(), Some(&User("a")));
}

/// Go hides a value by setting its key to nil; here, the type can be an `Option`.
#[test]
fn an_option_can_hide_a_value() {
    let shown = BACKGROUND.with_value(Some(RequestId(1)));
    let hidden = shown.with_value(None::<RequestId>);
    assert_eq!(shown.value(), Some(&Some(RequestId(1))));
    assert_eq!(hidden.value(), Some(&None::<RequestId>));
}

#[test]
fn generic_types_are_keys_of_their_own() {
    struct Of<T>(T);
    let ctx = BACKGROUND.with_value(Of(1_u8)).with_value(Of(2_u16));
    assert_eq!(ctx.value::<Of<u8>>().unwrap().0, 1);
    assert_eq!(ctx.value::<Of<u16>>().unwrap().0, 2);
    assert!(ctx.value::<Of<u32>>().is_none());
}

mod elsewhere {
    use tokio_ctx::Context;

    /// Private, so code outside of this module can neither look it up nor add one.
    struct Key(String);

    pub fn sign(ctx: &Context) -> Context {
        ctx.with_value(Key("signed".into()))
    }

    pub fn signature(ctx: &Context) -> Option<&str> {
        ctx.value::<Key>().map(|key| key.0.as_str())
    }
}

#[test]
fn a_private_newtype_is_a_private_key() {
    #[allow(dead_code)]
    struct Key(String); // the same name and shape, another type
    let ctx = elsewhere::sign(&BACKGROUND.with_value(String::from("mine")));
    let ctx = ctx.with_value(Key("forged".into())).with_value(String::from("forged"));
    assert_eq!(elsewhere::signature(&ctx), Some("signed"));
    assert_eq!(elsewhere::signature(&BACKGROUND), None);
}

#[test]
fn every_derivation_propagates_values() {
    let parent = BACKGROUND.with_value(RequestId(7)).with_value(User("a"));
    let cancel = parent.with_cancel();
    let timeout = cancel.with_timeout(LONG);
    let merged = timeout.merge(&Context::background());
    let token = merged.with_token(&tokio_util::sync::CancellationToken::new());
    let free = token.without_cancel();
    for ctx in [&cancel, &timeout, &merged, &token, &free] {
        assert_eq!(ctx.value(), Some(&RequestId(7)));
        assert_eq!(ctx.value(), Some(&User("a")));
        assert_eq!(ctx.with_value(User("b")).value(), Some(&User("b")));
    }
}

#[test]
fn without_cancel_keeps_values_also_of_an_ended_context() {
    let ctx = BACKGROUND.with_value(RequestId(7)).with_timeout(ms(0));
    ctx.cancel();
    let free = ctx.without_cancel();
    assert!(answer(&free).is_none());
    assert_eq!(free.deadline(), None);
    assert_eq!(free.value(), Some(&RequestId(7)));
    let below = free.with_value(User("b")).with_cancel();
    below.cancel();
    assert!(ended(&below).is_canceled());
    assert_eq!(below.value(), Some(&RequestId(7)));
    assert_eq!(below.value(), Some(&User("b")));
}

#[test]
fn values_outlive_the_end_and_the_parents_handles() {
    let leaf = {
        let ctx = BACKGROUND.with_value(RequestId(7)).with_cancel();
        ctx.cancel();
        ctx.with_value(User("a"))
    };
    assert!(leaf.is_done());
    assert_eq!(leaf.value(), Some(&RequestId(7)));
    assert_eq!(leaf.value(), Some(&User("a")));
}

#[test]
fn a_value_is_shared_and_not_copied() {
    let ctx = BACKGROUND.with_value(vec![1, 2, 3]);
    let child = ctx.with_cancel();
    let (one, two) = (ctx.value::<Vec<i32>>().unwrap(), child.value::<Vec<i32>>().unwrap());
    assert!(std::ptr::eq(one, two));
    assert!(std::ptr::eq(one, ctx.clone().without_cancel().value().unwrap()));
}

#[test]
fn a_value_is_dropped_once_with_the_last_context_that_carries_it() {
    let drops = Drops::default();
    let ctx = BACKGROUND.with_value(drops.counted());
    let (child, guard) = ctx.with_value(User("a")).with_cancel().split();
    let free = child.without_cancel();
    guard.cancel();
    drop(ctx);
    assert_eq!(drops.count(), 0);
    drop(child);
    assert_eq!(drops.count(), 0);
    drop(free);
    assert_eq!(drops.count(), 1, "the guard alone keeps no value");
    drop(guard);
    assert_eq!(drops.count(), 1);
}

#[test]
fn a_shadowed_value_is_dropped_too() {
    let drops = Drops::default();
    let mut ctx = Context::background();
    for _ in 0..100 {
        ctx = ctx.with_value(drops.counted());
    }
    drop(ctx);
    assert_eq!(drops.count(), 100);
}

/// Random chains, compared at every level with a map of the expected values.
#[test]
fn lookups_agree_with_a_map_at_every_level() {
    #[derive(Debug, PartialEq)]
    struct Slot<const N: usize>(usize);

    type Put = fn(&Context, usize) -> Context;
    type Get = fn(&Context) -> Option<usize>;
    macro_rules! slots {
        ($($n:literal)*) => {
            [$((
                (|ctx, value| ctx.with_value(Slot::<$n>(value))) as Put,
                (|ctx| ctx.value::<Slot<$n>>().map(|slot| slot.0)) as Get,
            )),*]
        };
    }
    let slots = slots!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29);

    for seed in 0..50 {
        let mut dice = Dice::new(seed);
        // Few types lead to much shadowing, many types to long lookups.
        let kinds = [2, 5, 12, 30][dice.roll(4)];
        let mut model = HashMap::new();
        let mut levels = vec![(Context::background(), model.clone())];
        let mut scopes = Vec::new();
        for value in 0..150 {
            let (last, _) = levels.last().unwrap();
            let next = match dice.roll(5) {
                0 => {
                    scopes.push(last.with_cancel());
                    scopes.last().unwrap().context().clone()
                }
                1 => last.without_cancel(),
                2 => {
                    // A merge with an earlier level: the values of the left one come first.
                    let (other, others) = &levels[dice.roll(levels.len())];
                    scopes.push(last.merge(other));
                    for (slot, value) in others {
                        model.entry(*slot).or_insert(*value);
                    }
                    scopes.last().unwrap().context().clone()
                }
                _ => {
                    let slot = dice.roll(kinds);
                    model.insert(slot, value);
                    slots[slot].0(last, value)
                }
            };
            levels.push((next, model.clone()));
        }
        for (level, (ctx, model)) in levels.iter().enumerate() {
            for (slot, (_, get)) in slots.iter().enumerate() {
                assert_eq!(
                    get(ctx),
                    model.get(&slot).copied(),
                    "seed {seed}, level {level}, slot {slot}"
                );
            }
        }
    }
}

#[test]
fn values_are_read_from_any_thread() {
    let ctx = BACKGROUND.with_value(Arc::new(RequestId(7)));
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let ctx = ctx.clone();
            std::thread::spawn(move || ctx.value::<Arc<RequestId>>().unwrap().0)
        })
        .collect();
    for thread in threads {
        assert_eq!(thread.join().unwrap(), 7);
    }
}

#[test]
fn debug_and_display_never_print_a_value() {
    struct PrintsSecret;
    impl fmt::Debug for PrintsSecret {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("hunter2")
        }
    }
    let ctx = BACKGROUND
        .with_value(String::from("hunter2"))
        .with_value("hunter2")
        .with_value(PrintsSecret)
        .with_value(Box::<dyn fmt::Debug + Send + Sync>::from(Box::new("hunter2")))
        .with_value(123_456_789_u64);
    let child = ctx.with_timeout(LONG);
    let canceler = child.canceler();
    let (_, guard) = ctx.with_cancel().split();
    let mut printed = vec![
        format!("{ctx:?} {ctx:#?} {ctx}"),
        format!("{child:?} {child:#?} {child}"),
        format!("{guard:?} {canceler:?} {:?}", child.done()),
    ];
    child.cancel();
    printed.push(format!("{child:?} {child} {:?}", child.err()));
    for text in printed {
        assert!(!text.contains("hunter2") && !text.contains("123456789"), "{text}");
    }
}
