//! The kinds of registered work and contexts.

/// The kind of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
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

/// Implements `as_str`, `Display` and `Serialize` for an enum, from one list of names.
#[cfg(feature = "watch")]
macro_rules! named {
    ($type:ident { $($value:ident => $name:literal),* $(,)? }) => {
        impl $type {
            /// Returns its name in JSON, in the text and in labels.
            pub fn as_str(self) -> &'static str {
                match self { $($type::$value => $name),* }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
    };
}
#[cfg(feature = "watch")]
pub(crate) use named;

#[cfg(feature = "watch")]
named!(Kind {
    Root => "root",
    Context => "context",
    Named => "named",
    Request => "request",
    Group => "group",
    Shutdown => "shutdown",
    Task => "task",
    Tracked => "tracked",
    Ticket => "ticket",
    Blocking => "blocking",
    AfterFunc => "after_func",
    Process => "process",
});

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
