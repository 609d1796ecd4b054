//! The kinds of registered work and contexts.

use std::fmt;

/// The kind of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "watch", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[cfg_attr(not(feature = "watch"), allow(dead_code, reason = "only a watch reads it"))]
#[non_exhaustive]
pub enum Kind {
    /// `root`: a context derived from the background.
    Root,
    /// `context`: an ancestor of a registered context, or a descendant that something waits on.
    Context,
    /// `named`: a context with a [name](../struct.Context.html#method.named).
    Named,
    /// `request`: a request of [`ServerLayer`](../wire/struct.ServerLayer.html), or its context after the request has ended.
    Request,
    /// `group`: a [`Group`](crate::Group).
    Group,
    /// `shutdown`: the hard context of a [`Shutdown`](crate::Shutdown).
    Shutdown,
    /// `task`: a task that was spawned with this crate.
    Task,
    /// `tracked`: a future of [`Shutdown::track`](crate::Shutdown::track).
    Tracked,
    /// `ticket`: a ticket of [`Shutdown::ticket`](crate::Shutdown::ticket).
    Ticket,
    /// `blocking`: a function of [`Context::spawn_blocking`](crate::Context::spawn_blocking).
    Blocking,
    /// `after_func`: a function of [`Context::after_func`](crate::Context::after_func), before or while it runs.
    AfterFunc,
    /// `process`: a child process.
    Process,
}

impl Kind {
    /// Returns its name in JSON and in the text.
    #[cfg_attr(not(feature = "watch"), allow(dead_code, reason = "only a watch reads it"))]
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Root => "root",
            Kind::Context => "context",
            Kind::Named => "named",
            Kind::Request => "request",
            Kind::Group => "group",
            Kind::Shutdown => "shutdown",
            Kind::Task => "task",
            Kind::Tracked => "tracked",
            Kind::Ticket => "ticket",
            Kind::Blocking => "blocking",
            Kind::AfterFunc => "after_func",
            Kind::Process => "process",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(any(feature = "test-util", feature = "watch"))]
impl Kind {
    /// Returns whether it is work, rather than only a context.
    pub(crate) fn is_work(self) -> bool {
        !matches!(self, Kind::Root | Kind::Context | Kind::Named | Kind::Group | Kind::Shutdown)
    }

    /// Returns whether its record describes the context itself, rather than work that uses the context.
    #[cfg(feature = "watch")]
    pub(crate) fn is_context(self) -> bool {
        self == Kind::Request || self == Kind::Process || !self.is_work()
    }
}
