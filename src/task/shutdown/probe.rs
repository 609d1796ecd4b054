//! The view that a watch has of a shutdown: its contexts and its work. It does not keep the shutdown alive.

use std::panic::Location;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::Work;
use crate::context::Context;
use crate::registry;
use crate::token::Token;

/// The number of entries that are read each time the lock of the list is held.
const BATCH: usize = 512;

/// The parts of a shutdown that a watch keeps.
pub(crate) struct Probe {
    soft: Weak<Token>,
    hard: Weak<Token>,
    work: Arc<Work>,
}

/// The state of a shutdown.
pub(crate) struct Status {
    pub(crate) soft: Option<Arc<Token>>,
    pub(crate) hard: Option<Arc<Token>>,
    pub(crate) is_aborting: bool,
    pub(crate) is_over: bool,
    pub(crate) grace: Duration,
    pub(crate) cleanup: Duration,
    pub(crate) overdue: usize,
    pub(crate) running: Vec<Running>,
}

/// Work that a shutdown waits for.
pub(crate) struct Running {
    pub(crate) name: Option<Arc<str>>,
    pub(crate) spawned_at: &'static Location<'static>,
    pub(crate) is_overdue: bool,
}

impl Probe {
    pub(super) fn of(soft: &Context, hard: &Context, work: &Arc<Work>) -> Option<registry::Probe> {
        let [soft, hard] = [soft, hard].map(|ctx| ctx.token().map(Arc::downgrade));
        Some(Box::new(Probe { soft: soft?, hard: hard?, work: work.clone() }))
    }

    pub(crate) fn status(&self) -> Status {
        let list = self.work.lock();
        let mut status = Status {
            soft: self.soft.upgrade(),
            hard: self.hard.upgrade(),
            is_aborting: list.aborting,
            is_over: list.over,
            grace: list.grace,
            cleanup: list.cleanup,
            overdue: list.overdue.len(),
            running: Vec::with_capacity(list.running.len()),
        };
        drop(list);
        let mut from = 0;
        loop {
            let list = self.work.lock();
            let batch = list.running.range(from..).take(BATCH);
            let before = status.running.len();
            for (id, running) in batch {
                from = id + 1;
                status.running.push(Running {
                    name: running.name.to_text(),
                    spawned_at: running.spawned_at,
                    is_overdue: list.overdue.contains_key(id),
                });
            }
            drop(list);
            if status.running.len() - before < BATCH {
                return status;
            }
        }
    }
}
