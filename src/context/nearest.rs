//! The context of an outgoing call that has two: the one in its extensions, and the current one.
//!
//! A request that is forwarded still has the context of the incoming request in its extensions. The call may be
//! made in a context that is derived from it, with a shorter deadline or with another value. The derived
//! context then applies. If the two contexts are unrelated, the one in the extensions was set for this call and
//! applies, together with the deadline of the current one.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::context::Context;
use crate::token::Token;

impl Context {
    /// Returns the context of a call with this context in its extensions, and with `current` as the current
    /// context.
    ///
    /// If the current one is derived from this one, returns the current one with the values of both. Otherwise
    /// returns this one, limited by the deadline of the current one.
    pub(crate) fn nearest(&self, current: Context) -> Context {
        match (self.token(), current.token()) {
            (_, None) => self.clone(),
            (Some(brought), Some(token)) if is_below(token, brought) => {
                // If one list of values extends the other, the longer one is nearer.
                let values = if self.values().ends_with(current.values()) {
                    self.values().clone()
                } else {
                    current.values().or(self.values())
                };
                Context::of_token(token.clone(), values, current.is_todo())
            }
            (_, Some(token)) => match (self.deadline(), current.deadline()) {
                (own, Some(at)) if own.is_none_or(|own| at < own) => {
                    self.with_deadline_of(&current, at, token.made_at()).detach()
                }
                _ => self.clone(),
            },
        }
    }
}

/// Returns whether `above` is this token or above it. Gives up after a thousand steps.
fn is_below(token: &Arc<Token>, above: &Arc<Token>) -> bool {
    let (mut pending, mut visited) = (vec![token.clone()], BTreeSet::new());
    while let Some(token) = pending.pop() {
        if Arc::ptr_eq(&token, above) {
            return true;
        }
        if visited.len() < 1000 && visited.insert(Arc::as_ptr(&token)) {
            pending.extend(token.second());
            // The first parent is visited before the second one.
            pending.extend(token.parent().cloned());
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::context::Context;
    use super::super::scope::CancelScope;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_derived_current_context_applies_with_the_values_of_both() {
        let request = Context::background().with_timeout(seconds(60)).with_value(1_u8).with_value("old");
        let part = request.with_timeout(seconds(1)).with_value("new");
        let both = request.context().with_value(2_u16).nearest(part.clone());
        assert_eq!(both.deadline(), part.deadline());
        assert_eq!(
            (both.value::<&str>(), both.value(), both.value()),
            (Some(&"new"), Some(&1_u8), Some(&2_u16))
        );
        part.cancel();
        assert!(both.is_done());
    }

    #[test]
    fn of_one_context_the_longer_list_of_values_applies() {
        let request = Context::background().with_cancel().with_value("old");
        let newer = request.context().with_value("new");
        assert_eq!(newer.nearest(request.clone()).value(), Some(&"new"));
        assert_eq!(request.nearest(newer.clone()).value(), Some(&"new"));
    }

    #[test]
    fn a_context_derived_from_a_merged_one_applies() {
        let request = Context::background().with_timeout(seconds(60));
        let service = Context::background().with_cancel();
        for merged in [request.merge(&service), service.merge(&request)] {
            let part = merged.with_timeout(seconds(1));
            assert_eq!(request.nearest(part.clone()).deadline(), part.deadline());
            part.cancel();
            assert!(request.nearest(part.clone()).is_done(), "{part}");
        }
    }

    #[test]
    fn a_distant_descendant_applies_and_beyond_a_thousand_levels_only_its_deadline() {
        let request = Context::background().with_timeout(seconds(60));
        let mut path = vec![request.with_cancel()];
        let mut grow = |levels: usize| {
            while path.len() < levels {
                path.push(path[path.len() - 1].with_cancel());
            }
            let part = path[path.len() - 1].with_timeout(seconds(1)).with_value("part");
            let call = request.nearest(part.clone());
            assert_eq!(call.deadline(), part.deadline());
            call.value::<&str>().is_some()
        };
        assert!(grow(900));
        assert!(!grow(100_000));

        // Each merged context is visited once, even if it can be reached on several paths.
        let mut knot = request.with_cancel();
        for _ in 0..100 {
            knot = knot.context().merge(&knot.with_cancel());
        }
        assert!(!Context::background().with_cancel().nearest(knot.clone()).is_done());
    }

    #[test]
    fn a_descendant_or_an_unrelated_context_applies_with_the_earlier_deadline() {
        let current = Context::background().with_timeout(seconds(10));
        let below = current.with_timeout(seconds(5)).with_value("own");
        assert_eq!(below.nearest(current.clone()).deadline(), below.deadline());

        let aside = Context::background().with_timeout(seconds(60)).with_value("own");
        let line = line!() + 1;
        let current = Context::background().with_timeout(seconds(0)).with_value(7_u8);
        let call = aside.nearest(current.clone());
        assert_eq!(call.deadline(), current.deadline());
        assert_eq!((call.value::<&str>(), call.value::<u8>()), (Some(&"own"), None));
        assert_eq!(call.err().unwrap().origin().made_at().line(), line);
        // A canceled context does not know the line that set a deadline above it.
        let current = Context::background().with_timeout(seconds(30));
        let canceled = current.with_cancel();
        let line = line!() - 1;
        canceled.cancel();
        let call = aside.nearest(canceled.clone());
        assert!(call.to_string().starts_with(&format!("context made at {}:{line},", file!())), "{call}");
        // The cancellation of the current context does not apply.
        let canceled = Context::background().with_cancel();
        canceled.cancel();
        assert!(!aside.nearest(canceled.clone()).is_done());
        let aside: CancelScope = aside;
        let call = aside.nearest(Context::background().with_timeout(seconds(30)).clone());
        aside.cancel();
        assert!(call.is_done());
    }

    #[test]
    fn without_a_current_context_the_context_is_unchanged() {
        let own = Context::background().with_timeout(seconds(5)).with_value("own");
        let call = own.nearest(Context::background().with_value("other"));
        assert_eq!((call.deadline(), call.value()), (own.deadline(), Some(&"own")));
    }
}
