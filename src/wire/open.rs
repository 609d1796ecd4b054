//! The registration of a request in progress, with its shutdown and with the watch.

use std::borrow::Borrow;
use std::panic::Location;
use std::sync::Arc;

use http::Request;

use super::request_line::RequestLine;
use super::slot::Slot;
use crate::context::Context;
use crate::context::done::Wait;
use crate::context::registered::{InProgress, InProgressHandle, Polling};
use crate::registry::{Kind, is_installed};
use crate::task::Shutdown;
use crate::task::shutdown::{AtWork, Ticket};

/// Counts a request until it is dropped: with the shutdown of its layer, and with the watch of the process.
pub(crate) struct Open {
    in_progress: Option<InProgress>,
    // Dropped last: when a shutdown completes, no request is in progress.
    ticket: Option<Ticket>,
}

impl Open {
    /// Counts a request. Returns `None` if there is neither a shutdown nor a watch that counts it.
    #[inline]
    pub(crate) fn new<A>(
        ctx: &Context,
        request: &Request<A>,
        shutdown: Option<&Shutdown>,
        place: &'static Location<'static>,
    ) -> Option<Open> {
        let line = || RequestLine::of(request);
        let ticket = shutdown.map(|shutdown| shutdown.labeled_ticket(line(), place));
        if !is_installed() && ticket.is_none() {
            return None;
        }
        let in_progress = InProgress::new(ctx, Kind::Request, place, line);
        let in_progress = Some(in_progress).filter(InProgress::is_watched);
        (in_progress.is_some() || ticket.is_some()).then_some(Open { in_progress, ticket })
    }

    /// Marks the request as being polled, until the returned value is dropped.
    pub(crate) fn at_work(&self) -> (Option<AtWork<'_>>, Option<Polling<'_>>) {
        (self.ticket.as_ref().map(Ticket::at_work), self.in_progress.as_ref().map(InProgress::polling))
    }

    /// Returns a handle for the owner of the request's context.
    pub(crate) fn handle(&self) -> InProgressHandle {
        self.in_progress.as_ref().map(InProgress::handle).unwrap_or_default()
    }

    /// Like [`at_work`](Self::at_work), for a second time within one poll.
    pub(crate) fn at_work_again(&self) -> (Option<AtWork<'_>>, Option<Polling<'_>>) {
        (
            self.ticket.as_ref().map(Ticket::at_work),
            self.in_progress.as_ref().map(InProgress::polling_again),
        )
    }
}

/// The registration of a request whose response is complete, until the transport has taken it.
///
/// A transport keeps the response while its peer does not read. A shutdown does not wait for such a peer: when the context
/// ends, the registration is dropped, even if the response is not polled.
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

    /// Removes the waker from the context. Returns the registration, to be dropped after the context.
    pub(crate) fn into_open<C: Borrow<Context>>(self, wait: &mut Wait<C>) -> Option<Open> {
        match self {
            Kept::Open(open) => Some(open),
            Kept::Slot(slot) => {
                wait.remove_waker();
                slot.take().map(|(open, _)| open)
            }
        }
    }
}
