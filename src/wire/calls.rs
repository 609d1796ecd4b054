//! The incoming calls of a connection by their IDs, for JSON-RPC, MCP and LSP, where a cancel is a message.
//!
//! The lock protects only the map. Contexts are canceled, and entries are dropped, after it is released, because a
//! waker may begin another call or cancel one. `Hash` and `Eq` of the ID run under the lock; a panic there leaves the
//! map as it was.
//!
//! Every entry has a number besides its ID. A call removes only the entry with its own number.

use std::borrow::{Borrow, Cow};
use std::collections::HashMap;
use std::error::Error as StdError;
use std::fmt;
use std::hash::Hash;
use std::ops::Deref;
use std::panic::Location;
use std::sync::Arc;

use crate::context::{CancelScope, Canceler, Context};
use crate::finished::Finished;
use crate::sync::Mutex;

/// The incoming calls of a connection by their IDs, for protocols in which a cancel is a message.
///
/// JSON-RPC, MCP and LSP are such protocols: MCP's `notifications/cancelled` contains the ID of a request and a
/// reason, and LSP's `$/cancelRequest` the ID. The loop that reads the connection owns the table. It
/// [begins](Self::begin) a call for each request, and passes each cancel message to [`cancel`](Self::cancel). The
/// handler gets the [`Call`], which contains its context, and removes it from the table by dropping it.
///
/// The protocol decides whether a lost connection cancels its calls. In a table made by [`new`](Self::new) it does:
/// when the loop ends, it drops the table, and all calls end with [`ConnectionLost`]. In one made by
/// [`outliving`](Self::outliving) the calls continue, as MCP requires over HTTP, where a client may reconnect and
/// fetch the response.
///
/// Go has no counterpart; `x/tools/jsonrpc2` contains such a table. For outgoing calls, `Context::run_then` sends a
/// cancel message when the context ends.
///
/// ```
/// use tokio_ctx::{BoxError, Context};
/// use tokio_ctx::wire::Calls;
///
/// enum Message {
///     Request { id: u64, text: String },
///     Cancel { id: u64, reason: String },
/// }
///
/// async fn serve(
///     service: &Context,
///     mut messages: tokio::sync::mpsc::Receiver<Message>,
///     answers: tokio::sync::mpsc::Sender<(u64, String)>,
/// ) -> Result<(), BoxError> {
///     let calls = Calls::new(service);
///     while let Some(message) = messages.recv().await {
///         match message {
///             Message::Request { id, text } => {
///                 let (call, answers) = (calls.begin(id)?, answers.clone());
///                 tokio::spawn(async move {
///                     // A canceled call is not answered.
///                     if let Ok(answer) = call.run(translate(text)).await {
///                         answers.send((id, answer)).await.ok();
///                     }
///                 });
///             }
///             // The call may already have been answered.
///             Message::Cancel { id, reason } => drop(calls.cancel(&id, reason)),
///         }
///     }
///     Ok(())
/// }
/// # async fn translate(text: String) -> String { text }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// # let (send, messages) = tokio::sync::mpsc::channel(8);
/// # let (answers, mut answered) = tokio::sync::mpsc::channel(8);
/// # send.send(Message::Request { id: 7, text: "hello".into() }).await.ok();
/// # send.send(Message::Cancel { id: 8, reason: "enough".into() }).await.ok();
/// # let service = Context::background();
/// # tokio::select! {
/// #     _ = serve(&service, messages, answers) => unreachable!(),
/// #     answer = answered.recv() => assert_eq!(answer.unwrap(), (7, "hello".to_string())),
/// # }
/// # }
/// ```
pub struct Calls<Id: Eq + Hash> {
    table: Arc<Mutex<Table<Id>>>,
    parent: Context,
    /// Ends when the connection is lost. None if the calls outlive it.
    connection: Option<CancelScope>,
}

struct Table<Id> {
    in_progress: HashMap<Id, Entry>,
    begun: u64,
}

struct Entry {
    number: u64,
    canceler: Canceler,
    /// Whether the peer has canceled it. The error of its context may be that of another peer, whose call `parent` is.
    is_canceled: bool,
}

impl<Id: Clone + Eq + Hash> Calls<Id> {
    /// Makes a table whose calls are children of `parent`, and end when the connection is lost.
    ///
    /// ```
    /// use tokio_ctx::Context;
    /// use tokio_ctx::wire::{Calls, ConnectionLost};
    ///
    /// let service = Context::background().with_cancel();
    /// let calls = Calls::new(&service);
    /// let call = calls.begin("a").unwrap();
    /// drop(calls);
    /// assert!(call.err().unwrap().cause_as::<ConnectionLost>().is_some());
    /// ```
    #[track_caller]
    pub fn new(parent: &Context) -> Calls<Id> {
        let connection = parent.with_cancel();
        Calls {
            table: Table::empty(),
            parent: connection.context().clone(),
            connection: Some(connection),
        }
    }

    /// Makes a table whose calls are children of `parent`, and continue when the connection is lost.
    ///
    /// ```
    /// use tokio_ctx::Context;
    /// use tokio_ctx::wire::Calls;
    ///
    /// let service = Context::background().with_cancel();
    /// let calls = Calls::outliving(&service);
    /// let call = calls.begin("a").unwrap();
    /// drop(calls);
    /// assert!(!call.is_done());
    /// service.cancel();
    /// assert!(call.is_done());
    /// ```
    pub fn outliving(parent: &Context) -> Calls<Id> {
        Calls { table: Table::empty(), parent: parent.clone(), connection: None }
    }

    /// Begins a call. Its context ends when the peer cancels it, when the table's parent ends, and when the call is
    /// dropped.
    ///
    /// After the connection was [lost](Self::lost), the new context has already ended, unless calls outlive it.
    ///
    /// # Errors
    ///
    /// Returns an error if a call with this ID is in progress. The peer must not reuse the ID, because a cancel message
    /// would be ambiguous.
    ///
    /// ```
    /// use tokio_ctx::Context;
    /// use tokio_ctx::wire::Calls;
    ///
    /// let calls = Calls::new(&Context::background());
    /// let call = calls.begin(1).unwrap();
    /// assert_eq!(calls.begin(1).unwrap_err().to_string(), "a call with this ID is in progress");
    /// drop(call);
    /// assert!(calls.begin(1).is_ok());
    /// ```
    #[track_caller]
    pub fn begin(&self, id: Id) -> Result<Call<Id>, IdInUse> {
        let place = Location::caller();
        let scope = self.parent.with_cancel();
        let mut table = self.table.lock();
        if table.in_progress.contains_key(&id) {
            return Err(IdInUse(()));
        }
        table.begun += 1;
        let number = table.begun;
        table
            .in_progress
            .insert(id.clone(), Entry { number, canceler: scope.canceler(), is_canceled: false });
        drop(table);
        Ok(Call { scope, id, number, table: self.table.clone(), place })
    }

    /// Cancels a call on behalf of the peer, with the cause [`CanceledByPeer`], which contains the reason.
    ///
    /// Returns false if there is no such call. It may have been answered while the message was in transit, which is not
    /// an error in any of these protocols. An empty reason means that the peer sent none. A long reason is truncated to
    /// 1,024 bytes. The text comes from the peer and is not trusted.
    ///
    /// ```
    /// use tokio_ctx::Context;
    /// use tokio_ctx::wire::{Calls, CanceledByPeer};
    ///
    /// let calls = Calls::new(&Context::background());
    /// let call = calls.begin("a".to_string()).unwrap();
    /// assert!(calls.cancel("a", "the user pressed Escape"));
    /// let error = call.err().unwrap();
    /// assert_eq!(error.cause_as::<CanceledByPeer>().unwrap().reason(), Some("the user pressed Escape"));
    /// assert!(!calls.cancel("b", ""));
    /// ```
    #[track_caller]
    pub fn cancel<Q>(&self, id: &Q, reason: impl Into<Cow<'static, str>>) -> bool
    where
        Id: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let cause = CanceledByPeer::new(reason.into());
        let canceler = self.table.lock().in_progress.get_mut(id).map(|entry| {
            entry.is_canceled = true;
            entry.canceler.clone()
        });
        let Some(canceler) = canceler else { return false };
        canceler.cancel_with(cause);
        true
    }

    /// Ends all calls with [`ConnectionLost`], unless they outlive the connection. Dropping the table does the same,
    /// without a reason.
    ///
    /// ```
    /// use tokio_ctx::Context;
    /// use tokio_ctx::wire::{Calls, ConnectionLost};
    ///
    /// let calls = Calls::new(&Context::background());
    /// let call = calls.begin(1).unwrap();
    /// calls.lost("reset by peer");
    /// let error = call.err().unwrap();
    /// assert_eq!(error.cause_as::<ConnectionLost>().unwrap().to_string(), "connection lost: reset by peer");
    /// ```
    #[track_caller]
    pub fn lost(&self, why: impl fmt::Display) {
        if let Some(connection) = &self.connection {
            connection.cancel_with(ConnectionLost(why.to_string()));
        }
    }

    /// Returns the number of calls in progress.
    ///
    /// ```
    /// use tokio_ctx::{Context, wire::Calls};
    ///
    /// let calls = Calls::<u64>::new(&Context::background());
    /// assert_eq!(calls.len(), 0);
    /// ```
    pub fn len(&self) -> usize {
        self.table.lock().in_progress.len()
    }

    /// Returns whether no call is in progress.
    ///
    /// ```
    /// use tokio_ctx::{Context, wire::Calls};
    ///
    /// assert!(Calls::<u64>::new(&Context::background()).is_empty());
    /// ```
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<Id: Eq + Hash> Drop for Calls<Id> {
    fn drop(&mut self) {
        if let Some(connection) = &self.connection {
            connection.cancel_with(ConnectionLost(String::new()));
        }
    }
}

impl<Id: Eq + Hash> fmt::Debug for Calls<Id> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let in_progress = self.table.lock().in_progress.len();
        f.debug_struct("Calls").field("in_progress", &in_progress).finish_non_exhaustive()
    }
}

impl<Id: Eq + Hash> Table<Id> {
    fn empty() -> Arc<Mutex<Table<Id>>> {
        Arc::new(Mutex::new(Table { in_progress: HashMap::new(), begun: 0 }))
    }

    /// Removes the entry with that number. The caller drops it after the lock is released.
    fn take(&mut self, id: &Id, number: u64) -> Option<(Id, Entry)> {
        let is_its = self.in_progress.get(id).is_some_and(|entry| entry.number == number);
        if is_its { self.in_progress.remove_entry(id) } else { None }
    }
}

/// An incoming call in progress, with its [`Context`]. Made by [`Calls::begin`].
///
/// Dropping it removes it from the table and ends its context.
#[must_use = "dropping the call ends it"]
pub struct Call<Id: Eq + Hash> {
    scope: CancelScope,
    id: Id,
    number: u64,
    table: Arc<Mutex<Table<Id>>>,
    place: &'static Location<'static>,
}

impl<Id: Eq + Hash> Call<Id> {
    /// Returns the ID.
    ///
    /// ```
    /// use tokio_ctx::{Context, wire::Calls};
    ///
    /// let calls = Calls::new(&Context::background());
    /// assert_eq!(calls.begin(7).unwrap().id(), &7);
    /// ```
    pub fn id(&self) -> &Id {
        &self.id
    }

    /// Removes the call from the table, and returns whether the peer had canceled it, even if its context had ended before
    /// in another way.
    ///
    /// In MCP, a canceled call gets no response. In LSP, the response is the error `RequestCancelled`. A cancel message
    /// that arrives after this has no effect.
    ///
    /// ```
    /// use tokio_ctx::{Context, wire::Calls};
    ///
    /// let calls = Calls::new(&Context::background());
    /// let (answered, canceled) = (calls.begin(1).unwrap(), calls.begin(2).unwrap());
    /// calls.cancel(&2, "");
    /// assert!(!answered.finish());
    /// assert!(canceled.finish());
    /// assert!(!calls.cancel(&1, ""));
    /// ```
    pub fn finish(self) -> bool {
        self.remove_from_table()
    }

    /// Returns whether the peer had canceled the call.
    fn remove_from_table(&self) -> bool {
        let left = self.table.lock().take(&self.id, self.number);
        left.is_some_and(|(_, entry)| entry.is_canceled)
    }
}

impl<Id: Eq + Hash> Drop for Call<Id> {
    fn drop(&mut self) {
        self.remove_from_table();
        self.scope.cancel_at(self.place, Box::new(Finished("call over")));
    }
}

impl<Id: Eq + Hash> Deref for Call<Id> {
    type Target = Context;

    fn deref(&self) -> &Context {
        &self.scope
    }
}

impl<Id: Eq + Hash> AsRef<Context> for Call<Id> {
    fn as_ref(&self) -> &Context {
        &self.scope
    }
}

impl<Id: Eq + Hash + fmt::Debug> fmt::Debug for Call<Id> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("id", &self.id).field("context", self.scope.context()).finish()
    }
}

/// The cause of a call that was canceled by its peer. See [`Calls::cancel`].
///
/// ```
/// use tokio_ctx::{Context, wire::Calls};
///
/// let calls = Calls::new(&Context::background());
/// let call = calls.begin(1).unwrap();
/// calls.cancel(&1, "no longer needed");
/// assert!(call.err().unwrap().to_string().ends_with(": canceled by the peer: no longer needed"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CanceledByPeer {
    reason: Cow<'static, str>,
}

/// The maximum length of a reason, in bytes.
const LONGEST: usize = 1024;

impl CanceledByPeer {
    fn new(mut reason: Cow<'static, str>) -> CanceledByPeer {
        if reason.len() > LONGEST {
            let end = (0..=LONGEST).rev().find(|end| reason.is_char_boundary(*end)).unwrap_or(0);
            // Copied, so that the memory of the rest is freed.
            reason = reason[..end].to_owned().into();
        }
        CanceledByPeer { reason }
    }

    /// Returns the reason, if the peer sent one.
    ///
    /// ```
    /// use tokio_ctx::Context;
    /// use tokio_ctx::wire::{Calls, CanceledByPeer};
    ///
    /// let calls = Calls::new(&Context::background());
    /// let call = calls.begin(1).unwrap();
    /// calls.cancel(&1, "");
    /// assert_eq!(call.err().unwrap().cause_as::<CanceledByPeer>().unwrap().reason(), None);
    /// ```
    pub fn reason(&self) -> Option<&str> {
        Some(&*self.reason).filter(|reason| !reason.is_empty())
    }
}

impl fmt::Display for CanceledByPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason() {
            None => f.write_str("canceled by the peer"),
            Some(reason) => write!(f, "canceled by the peer: {reason}"),
        }
    }
}

impl StdError for CanceledByPeer {}

/// The cause of a call whose connection was lost. See [`Calls`].
///
/// ```
/// use tokio_ctx::Context;
/// use tokio_ctx::wire::{Calls, ConnectionLost};
///
/// let calls = Calls::new(&Context::background());
/// let call = calls.begin(1).unwrap();
/// drop(calls);
/// assert_eq!(call.err().unwrap().cause_as::<ConnectionLost>().unwrap().to_string(), "connection lost");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionLost(String);

impl fmt::Display for ConnectionLost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_str() {
            "" => f.write_str("connection lost"),
            why => write!(f, "connection lost: {why}"),
        }
    }
}

impl StdError for ConnectionLost {}

/// The error of [`Calls::begin`] if a call with the same ID is in progress.
///
/// ```
/// use tokio_ctx::{Context, wire::Calls};
///
/// let calls = Calls::new(&Context::background());
/// let _call = calls.begin(1).unwrap();
/// assert!(calls.begin(1).is_err());
/// ```
#[derive(Debug)]
pub struct IdInUse(());

impl fmt::Display for IdInUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a call with this ID is in progress")
    }
}

impl StdError for IdInUse {}
