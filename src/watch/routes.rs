//! The routes: the page, the JSON and the text of a watch, for axum.

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
use super::camera::{self, NoPicture};
use super::query::{self, BadQuery, Form};

const PAGE: &str = include_str!("page.html");
/// What the page may do: run its own script, and ask where it came from. The hashes are those of what is between the
/// tags; a test says what they are to be after a change.
const POLICY: &str = "default-src 'none'; \
     script-src 'sha256-I0Z3XmMeWh+MXwBbA+/d/CK5oeum43QvLRfGu04b0D4='; \
     style-src 'sha256-tqu/OuwKZea45LryrHahS6nPEl2xbPAMALrxi+7rzvs='; \
     connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
     require-trusted-types-for 'script'";

const HTML: &str = "text/html; charset=utf-8";
const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";

#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
impl Watch {
    /// Routes that show the watch, for [`Router::nest`], or for `nest_service`, which answers under `/watch/` as well:
    ///
    /// | path | answer |
    /// |---|---|
    /// | `/` | a page for a browser, which refreshes itself each second |
    /// | `/json` | the fields of a [`Snapshot`](super::Snapshot), with so many lines and entries at most |
    /// | `/text` | its text; `?under=ID` the tree under an entry |
    ///
    /// They answer peers on loopback addresses only, so the server has to provide the address of the peer; see
    /// [`Access`], and [`routes_for`](Self::routes_for) for others. Causes are hidden unless
    /// [`show_causes`](super::Builder::show_causes) allows them. Names of requests are shown, and so their paths.
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
    /// On a port of their own, that no [`Shutdown`](crate::Shutdown) closes: then they show a drain to its end. Where
    /// handlers may block the workers of the runtime, on a runtime of their own as well, in a thread:
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
    /// # What it costs
    ///
    /// A thread answers while there are requests, and ends five seconds after the last. All requests within
    /// 200 ms share a picture, or within four times what that took, up to ten seconds. A picture that takes more than
    /// 30 ms is taken while requests are answered from the one before, so of many thousands of contexts what is shown
    /// may be some seconds old: `taken_at_ms` says.
    ///
    /// # The query of `/json`
    ///
    /// | parameter | |
    /// |---|---|
    /// | `entries` | so many `entries` at most, 1,000 by default, 10,000 at most; see [`Snapshot::cut`](super::Snapshot::cut) |
    /// | `under` | only entries under this one, by its `id` |
    /// | `lines` | so many lines in each list, 200 by default, 1,000 at most; `left_out` says how many more there are |
    /// | `q` | only lines that contain this text, in upper or lower case, or have an entry that does, or that is below one with such a name |
    /// | `open` | `N:LIST`, up to 64 times: N entries of a list as well, and those above them; `opened` has their numbers, and how many there are in all. A list is `top`, `found` (by `q`), `below/ID`, `ended/KIND/LINE`, `held/KIND/LINE` or `alive/KIND/LINE` |
    ///
    /// A parameter that is not known, or not as it should be, is answered with status 400 and a line that says what is wrong.
    pub fn routes<S: Clone + Send + Sync + 'static>(&self) -> Router<S> {
        self.routes_for(Access::loopback())
    }

    /// [`routes`](Self::routes) that answer other requests than those of loopback peers.
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

    /// What is answered without a look at what is asked for.
    fn refusal(&self, what: What, request: &Parts) -> Option<Response> {
        if let Err(refusal) = self.access.check(request) {
            return Some(plain(refusal.status, refusal.text));
        }
        if what == What::Nothing {
            return Some(plain(
                StatusCode::NOT_FOUND,
                "there is nothing here; there is /, /json and /text\n",
            ));
        }
        if request.method != Method::GET && request.method != Method::HEAD {
            let is_asking = request.method == Method::OPTIONS;
            let status = if is_asking { StatusCode::NO_CONTENT } else { StatusCode::METHOD_NOT_ALLOWED };
            let text = if is_asking { "" } else { "only GET and HEAD\n" };
            return Some(with(plain(status, text), ALLOW, "GET, HEAD, OPTIONS"));
        }
        None
    }

    async fn content(&self, what: What, query: &str) -> Response {
        match what {
            What::Json => self.picture(Form::json(query), JSON).await,
            What::Text => self.picture(Form::text(query), TEXT).await,
            What::Page | What::Nothing => match query::none(query) {
                Ok(()) => answer(StatusCode::OK, HTML, Bytes::from_static(PAGE.as_bytes())),
                Err(error) => bad(&error),
            },
        }
    }

    async fn picture(&self, form: Result<Form, BadQuery>, content_type: &'static str) -> Response {
        let form = match form {
            Ok(form) => form,
            Err(error) => return bad(&error),
        };
        match camera::picture(self.watch, form).await {
            Ok(picture) => answer(StatusCode::OK, content_type, picture),
            Err(NoPicture::NotFound) => {
                plain(StatusCode::NOT_FOUND, "there is no such entry, or no longer\n")
            }
            Err(NoPicture::Busy) => {
                let busy =
                    plain(StatusCode::SERVICE_UNAVAILABLE, "too many ask for the watch at once\n");
                with(busy, RETRY_AFTER, "1")
            }
            Err(NoPicture::Failed) => plain(
                StatusCode::INTERNAL_SERVER_ERROR,
                "there is no thread to take a picture, or it panicked\n",
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

/// An answer that is kept nowhere, is what it says it is, and that no other site may use.
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
