//! A request that is being served, as a shutdown and a watch count it.

use crate::context::enter::{Polling, Underway};
use crate::task::shutdown::{AtWork, Ticket};

/// Counts a request until it is dropped: with the shutdown of its layer, and with the watch of the process.
pub(crate) struct Open {
    underway: Option<Underway>,
    // Dropped last: when a shutdown completes, no request is in progress.
    ticket: Option<Ticket>,
}

impl Open {
    /// Counts a request; returns none if neither of the two counts it.
    pub(crate) fn new(underway: Underway, ticket: Option<Ticket>) -> Option<Open> {
        let underway = Some(underway).filter(Underway::is_watched);
        (underway.is_some() || ticket.is_some()).then_some(Open { underway, ticket })
    }

    /// Marks the request as being polled, until what is returned is dropped.
    pub(crate) fn at_work(&self) -> (Option<AtWork<'_>>, Option<Polling<'_>>) {
        (self.ticket.as_ref().map(Ticket::at_work), self.underway.as_ref().map(Underway::polling))
    }
}
