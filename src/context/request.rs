//! The context of a request, and contexts that outlive the request.

use std::iter;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use super::context::Context;
use super::derive::budget;
use super::scope::CancelScope;
use crate::error::Error;
use crate::finished::Budget;
use crate::sync::now;
use crate::token::{Limit, Token};

/// # Requests
impl Context {
    /// Derives the context of a request, with `made_at` as the line in its error. This is one allocation, because the
    /// cause of its deadline is preset. It is not registered with a watch.
    pub(crate) fn request_made_at(
        &self,
        made_at: &'static Location<'static>,
        limit: Option<(Duration, Budget)>,
    ) -> CancelScope {
        let limit = limit.and_then(|(after, whose)| match whose.preset() {
            Some(preset) => Some(Limit { preset, ..budget(Some(after), None)? }),
            None => budget(Some(after), Some(whose.into())),
        });
        let token = Token::new(self.token(), limit, made_at);
        token.mark();
        // A watch registers it as a request, even if it is a root.
        Context::scope_of(token, self.values().clone(), self.is_todo())
    }

    /// Derives the context of a handler that continues when this one, the context of its request, has ended. It
    /// has the same values and the same deadline, and ends with the service.
    #[cfg(feature = "tower")]
    pub(crate) fn finishing_made_at(&self, made_at: &'static Location<'static>) -> CancelScope {
        let service = self.beyond_request();
        let Some(at) = self.deadline() else { return service.request_made_at(made_at, None) };
        let scope = service.with_deadline_of(self, at);
        scope.token().into_iter().for_each(|token| token.mark());
        scope
    }

    /// Returns the context of work that outlives its request: a WebSocket, an event stream, or work
    /// that must complete after the client has left or was answered.
    ///
    /// It ends with the context that [`ServerLayer`](crate::wire::ServerLayer) was made with ([`hard`], if that was a
    /// [`Shutdown`]), or that [`extract`](Self::extract) was called on, and has the deadline of that context alone. With
    /// nested layers it ends with either service. Outside of a request it is a clone of this context.
    ///
    /// A shutdown does not wait for work under this context: use [`Shutdown::spawn`] if it should. A WebSocket that
    /// should close politely when a shutdown begins waits for [`Shutdown::soft`] as well. Go has no counterpart.
    ///
    /// ```
    /// use tokio_ctx::wire::Inbound;
    /// use tokio_ctx::Context;
    ///
    /// struct Tenant(&'static str);
    ///
    /// # fn main() -> Result<(), tokio_ctx::wire::BadHeader> {
    /// let service = Context::background().with_cancel();
    /// let request = service.extract(&http::HeaderMap::new(), &Inbound::new())?.with_value(Tenant("blue"));
    ///
    /// let socket = request.beyond_request();
    /// request.cancel();
    /// assert!(!socket.is_done());
    /// assert_eq!(socket.value::<Tenant>().unwrap().0, "blue");
    /// service.cancel();
    /// assert!(socket.is_done());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// [`hard`]: crate::Shutdown::hard
    /// [`Shutdown`]: crate::Shutdown
    /// [`Shutdown::spawn`]: crate::Shutdown::spawn
    /// [`Shutdown::soft`]: crate::Shutdown::soft
    #[cfg_attr(docsrs, doc(cfg(feature = "http")))]
    #[track_caller]
    pub fn beyond_request(&self) -> Context {
        let Some(serving) = self.token().and_then(service_of) else { return self.clone() };
        let mut token = serving.cloned();
        // Nested layers: the context of the inner one is merged from the outer request and its own service.
        let mut services = Vec::new();
        while let Some((outer, service)) = token.as_ref().and_then(|token| merged(token)) {
            let Some(serving) = service_of(&outer) else { break };
            services.push(service);
            token = serving.cloned();
        }
        while let Some(service) = services.pop() {
            token = Some(match token {
                Some(outer) => Token::merge(&outer, &service, Location::caller()),
                None => service,
            });
        }
        match token {
            Some(token) => Context::of_token(token, self.values().clone(), self.is_todo()),
            None => self.without_cancel(),
        }
    }

    /// Returns the time left, or the error if the context has ended, with one reading of the clock.
    pub(crate) fn check_time_left(&self) -> Result<Option<Duration>, Error> {
        let timed = self.token().and_then(|token| Some((token, token.deadline()?)));
        let Some((token, deadline)) = timed else { return self.check().map(|()| None) };
        let now = now();
        if token.is_done_at(now) {
            return Err(token.error());
        }
        Ok(Some(deadline.saturating_duration_since(now)))
    }

    /// Returns the error if the context has ended, without reading the clock. A deadline counts once its timer has
    /// fired, so this is for a context that is being waited on.
    #[cfg(feature = "tower")]
    pub(crate) fn known_err(&self) -> Option<Error> {
        self.token().filter(|token| token.ended()).map(|token| token.error())
    }

    /// Returns whether the service of this request has ended.
    #[cfg(feature = "tower")]
    pub(crate) fn is_service_over(&self) -> bool {
        let serving = self.token().and_then(service_of).flatten();
        serving.is_some_and(|token| token.is_done())
    }
}

impl CancelScope {
    /// Returns the error of a scope that has ended from the start. Reads the clock only if `parent` has a
    /// deadline.
    #[cfg(feature = "tower")]
    pub(crate) fn ended_at_creation(&self, parent: &Context) -> Option<Error> {
        let token = self.token()?;
        if token.ended() { Some(token.error()) } else { parent.err() }
    }
}

/// Returns the parent of the nearest token on the path that was made for a request. Returns `None` if there is no such
/// token.
fn service_of(token: &Arc<Token>) -> Option<Option<&Arc<Token>>> {
    let mut path = iter::successors(Some(token), |token| token.parent());
    path.find(|token| token.is_marked()).map(|token| token.parent())
}

/// Returns the parents of a merged token.
fn merged(token: &Token) -> Option<(Arc<Token>, Arc<Token>)> {
    Some((token.parent()?.clone(), token.second()?))
}
