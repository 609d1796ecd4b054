//! Parts of the time left: `with_share`, `with_reserve`.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_ctx::{Context, NotEnoughTime};

const SECOND: Duration = Duration::from_secs(1);

mod a_share {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn is_of_the_time_left_and_not_of_the_budget() {
        let ctx = Context::background().with_timeout(SECOND);
        sleep(Duration::from_millis(500)).await;
        let left = ctx.remaining().unwrap();
        let share = ctx.with_share(0.5);
        assert_eq!(share.remaining().unwrap(), left / 2);
        let error = share.done().await;
        assert_eq!(error.origin().budget(), Some(left / 2));
        assert_eq!(error.origin().made_at().line(), line!() - 4);
        assert!(!ctx.is_done());
    }

    #[tokio::test(start_paused = true)]
    async fn of_all_or_more_is_all() {
        let ctx = Context::background().with_timeout(SECOND);
        for share in [1.0, 1.5, f64::MAX, f64::INFINITY] {
            assert_eq!(ctx.with_share(share).deadline(), ctx.deadline(), "{share}");
        }
    }

    #[test]
    fn of_no_deadline_is_none() {
        for share in [0.0, 0.5, 1.0] {
            let ctx = Context::background().with_share(share);
            assert!(ctx.deadline().is_none() && !ctx.is_done(), "{share}");
        }
    }

    #[test]
    fn of_an_ended_context_has_ended_with_its_error() {
        let ctx = Context::background().with_timeout(Duration::ZERO);
        let share = ctx.with_share(0.5);
        assert_eq!(share.err().unwrap().origin().made_at(), ctx.err().unwrap().origin().made_at());

        let ctx = Context::background().with_timeout(SECOND);
        ctx.cancel_with("why");
        assert_eq!(ctx.with_share(0.5).err().unwrap().cause().unwrap().to_string(), "why");
    }

    #[test]
    fn of_zero_has_ended_and_its_parent_has_not() {
        let ctx = Context::background().with_timeout(SECOND);
        let share = ctx.with_share(0.0);
        assert!(share.err().unwrap().is_deadline_exceeded());
        assert!(!ctx.is_done());
    }

    #[test]
    fn of_centuries_is_exact_enough() {
        let century = Duration::from_secs(100 * 365 * 86_400);
        let ctx = Context::background().with_timeout(century);
        let left = ctx.with_share(0.25).remaining().unwrap();
        assert!(left > century / 4 - SECOND && left <= century / 4);
        let ctx = Context::background().with_timeout(Duration::MAX);
        assert_eq!(ctx.with_share(0.5).deadline(), None);
    }

    #[test]
    #[should_panic(expected = "a number from 0 to 1, but was -0.5")]
    fn that_is_negative_panics() {
        let _ = Context::background().with_share(-0.5);
    }

    #[test]
    #[should_panic(expected = "a number from 0 to 1, but was NaN")]
    fn that_is_not_a_number_panics() {
        let _ = Context::background().with_share(f64::NAN);
    }
}

mod a_reserve {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn is_kept() {
        let begun = Instant::now();
        let ctx = Context::background().with_timeout(SECOND);
        let step = ctx.with_reserve(Duration::from_millis(200));
        assert_eq!(step.deadline().unwrap(), begun + Duration::from_millis(800));
        let error = step.done().await;
        assert_eq!(error.origin().budget(), Some(Duration::from_millis(800)));
        assert_eq!(ctx.remaining(), Some(Duration::from_millis(200)));
    }

    #[tokio::test(start_paused = true)]
    async fn of_zero_or_without_a_deadline_sets_no_limit() {
        let ctx = Context::background().with_timeout(SECOND);
        assert_eq!(ctx.with_reserve(Duration::ZERO).deadline(), ctx.deadline());
        let ctx = Context::background().with_reserve(SECOND);
        assert!(ctx.deadline().is_none() && !ctx.is_done());
    }

    #[tokio::test(start_paused = true)]
    async fn that_exceeds_the_time_left_is_reported() {
        let ctx = Context::background().with_timeout(Duration::from_millis(40));
        let set_at = line!() - 1;
        for reserve in [Duration::from_millis(41), Duration::MAX] {
            let error = ctx.with_reserve(reserve).err().unwrap();
            assert!(error.is_deadline_exceeded());
            let short = error.cause_as::<NotEnoughTime>().unwrap();
            assert_eq!(short.required(), reserve);
            assert_eq!(short.left(), Duration::from_millis(40));
            assert_eq!(short.set_at().unwrap().line(), set_at);
            assert!(error.to_string().contains("40ms left of the 40ms budget set at "), "{error}");
        }
        assert!(!ctx.is_done());
    }

    #[tokio::test(start_paused = true)]
    async fn of_all_the_time_left_ends_it_from_the_start() {
        let ctx = Context::background().with_timeout(SECOND);
        assert!(ctx.with_reserve(SECOND).is_done());
        assert!(!ctx.is_done());
    }

    #[tokio::test(start_paused = true)]
    async fn of_an_ended_context_has_ended_with_it() {
        let ctx = Context::background().with_timeout(SECOND);
        ctx.cancel_with("why");
        for reserve in [Duration::ZERO, SECOND, Duration::MAX] {
            assert_eq!(ctx.with_reserve(reserve).err().unwrap().cause().unwrap().to_string(), "why");
        }
    }
}
