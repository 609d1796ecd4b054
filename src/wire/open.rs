//! The registration of a request in progress, with its shutdown and with the watch.

use std::borrow::Borrow;
use std::panic::Location;
use std::sync::Arc;

use super::request_line::RequestLine;
use super::slot::Slot;
use crate::context::Context;
use crate::context::done::Wait;
use crate::context::enter::{Polling, Underway, UnderwayHandle};
use crate::registry::{Kind, is_installed};
use crate::task::shutdown::{AtWork, Ticket};

/// Counts a request until it is dropped: with the shutdown of its layer, and with the watch of the process.
pub(crate) struct Open {
    underway: Option<Underway>,
    // Dropped last: when a shutdown completes, no request is in progress.
    ticket: Option<Ticket>,
}

impl Open {
    /// Counts a request. Returns `None` if there is neither a shutdown nor a watch that counts it.
    #[inline]
    pub(crate) fn new(
        ctx: &Context,
        place: &'static Location<'static>,
        line: impl FnOnce() -> RequestLine,
        ticket: Option<Ticket>,
    ) -> Option<Open> {
        if !is_installed() && ticket.is_none() {
            return None;
        }
        let underway = Underway::new(ctx, Kind::Request, place, line);
        let underway = Some(underway).filter(Underway::is_watched);
        (underway.is_some() || ticket.is_some()).then_some(Open { underway, ticket })
    }

    /// Marks the request as being polled, until the returned value is dropped.
    pub(crate) fn at_work(&self) -> (Option<AtWork<'_>>, Option<Polling<'_>>) {
        (self.ticket.as_ref().map(Ticket::at_work), self.underway.as_ref().map(Underway::polling))
    }

    /// Returns a handle for the owner of the request's context.
    pub(crate) fn handle(&self) -> UnderwayHandle {
        self.underway.as_ref().map(Underway::handle).unwrap_or_default()
    }

    /// Like [`at_work`](Self::at_work), for a second time within one poll.
    pub(crate) fn at_work_again(&self) -> (Option<AtWork<'_>>, Option<Polling<'_>>) {
        (self.ticket.as_ref().map(Ticket::at_work), self.underway.as_ref().map(Underway::polling_again))
    }
}

/// The registration of a request whose response is complete, until the transport has taken it.
///
/// The transport takes nothing while its peer reads nothing. A shutdown does not wait for such a peer: when the context
/// ends, the registration is dropped, even if nothing polls the response.
pub(crate) enum Kept {
    Open(Open),
    Slot(Arc<Slot<Open>>),
}

impl Kept {
    /// Registers with the context only if a shutdown counts the request.
    pub(crate) fn new<C: Borrow<Context>>(open: Open, wait: &mut Wait<C>) -> Kept {
        match open.ticket {
            Some(_) => Kept::Slot(Slot::registered(open, wait).0),
            None => Kept::Open(open),
        }
    }

    /// Leaves the context. Returns the registration, to be dropped after the context.
    pub(crate) fn into_open<C: Borrow<Context>>(self, wait: &mut Wait<C>) -> Option<Open> {
        match self {
            Kept::Open(open) => Some(open),
            Kept::Slot(slot) => {
                wait.leave();
                slot.take().map(|(open, _)| open)
            }
        }
    }
}
