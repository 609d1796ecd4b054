//! The services behind the gateway, one for each part of a user. Each takes 20 ms to answer, or two
//! seconds if it is slow, and reports its progress.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;
use tokio_ctx::{Context, Error};

use crate::{RequestId, bad_request};

const FAST: Duration = Duration::from_millis(20);
pub const SLOW: Duration = Duration::from_secs(2);

/// Returns the services, which report to `log`.
pub fn router(log: UnboundedSender<Event>) -> Router {
    Router::new().route("/{part}/{id}", get(answer)).with_state(log)
}

async fn answer(
    State(log): State<UnboundedSender<Event>>,
    Path((part, id)): Path<(Part, u64)>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    ctx: Context,
) -> Result<Json<Value>, (StatusCode, String)> {
    let slow = Slow::in_query(query.as_deref()).map_err(bad_request)?;
    let latency = if slow.is(part) { SLOW } else { FAST };
    let work = Work { log, part, request: RequestId::of(&headers) };

    // This future is dropped when the client disconnects. The work runs on a task of its own, which sees
    // that its context has ended, and can still report why it stops.
    match ctx.spawn(work.run(latency)).await {
        Ok(Ok(())) => Ok(Json(part.content(id))),
        Ok(Err(why)) => Err((StatusCode::SERVICE_UNAVAILABLE, why.to_string())),
        Err(panic) => Err((StatusCode::INTERNAL_SERVER_ERROR, panic.to_string())),
    }
}

/// The work of a service for one request.
struct Work {
    log: UnboundedSender<Event>,
    part: Part,
    request: RequestId,
}

impl Work {
    async fn run(self, latency: Duration) -> Result<(), Error> {
        self.report(Progress::Started);
        // Stands for a query to a database.
        let outcome = Context::current().sleep(latency).await;
        self.report(match &outcome {
            Ok(()) => Progress::Finished,
            Err(why) => Progress::Stopped(why.clone()),
        });
        outcome
    }

    fn report(&self, progress: Progress) {
        let event =
            Event { at: Instant::now(), request: self.request.clone(), part: self.part, progress };
        // Fails if the log is no longer read, which does not matter.
        let _ = self.log.send(event);
    }
}

/// The progress of the work for a request in a service.
#[derive(Debug)]
pub struct Event {
    pub at: Instant,
    pub request: RequestId,
    pub part: Part,
    pub progress: Progress,
}

#[derive(Debug)]
pub enum Progress {
    Started,
    Finished,
    Stopped(Error),
}

impl Progress {
    pub fn is_started(&self) -> bool {
        matches!(self, Progress::Started)
    }

    pub fn is_finished(&self) -> bool {
        matches!(self, Progress::Finished)
    }

    pub fn is_stopped(&self) -> bool {
        matches!(self, Progress::Stopped(_))
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {}: ", self.request, self.part)?;
        match &self.progress {
            Progress::Started => f.write_str("started"),
            Progress::Finished => f.write_str("finished"),
            Progress::Stopped(why) => write!(f, "stopped: {why}"),
        }
    }
}

/// A part of a user. There is a service for each part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    Profile,
    Preferences,
    Activity,
}

impl Part {
    pub const ALL: [Part; 3] = [Part::Profile, Part::Preferences, Part::Activity];

    fn name(self) -> &'static str {
        match self {
            Part::Profile => "profile",
            Part::Preferences => "preferences",
            Part::Activity => "activity",
        }
    }

    fn content(self, id: u64) -> Value {
        match self {
            Part::Profile => json!({ "id": id, "name": "Grace" }),
            Part::Preferences => json!({ "theme": "dark", "language": "en" }),
            Part::Activity => json!([
                Visit { page: "/basket".to_owned(), minutes_ago: 0 },
                Visit { page: "/shoes/17".to_owned(), minutes_ago: 4 },
                Visit { page: "/".to_owned(), minutes_ago: 130 },
            ]),
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One item of a user's activity.
#[derive(Serialize, Deserialize)]
pub struct Visit {
    pub page: String,
    pub minutes_ago: u32,
}

/// Which services are to be slow.
#[derive(Clone, Copy)]
pub enum Slow {
    None,
    One(Part),
    All,
}

impl Slow {
    /// Parses `slow=` in the query of a URL.
    pub fn in_query(query: Option<&str>) -> Result<Slow, String> {
        let mut pairs = query.unwrap_or_default().split('&');
        let slow = pairs.find_map(|pair| pair.strip_prefix("slow="));
        slow.map_or(Ok(Slow::None), str::parse)
    }

    fn is(self, part: Part) -> bool {
        match self {
            Slow::None => false,
            Slow::One(one) => one == part,
            Slow::All => true,
        }
    }
}

impl FromStr for Slow {
    type Err = String;

    fn from_str(name: &str) -> Result<Slow, String> {
        match name {
            "none" => return Ok(Slow::None),
            "all" => return Ok(Slow::All),
            _ => {}
        }
        let part = Part::ALL.into_iter().find(|part| part.name() == name);
        part.map(Slow::One)
            .ok_or_else(|| format!("slow={name}: it can be none, profile, preferences, activity or all"))
    }
}

impl fmt::Display for Slow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Slow::None => f.write_str("none"),
            Slow::One(part) => part.fmt(f),
            Slow::All => f.write_str("all"),
        }
    }
}
