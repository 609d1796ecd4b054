//! The name of a request in the report of a shutdown: its method, and the path of its route.

use std::fmt;

use http::uri::PathAndQuery;
use http::{Method, Request};

use crate::registry::Label;

/// `GET /report/{id}`, or, if no route is known, the method and the path that was sent, without its query.
pub(crate) struct RequestLine {
    method: Method,
    path: Path,
}

enum Path {
    Sent(Option<PathAndQuery>),
    #[cfg(feature = "axum")]
    Matched(::axum::extract::MatchedPath),
}

impl Label for RequestLine {
    fn text(&self) -> Option<&dyn fmt::Display> {
        Some(self)
    }
}

/// The maximum length that is shown. It is limited because clients choose the path.
const LONGEST: usize = 120;

impl RequestLine {
    pub(crate) fn of<A>(request: &Request<A>) -> RequestLine {
        RequestLine { method: request.method().clone(), path: Path::of(request) }
    }
}

impl Path {
    fn of<A>(request: &Request<A>) -> Path {
        #[cfg(feature = "axum")]
        if let Some(matched) = request.extensions().get::<::axum::extract::MatchedPath>() {
            return Path::Matched(matched.clone());
        }
        Path::Sent(request.uri().path_and_query().cloned())
    }

    fn as_str(&self) -> &str {
        match self {
            Path::Sent(path) => path.as_ref().map_or("", PathAndQuery::path),
            #[cfg(feature = "axum")]
            Path::Matched(matched) => matched.as_str(),
        }
    }
}

impl fmt::Display for RequestLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (method, path) = (brief(self.method.as_str()), brief(self.path.as_str()));
        match path {
            "" => f.write_str(method),
            path => write!(f, "{method} {path}"),
        }?;
        if path.len() < self.path.as_str().len() { f.write_str("…") } else { Ok(()) }
    }
}

fn brief(text: &str) -> &str {
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => &text[..end],
        None => text,
    }
}
