//! The axum routes of a watch: the page, the JSON and the text.

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use axum::routing::any;
use bytes::Bytes;
use http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, StatusCode};

use super::access::Access;
use super::build::Watch;
use super::query::{self, BadQuery, Form};
use super::renderer::{Unavailable, render};

const PAGE: &str = include_str!("page.html");
/// Allows the page to run its own script, and to send requests to its own origin. The hashes are those of the script and
/// the style; after a change, a test prints the new ones.
const POLICY: &str = "default-src 'none'; \
     script-src 'sha256-uKQV62vDBKIodpOwQryjrL68UfNXkzth4uLFVdaTPBk='; \
     style-src 'sha256-tqu/OuwKZea45LryrHahS6nPEl2xbPAMALrxi+7rzvs='; \
     connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
     require-trusted-types-for 'script'";

const HTML: &str = "text/html; charset=utf-8";
const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";

#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
impl Watch {
    /// Returns routes that show the watch, for [`Router::nest`], or for `nest_service`, which also accepts a slash at the end:
    ///
    /// | path | answer |
    /// |---|---|
    /// | `/` | a page for a browser, which refreshes itself every second |
    /// | `/json` | the fields of a [`Snapshot`](super::Snapshot), with a limited number of lines and entries |
    /// | `/text` | the text of a snapshot, or, with `?under=ID`, the tree under an entry |
    ///
    /// They answer only peers on loopback addresses, so the server has to provide the address of the peer. See [`Access`], and
    /// [`routes_for`](Self::routes_for) to change that. The texts of causes are hidden unless
    /// [`show_causes`](super::Builder::show_causes) is set. The methods and paths of requests are shown.
    ///
    /// ```no_run
    /// use std::net::SocketAddr;
    /// use axum::Router;
    /// use tokio_ctx::watch;
    ///
    /// # #[tokio::main]
    /// # async fn main() -> std::io::Result<()> {
    /// let watch = watch::install();
    /// let admin = Router::new().nest("/watch", watch.routes());
    /// let listener = tokio::net::TcpListener::bind("127.0.0.1:9000").await?;
    /// axum::serve(listener, admin.into_make_service_with_connect_info::<SocketAddr>()).await
    /// # }
    /// ```
    ///
    /// # Where to serve them
    ///
    /// Use a separate port that no [`Shutdown`](crate::Shutdown) closes, so that they show a shutdown until its end. If
    /// handlers may block the workers of the runtime, use a separate runtime as well, in a thread:
    ///
    /// ```no_run
    /// # use std::net::SocketAddr;
    /// # let watch = tokio_ctx::watch::install();
    /// std::thread::spawn(move || -> std::io::Result<()> {
    ///     let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    ///     runtime.block_on(async {
    ///         let listener = tokio::net::TcpListener::bind("127.0.0.1:9000").await?;
    ///         let routes: axum::Router = watch.routes();
    ///         axum::serve(listener, routes.into_make_service_with_connect_info::<SocketAddr>()).await
    ///     })
    /// });
    /// ```
    ///
    /// # Cost
    ///
    /// A thread answers the requests, and ends five seconds after the last one. Requests share a snapshot for 200 ms,
    /// or for four times as long as it took, up to ten seconds. If a snapshot takes more than 30 ms, requests are
    /// answered from the previous one in the meantime. With many thousands of contexts, the data may therefore be some
    /// seconds old; its time is in `taken_at_ms`.
    ///
    /// # The query of `/json`
    ///
    /// | parameter | meaning |
    /// |---|---|
    /// | `entries` | the maximum number of `entries`: 1,000 by default, up to 10,000; see [`Snapshot::cut`](super::Snapshot::cut) |
    /// | `under` | only entries under this one, by its `id` |
    /// | `lines` | the maximum number of lines in each list: 200 by default, up to 1,000; `left_out` has the number of the others |
    /// | `q` | only lines that contain this text, or that have an entry that contains it, or an entry below one whose name contains it; case is ignored |
    /// | `open` | `N:LIST`, up to 64 times: also includes the first N entries of a list, with their ancestors; `opened` has their numbers and the length of the list. A list is `top`, `found` (by `q`), `below/ID`, `ended/KIND/LINE`, `held/KIND/LINE` or `alive/KIND/LINE` |
    ///
    /// The response to an unknown or invalid parameter has status 400 and a line that describes the error.
    pub fn routes<S: Clone + Send + Sync + 'static>(&self) -> Router<S> {
        self.routes_for(Access::loopback())
    }

    /// Returns the [`routes`](Self::routes) with other rules for the requests that are answered.
    pub fn routes_for<S: Clone + Send + Sync + 'static>(&self, access: Access) -> Router<S> {
        let route = |what: What| {
            let routes = Routes { watch: *self, access: access.clone() };
            move |request: Request| async move { routes.answer(what, &request.into_parts().0).await }
        };
        Router::new()
            .route("/", any(route(What::Page)))
            .route("/json", any(route(What::Json)))
            .route("/text", any(route(What::Text)))
            .fallback(route(What::Nothing))
    }
}

#[derive(Clone)]
struct Routes {
    watch: Watch,
    access: Access,
}

#[derive(Clone, Copy, PartialEq)]
enum What {
    Page,
    Json,
    Text,
    Nothing,
}

impl Routes {
    async fn answer(&self, what: What, request: &Parts) -> Response {
        let mut response = match self.refusal(what, request) {
            Some(refusal) => refusal,
            None => self.content(what, request.uri.query().unwrap_or_default()).await,
        };
        if request.method == Method::HEAD {
            *response.body_mut() = Body::empty();
        }
        response
    }

    /// Returns the response to a request that is refused.
    fn refusal(&self, what: What, request: &Parts) -> Option<Response> {
        if let Err(refusal) = self.access.check(request) {
            return Some(plain(refusal.status, refusal.text));
        }
        if what == What::Nothing {
            return Some(plain(StatusCode::NOT_FOUND, "not found: the paths are /, /json and /text\n"));
        }
        if request.method != Method::GET && request.method != Method::HEAD {
            let is_options = request.method == Method::OPTIONS;
            let status =
                if is_options { StatusCode::NO_CONTENT } else { StatusCode::METHOD_NOT_ALLOWED };
            let text = if is_options { "" } else { "only GET and HEAD are allowed\n" };
            return Some(with(plain(status, text), ALLOW, "GET, HEAD, OPTIONS"));
        }
        None
    }

    async fn content(&self, what: What, query: &str) -> Response {
        match what {
            What::Json => self.snapshot(Form::json(query), JSON).await,
            What::Text => self.snapshot(Form::text(query), TEXT).await,
            What::Page | What::Nothing => match query::none(query) {
                Ok(()) => answer(StatusCode::OK, HTML, Bytes::from_static(PAGE.as_bytes())),
                Err(error) => bad(&error),
            },
        }
    }

    async fn snapshot(&self, form: Result<Form, BadQuery>, content_type: &'static str) -> Response {
        let form = match form {
            Ok(form) => form,
            Err(error) => return bad(&error),
        };
        match render(self.watch, form).await {
            Ok(text) => answer(StatusCode::OK, content_type, text),
            Err(Unavailable::NotFound) => {
                plain(StatusCode::NOT_FOUND, "there is no entry with this number\n")
            }
            Err(Unavailable::Busy) => {
                let busy = plain(StatusCode::SERVICE_UNAVAILABLE, "too many requests at once\n");
                with(busy, RETRY_AFTER, "1")
            }
            Err(Unavailable::Failed) => plain(
                StatusCode::INTERNAL_SERVER_ERROR,
                "no snapshot could be taken: its thread could not be started, or it panicked\n",
            ),
        }
    }
}

fn bad(error: &BadQuery) -> Response {
    plain(StatusCode::BAD_REQUEST, format!("{error}\n"))
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response {
    answer(status, TEXT, text.into())
}

/// Creates a response that is not cached, whose type is not guessed, and that other sites cannot use.
fn answer(status: StatusCode, content_type: &'static str, body: Bytes) -> Response {
    const HEADERS: [(&str, &str); 7] = [
        ("cache-control", "no-store"),
        ("content-security-policy", POLICY),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
        ("referrer-policy", "no-referrer"),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
    ];
    let length = HeaderValue::from(body.len());
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    if status != StatusCode::NO_CONTENT {
        headers.insert(CONTENT_LENGTH, length);
    }
    for (name, value) in HEADERS {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    response
}

fn with(mut response: Response, name: HeaderName, value: &'static str) -> Response {
    response.headers_mut().insert(name, HeaderValue::from_static(value));
    response
}
