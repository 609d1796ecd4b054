//! The calls that a peer has under way, by their ids: for JSON-RPC and its family (MCP, LSP), where a cancel is a message.
//!
//! The lock is over the map alone. Contexts are canceled, and what a caller gave is dropped, after it is released: a
//! waker may begin the next call, or cancel another.
//!
//! An entry has a number besides its id. A call that is dropped takes out its own entry and no other, though its id may
//! be in use again: a connection that was lost has forgotten the calls that go on.

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
use crate::token::sync::Mutex;

/// The calls that a peer has under way on a connection, by their ids: for protocols in which a cancel is a message.
///
/// JSON-RPC's family is like that: MCP's `notifications/cancelled` has the id of a request and a reason, LSP's
/// `$/cancelRequest` has the id. The loop that reads the connection owns the table: it [begins](Self::begin) a call for
/// each request, and hands a cancel to [`cancel`](Self::cancel). A handler has its [`Call`], which is its context, and
/// takes it out of the table when it drops it.
///
/// Whether a lost connection ends the calls that came over it is a question of the protocol. With [`new`](Self::new) it
/// does: the table is dropped when its loop ends, however that comes, and all calls end with [`ConnectionLost`]. With
/// [`outliving`](Self::outliving) they go on, as MCP wants it over HTTP, where a peer may come back for its answer.
///
/// Go has no counterpart; `x/tools/jsonrpc2` keeps such a table inside.
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
///                     // A call that was taken back is not answered.
///                     if let Ok(answer) = call.run(translate(text)).await {
///                         answers.send((id, answer)).await.ok();
///                     }
///                 });
///             }
///             // One that has been answered meanwhile is none of ours any more.
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
    /// Ends when the connection is lost; none if the calls outlive it.
    connection: Option<CancelScope>,
}

struct Table<Id> {
    under_way: HashMap<Id, Entry>,
    begun: u64,
}

struct Entry {
    number: u64,
    canceler: Canceler,
}

impl<Id: Clone + Eq + Hash> Calls<Id> {
    /// A table whose calls are children of `parent`, and end when the connection is lost.
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

    /// A table whose calls are children of `parent`, and go on when the connection is lost.
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

    /// Begins a call, whose context ends when the peer cancels it, with the table's parent, and when it is dropped.
    ///
    /// After the connection was [lost](Self::lost) it has ended at birth, unless calls outlive it.
    ///
    /// # Errors
    ///
    /// If a call with this id is under way: the peer has made a mistake, and which call a cancel means would be open.
    ///
    /// ```
    /// use tokio_ctx::Context;
    /// use tokio_ctx::wire::Calls;
    ///
    /// let calls = Calls::new(&Context::background());
    /// let call = calls.begin(1).unwrap();
    /// assert_eq!(calls.begin(1).unwrap_err().to_string(), "a call with this id is under way");
    /// drop(call);
    /// assert!(calls.begin(1).is_ok());
    /// ```
    #[track_caller]
    pub fn begin(&self, id: Id) -> Result<Call<Id>, IdInUse> {
        let place = Location::caller();
        let scope = self.parent.with_cancel();
        let mut table = self.table.lock();
        if table.under_way.contains_key(&id) {
            return Err(IdInUse(()));
        }
        table.begun += 1;
        let number = table.begun;
        table.under_way.insert(id.clone(), Entry { number, canceler: scope.canceler() });
        drop(table);
        Ok(Call { scope, id, number, table: self.table.clone(), place })
    }

    /// Cancels a call, as its peer asks: it ends with [`CanceledByPeer`], which has the reason.
    ///
    /// False if there is no such call: it may have been answered while the cancel was on its way, which is no error in
    /// any of these protocols. A peer decides what the reason says, and an empty one is none; of a long one the first
    /// 1,024 bytes are kept.
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
        let canceler = self.table.lock().under_way.get(id).map(|entry| entry.canceler.clone());
        let Some(canceler) = canceler else { return false };
        canceler.cancel_with(CanceledByPeer::new(reason.into()));
        true
    }

    /// Says that the connection is lost, and why; dropping the table says it too.
    ///
    /// All calls end with [`ConnectionLost`], unless they outlive the connection.
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

    /// How many calls are under way.
    ///
    /// ```
    /// use tokio_ctx::{Context, wire::Calls};
    ///
    /// let calls = Calls::<u64>::new(&Context::background());
    /// assert_eq!(calls.len(), 0);
    /// ```
    pub fn len(&self) -> usize {
        self.table.lock().under_way.len()
    }

    /// Whether no call is under way.
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
        let under_way = self.table.lock().under_way.len();
        f.debug_struct("Calls").field("under_way", &under_way).finish_non_exhaustive()
    }
}

impl<Id: Eq + Hash> Table<Id> {
    fn empty() -> Arc<Mutex<Table<Id>>> {
        Arc::new(Mutex::new(Table { under_way: HashMap::new(), begun: 0 }))
    }

    /// Takes the entry of that number out. What it holds is dropped by the caller, without the lock.
    fn take(&mut self, id: &Id, number: u64) -> Option<(Id, Entry)> {
        let is_its = self.under_way.get(id).is_some_and(|entry| entry.number == number);
        if is_its { self.under_way.remove_entry(id) } else { None }
    }
}

/// A call of a peer that is under way: its [`Context`]. Made by [`Calls::begin`].
///
/// Dropped, it is out of the table, and its context ends.
#[must_use = "dropping the call ends it"]
pub struct Call<Id: Eq + Hash> {
    scope: CancelScope,
    id: Id,
    number: u64,
    table: Arc<Mutex<Table<Id>>>,
    place: &'static Location<'static>,
}

impl<Id: Eq + Hash> Call<Id> {
    /// Its id.
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

    /// Takes the call out of the table, so that no cancel reaches it any more, and returns whether it has been canceled
    /// by its peer before: for a protocol in which such a call is not answered, or in another way.
    ///
    /// MCP wants no answer then, LSP one with the error `RequestCancelled`. A cancel that comes later meets the answer
    /// on its way.
    ///
    /// ```
    /// use tokio_ctx::{Context, wire::Calls};
    ///
    /// let calls = Calls::new(&Context::background());
    /// let (answered, taken_back) = (calls.begin(1).unwrap(), calls.begin(2).unwrap());
    /// calls.cancel(&2, "");
    /// assert!(!answered.finish());
    /// assert!(taken_back.finish());
    /// assert!(!calls.cancel(&1, ""));
    /// ```
    pub fn finish(self) -> bool {
        self.leave();
        self.scope.err().is_some_and(|ended| ended.cause_as::<CanceledByPeer>().is_some())
    }

    fn leave(&self) {
        let left = self.table.lock().take(&self.id, self.number);
        drop(left);
    }
}

impl<Id: Eq + Hash> Drop for Call<Id> {
    fn drop(&mut self) {
        self.leave();
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

/// The cause of a call that its peer has canceled, with the peer's reason. See [`Calls::cancel`].
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

/// What is kept of a reason, in bytes.
const LONGEST: usize = 1024;

impl CanceledByPeer {
    fn new(mut reason: Cow<'static, str>) -> CanceledByPeer {
        if reason.len() > LONGEST {
            let end = (0..=LONGEST).rev().find(|end| reason.is_char_boundary(*end)).unwrap_or(0);
            // A copy: a slice would keep all of it.
            reason = reason[..end].to_owned().into();
        }
        CanceledByPeer { reason }
    }

    /// The reason, if the peer gave one.
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

/// Why a call was not begun: another one with its id is under way. See [`Calls::begin`].
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
        f.write_str("a call with this id is under way")
    }
}

impl StdError for IdInUse {}
