//! The routes of a watch: which requests they answer, with what, and at which cost. The page itself is tried in a browser, in
//! `tests/peers/watch_page.rs`.
//!
//! There is one watch for the process, and tests run concurrently, so each test looks for its own names.

use std::collections::HashSet;
use std::error::Error as StdError;
use std::fmt;
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::extract::connect_info::MockConnectInfo;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::Value;
use tokio_ctx::watch::{Access, Watch};
use tokio_ctx::{Context, Shutdown};
use tower::ServiceExt;

/// No step takes a tenth of this, unless it hangs.
const HANG: Duration = Duration::from_secs(30);

/// Returns the watch. It registers contexts that are derived after the first call.
fn watch() -> Watch {
    static WATCH: OnceLock<Watch> = OnceLock::new();
    *WATCH.get_or_init(|| Watch::builder().show_causes(true).install().unwrap())
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn json(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text);
        serde_json::from_str(&self.text).unwrap()
    }
}

async fn send(app: Router, request: Request<Body>) -> Answer {
    let response = tokio::time::timeout(HANG, app.oneshot(request)).await.expect("it hangs").unwrap();
    let (parts, body) = response.into_parts();
    let text = body.collect().await.unwrap().to_bytes();
    Answer {
        status: parts.status,
        headers: parts.headers,
        text: String::from_utf8(text.to_vec()).unwrap(),
    }
}

/// Makes a GET request of a peer on this machine.
fn local(uri: &str) -> Request<Body> {
    from("127.0.0.1:4711", uri)
}

fn from(peer: &str, uri: &str) -> Request<Body> {
    let peer: SocketAddr = peer.parse().unwrap();
    let request = Request::get(uri).header("host", "127.0.0.1:9000").extension(ConnectInfo(peer));
    request.body(Body::empty()).unwrap()
}

/// Sends a request, and repeats it after a `Retry-After`, because another test fills the queue.
async fn get(uri: &str) -> Answer {
    loop {
        let answer = send(watch().routes(), local(uri)).await;
        if answer.header("retry-after") != "1" {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Repeats a request until the response satisfies the condition.
async fn until(uri: &str, is_such: impl Fn(&Value) -> bool) -> Value {
    let deadline = std::time::Instant::now() + HANG;
    loop {
        let json = get(uri).await.json();
        if is_such(&json) {
            return json;
        }
        assert!(std::time::Instant::now() < deadline, "{json:#}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Returns the names of the entries.
fn names(json: &Value) -> HashSet<&str> {
    array(&json["entries"]).iter().filter_map(|entry| entry["name"].as_str()).collect()
}

mod access {
    use super::*;

    async fn status(access: Access, request: Request<Body>) -> u16 {
        send(watch().routes_for(access), request).await.status.as_u16()
    }

    #[tokio::test]
    async fn only_loopback_peers_are_answered() {
        for peer in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert_eq!(send(watch().routes(), from(peer, "/")).await.status, 200, "{peer}");
        }
        for peer in ["10.0.0.1:1", "192.168.0.7:1", "[fe80::1]:1", "[::ffff:10.0.0.1]:1", "0.0.0.0:1"] {
            for path in ["/", "/json", "/text", "/none"] {
                let answer = send(watch().routes(), from(peer, path)).await;
                assert_eq!(answer.status, 403, "{peer}");
                assert!(answer.text.contains("available only from this machine"), "{}", answer.text);
            }
        }
    }

    #[tokio::test]
    async fn without_the_address_of_the_peer_the_response_explains_what_to_do() {
        let request = Request::get("/json").body(Body::empty()).unwrap();
        let answer = send(watch().routes(), request).await;
        assert_eq!(answer.status, 500);
        assert!(
            answer.text.contains("into_make_service_with_connect_info::<SocketAddr>()"),
            "{}",
            answer.text
        );
        let request = Request::get("/json").body(Body::empty()).unwrap();
        assert_eq!(status(Access::loopback().any_peer(), request).await, 200);
        let routes: Router = watch().routes();
        let routes = routes.layer(MockConnectInfo(SocketAddr::from(([127, 0, 0, 1], 9))));
        let request = Request::get("/text").body(Body::empty()).unwrap();
        assert_eq!(send(routes, request).await.status, 200);
    }

    #[tokio::test]
    async fn a_forwarded_request_is_refused() {
        for name in [
            "Forwarded",
            "X-Forwarded-For",
            "X-Forwarded-Proto",
            "X-Original-Forwarded-For",
            "X-Real-IP",
            "CF-Connecting-IP",
            "True-Client-IP",
            "Via",
        ] {
            let mut request = local("/json");
            request
                .headers_mut()
                .insert(http::HeaderName::try_from(name).unwrap(), "127.0.0.1".parse().unwrap());
            assert_eq!(send(watch().routes(), request).await.status, 403, "{name}");
        }
    }

    #[tokio::test]
    async fn foreign_hosts_are_refused() {
        let with_host = |host: &str| {
            let mut request = local("/json");
            request.headers_mut().insert("host", host.parse().unwrap());
            request
        };
        for host in [
            "localhost",
            "LocalHost:9000",
            "app.localhost",
            "127.0.0.1",
            "[::1]:80",
            "10.1.2.3:9",
            "localhost.",
        ] {
            assert_eq!(send(watch().routes(), with_host(host)).await.status, 200, "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example:80",
            "notlocalhost",
            "127.0.0.1.evil.example",
            "",
            "a b",
            "é",
        ] {
            let mut request = local("/json");
            request
                .headers_mut()
                .insert("host", http::HeaderValue::from_bytes(host.as_bytes()).unwrap());
            let answer = send(watch().routes(), request).await;
            assert_eq!(answer.status, 403, "{host}");
            assert!(answer.text.contains("Access::host"), "{}", answer.text);
        }
        // In HTTP/2 the URI contains the host. If there are two hosts, both have to be allowed.
        assert_eq!(send(watch().routes(), local("http://evil.example/json")).await.status, 403);
        let mut two = local("/json");
        two.headers_mut().append("host", "evil.example".parse().unwrap());
        assert_eq!(send(watch().routes(), two).await.status, 403);
        let mut none = local("/json");
        none.headers_mut().remove("host");
        assert_eq!(send(watch().routes(), none).await.status, 200);

        let known = Access::loopback().host("watch.example.com");
        assert_eq!(status(known.clone(), with_host("Watch.example.com:8443")).await, 200);
        assert_eq!(status(known, with_host("example.com")).await, 403);
        assert_eq!(status(Access::loopback().any_host(), with_host("example.com")).await, 200);
    }

    #[tokio::test]
    async fn other_peers_and_hosts_can_be_allowed() {
        let access = Access::default().peers(|ip| ip.to_string() == "10.0.0.1");
        assert_eq!(status(access.clone(), from("10.0.0.1:1", "/json")).await, 200);
        assert_eq!(status(access.clone(), from("[::ffff:10.0.0.1]:1", "/json")).await, 200);
        assert_eq!(status(access.clone(), from("10.0.0.2:1", "/json")).await, 403);
        assert_eq!(status(access.clone(), from("127.0.0.1:1", "/json")).await, 403);
        assert_eq!(status(access.any_peer(), from("9.9.9.9:1", "/json")).await, 200);
        let text = format!("{:?}", Access::loopback().host("a.b"));
        assert_eq!(text, r#"Access { peers: loopback, hosts: ["a.b"] }"#);
    }
}

mod what {
    use super::*;

    #[tokio::test]
    async fn the_page_is_one_file_and_runs_only_its_own_script() {
        let answer = get("/").await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-type"), "text/html; charset=utf-8");
        let policy = answer.header("content-security-policy");
        assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        for elsewhere in ["http://", "https://", "//cdn", "@import", "src=", "url("] {
            assert!(!answer.text.contains(elsewhere), "{elsewhere}");
        }
        for unsafe_sink in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "style=\"",
            "onclick=",
        ] {
            assert!(!answer.text.contains(unsafe_sink), "{unsafe_sink}");
        }
    }

    /// A change of the page changes the hashes. A browser takes line ends as `\n`, whatever they are in the file.
    #[tokio::test]
    async fn the_policy_has_the_hashes_of_the_script_and_of_the_style() {
        use base64::Engine as _;
        use sha2::{Digest, Sha256};

        let answer = get("/").await;
        let page = answer.text.replace("\r\n", "\n");
        for (tag, directive) in [("script", "script-src"), ("style", "style-src")] {
            let (_, rest) = page.split_once(&format!("<{tag}>")).unwrap();
            let (content, rest) = rest.split_once(&format!("</{tag}>")).unwrap();
            assert!(!rest.contains(&format!("<{tag}")), "one of each");
            let hash = base64::engine::general_purpose::STANDARD.encode(Sha256::digest(content));
            let expected = format!("{directive} 'sha256-{hash}'");
            let policy = answer.header("content-security-policy");
            assert!(policy.contains(&expected), "src/watch/routes.rs: {expected}");
        }
    }

    #[tokio::test]
    async fn no_response_is_cached_or_sniffed() {
        for uri in ["/", "/json", "/text", "/nothing", "/json?x=1", "/text?under=1"] {
            let answer = get(uri).await;
            assert_eq!(answer.header("cache-control"), "no-store", "{uri}");
            assert_eq!(answer.header("x-content-type-options"), "nosniff", "{uri}");
            assert_eq!(answer.header("cross-origin-resource-policy"), "same-origin", "{uri}");
            assert_eq!(answer.header("x-frame-options"), "DENY", "{uri}");
            assert_eq!(answer.header("content-length"), answer.text.len().to_string(), "{uri}");
            assert!(
                answer.header("content-security-policy").contains("frame-ancestors 'none'"),
                "{uri}"
            );
        }
    }

    #[tokio::test]
    async fn json_is_a_snapshot_and_text_its_text() {
        watch();
        let _named = Context::background().with_cancel().named("json-and-text");
        let json = until("/json", |json| names(json).contains("json-and-text")).await;
        assert_eq!(json["format"], tokio_ctx::watch::FORMAT);
        let snapshot: Value = serde_json::from_str(&watch().snapshot().to_json()).unwrap();
        for field in snapshot.as_object().unwrap().keys() {
            assert!(json.get(field).is_some(), "{field}");
        }
        let entry =
            array(&json["entries"]).iter().find(|entry| entry["name"] == "json-and-text").unwrap();
        let text = get("/text").await;
        assert_eq!(
            (text.status, text.header("content-type")),
            (StatusCode::OK, "text/plain; charset=utf-8")
        );
        let tree = get(&format!("/text?under={}", entry["id"])).await;
        assert!(tree.text.contains("json-and-text"), "{}", tree.text);
        assert_eq!(get("/text?under=1234567890123456").await.status, 404);
        assert_eq!(get("/json?under=1234567890123456").await.json()["entries"], Value::Array(vec![]));
    }

    #[tokio::test]
    async fn head_is_get_without_the_body() {
        for uri in ["/", "/text", "/none", "/json?x"] {
            let mut request = local(uri);
            *request.method_mut() = Method::HEAD;
            let (head, get) = (send(watch().routes(), request).await, get(uri).await);
            assert_eq!(head.text, "");
            assert_eq!(
                (head.status, head.header("content-type")),
                (get.status, get.header("content-type"))
            );
        }
    }

    #[tokio::test]
    async fn other_methods_are_refused() {
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::TRACE] {
            for uri in ["/", "/json", "/text"] {
                let mut request = local(uri);
                *request.method_mut() = method.clone();
                let answer = send(watch().routes(), request).await;
                assert_eq!(
                    (answer.status, answer.header("allow")),
                    (StatusCode::METHOD_NOT_ALLOWED, "GET, HEAD, OPTIONS")
                );
            }
        }
        let mut request = local("/json");
        *request.method_mut() = Method::OPTIONS;
        let answer = send(watch().routes(), request).await;
        assert_eq!(
            (answer.status, answer.header("allow")),
            (StatusCode::NO_CONTENT, "GET, HEAD, OPTIONS")
        );
        assert_eq!(answer.header("access-control-allow-origin"), "");
    }

    #[tokio::test]
    async fn unknown_paths_and_bad_queries_are_explained() {
        let answer = get("/assets/app.js").await;
        assert_eq!(
            (answer.status.as_u16(), &*answer.text),
            (404, "not found: the paths are /, /json and /text\n")
        );
        for uri in [
            "/?q=1",
            "/json?limit=1",
            "/json?entries=all",
            "/text?under=x",
            "/json?open=1:x",
            "/json?q=%ff",
        ] {
            let answer = get(uri).await;
            assert_eq!(
                (answer.status.as_u16(), answer.header("content-type")),
                (400, "text/plain; charset=utf-8"),
                "{uri}"
            );
            assert!(answer.text.ends_with('\n') && answer.text.len() > 10, "{}", answer.text);
        }
        let markup = get("/json?%3Cscript%3E").await;
        assert_eq!(
            (markup.status.as_u16(), markup.header("content-type")),
            (400, "text/plain; charset=utf-8")
        );
    }

    #[tokio::test]
    async fn nested_routes_work() {
        let app: Router = Router::new()
            .route("/{id}", axum::routing::get(|| async { "the service's" }))
            .nest("/watch", watch().routes());
        let with_slash: Router = Router::new().nest_service("/watch", watch().routes());
        let page = send(with_slash.clone(), local("/watch/")).await;
        assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
        assert_eq!(send(with_slash, local("/watch/json")).await.status, 200);
        for (uri, status) in
            [("/watch", 200), ("/watch/json", 200), ("/watch/text", 200), ("/watch/x", 404), ("/x", 200)]
        {
            let answer = send(app.clone(), local(uri)).await;
            assert_eq!(answer.status, status, "{uri}");
            assert_eq!(answer.text == "the service's", uri == "/x");
        }
    }
}

mod parts {
    use super::*;

    /// 50 children of one context, each with a name.
    fn family(name: &str) -> (Context, Vec<Context>) {
        watch();
        let top = Context::background().with_cancel().named(name.to_owned()).detach();
        let child = |at| top.with_cancel().named(format!("{name} child {at}")).detach();
        let children = (0..50).map(child).collect();
        (top, children)
    }

    fn id_of(json: &Value, name: &str) -> u64 {
        let entries = array(&json["entries"]);
        entries.iter().find(|entry| entry["name"] == name).unwrap()["id"].as_u64().unwrap()
    }

    #[tokio::test]
    async fn entries_are_limited_and_the_others_are_counted() {
        let (top, _children) = family("bounded");
        let all = until("/json?entries=10000", |json| names(json).contains("bounded child 49")).await;
        let id = id_of(&all, "bounded");
        let cut = get(&format!("/json?under={id}&entries=10")).await.json();
        assert_eq!(array(&cut["entries"]).len(), 10);
        assert_eq!(array(&cut["entries"])[0]["name"], "bounded");
        assert_eq!(array(&cut["entries"])[0]["children"], 50);
        let (seen, unlisted) = (&cut["totals"]["seen"], &cut["totals"]["unlisted"]);
        assert_eq!(seen.as_u64().unwrap() - 10, unlisted.as_u64().unwrap());
        assert_eq!(array(&get("/json?entries=0").await.json()["entries"]).len(), 0);
        drop(top);
    }

    #[tokio::test]
    async fn a_list_is_expanded_in_steps_with_the_ancestors() {
        let (_top, children) = family("opened");
        let below = children[7].with_cancel().named("opened grandchild");
        let all = until("/json?entries=10000", |json| names(json).contains("opened grandchild")).await;
        let (top, child) = (id_of(&all, "opened"), id_of(&all, "opened child 7"));
        let json = get(&format!("/json?entries=0&open=5:below/{top}&open=5:below/{child}")).await.json();
        assert_eq!(json["opened"][0]["key"], format!("below/{top}"));
        assert_eq!(json["opened"][0]["total"], 50);
        assert_eq!(array(&json["opened"][0]["listed"]).len(), 5);
        assert_eq!(
            (&json["opened"][1]["total"], array(&json["opened"][1]["listed"]).len()),
            (&Value::from(1), 1)
        );
        // The listed children, their ancestors, and no other entry.
        assert!(names(&json).is_superset(&HashSet::from([
            "opened",
            "opened child 7",
            "opened grandchild"
        ])));
        assert_eq!(
            array(&json["entries"]).len(),
            1 + 5 + 1 + usize::from(!array(&json["opened"][0]["listed"]).contains(&child.into()))
        );

        let entry = array(&all["entries"]).iter().find(|entry| entry["id"] == child).unwrap();
        let line = entry["line"].as_str().unwrap();
        let json = get(&format!("/json?entries=0&open=7:alive/named/{line}")).await.json();
        // The families of other tests were created by the same line.
        assert!(json["opened"][0]["total"].as_u64() >= Some(50));
        assert_eq!(array(&json["opened"][0]["listed"]).len(), 7);
        let above = ["opened", "bounded", "findable"];
        assert!(above.iter().any(|above| names(&json).contains(above)), "what is above");
        let json = get("/json?entries=0&open=500:top&open=1:below/1&open=1:ended/x/y:1").await.json();
        assert!(array(&json["opened"][0]["listed"]).contains(&top.into()));
        assert_eq!(
            (&json["opened"][1]["total"], &json["opened"][2]["total"]),
            (&Value::from(0), &Value::from(0))
        );
        drop(below);
    }

    #[tokio::test]
    async fn a_text_is_found_in_lines_and_in_their_entries() {
        let (_top, _children) = family("findable");
        until("/json?entries=10000", |json| names(json).contains("findable child 49")).await;
        let json = get("/json?entries=0&lines=1000&q=FINDABLE+child+31&open=20:found").await.json();
        assert_eq!(json["opened"][0]["total"], 1);
        assert!(names(&json).contains("findable child 31"));
        // Only the line of the children.
        assert_eq!(array(&json["alive"]).len(), 1, "{:#}", json["alive"]);
        assert_eq!(json["alive"][0]["kind"], "named");
        let json = get("/json?entries=0&q=no+such+thing+anywhere&open=20:found").await.json();
        assert_eq!((&json["opened"][0]["total"], array(&json["alive"]).len()), (&Value::from(0), 0));
        let json = get("/json?entries=0&lines=1").await.json();
        assert_eq!(array(&json["alive"]).len(), 1);
        assert!(json["left_out"]["alive"].as_u64().unwrap() >= 1);
    }

    #[tokio::test]
    async fn entries_of_an_ended_line_are_listed_the_longest_first() {
        watch();
        let parent = Context::background().with_cancel().named("line of three");
        let mut tasks = Vec::new();
        for at in 0..3 {
            let ctx = parent.context().with_cancel().named(format!("line of three, {at}"));
            tasks.push((ctx.spawn(std::future::pending::<()>()), ctx));
        }
        for (_, ctx) in &tasks {
            ctx.cancel();
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let is_ended = |json: &Value| {
            array(&json["ended"]).iter().any(|line| line["count"] == 3 && line["kind"] == "task")
        };
        // A task has no name. It is found by the name of its context.
        let json = until("/json?q=line+of+three&entries=0", is_ended).await;
        let line = array(&json["ended"]).iter().find(|line| line["kind"] == "task").unwrap();
        let key = format!("ended/task/{}", line["line"].as_str().unwrap());
        let json = get(&format!("/json?entries=0&open=2:{key}")).await.json();
        assert_eq!(
            (&json["opened"][0]["total"], array(&json["opened"][0]["listed"]).len()),
            (&Value::from(3), 2)
        );
        assert_eq!(json["opened"][0]["listed"][0], line["first"]);
        tasks.into_iter().for_each(|(task, _)| task.abort());
    }

    #[tokio::test]
    async fn a_shutdown_in_progress_is_shown() {
        watch();
        let shutdown = Shutdown::new(&Context::background()).grace(HANG).cleanup(HANG);
        let ticket = shutdown.named("stuck").ticket();
        shutdown.begin("SIGTERM");
        let waits =
            |json: &Value| array(&json["shutdowns"]).iter().any(|shutdown| shutdown["phase"] == "soft");
        let json = until("/json?entries=0", waits).await;
        let shutdown_state =
            array(&json["shutdowns"]).iter().find(|shutdown| shutdown["phase"] == "soft").unwrap();
        assert_eq!(shutdown_state["waits_for"][0]["name"], "stuck");
        assert!(shutdown_state["left_ms"].as_f64().unwrap() > 0.0);
        drop(ticket);
    }
}

mod hostile {
    use super::*;

    const MARKUP: &str = "</script><script>alert(1)</script><img src=x onerror=alert(1)>";

    #[derive(Debug)]
    struct Megabyte;

    impl fmt::Display for Megabyte {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            (0..1_000_000).try_for_each(|_| f.write_str("<"))
        }
    }

    impl StdError for Megabyte {}

    #[tokio::test]
    async fn markup_is_data_and_long_texts_are_truncated() {
        watch();
        let ctx = Context::background().with_cancel().named(MARKUP);
        let long = ctx.context().with_cancel().named("n".repeat(1_000_000));
        let task = long.spawn(std::future::pending::<()>());
        long.cancel_with(Megabyte);
        let causes = |json: &Value| -> Vec<String> {
            let causes =
                array(&json["entries"]).iter().filter_map(|entry| entry["end"]["cause"].as_str());
            causes.filter(|cause| cause.starts_with("<<<")).map(str::to_owned).collect()
        };
        let found = |json: &Value| names(json).contains(MARKUP) && !causes(json).is_empty();
        let json = until("/json?entries=10000", found).await;
        let cut = causes(&json);
        assert!(cut.iter().all(|cause| cause.len() < 1_000));
        assert!(names(&json).iter().all(|name| name.len() < 1_000));
        // The data has its own content type, and the page contains none of it.
        assert_eq!(get("/json").await.header("content-type"), "application/json");
        assert!(!get("/").await.text.contains("alert(1)"));
        task.abort();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_hundred_clients_share_a_snapshot() {
        let mut crowd = tokio::task::JoinSet::new();
        let begun = std::time::Instant::now();
        for at in 0..100 {
            // Each client sends a different request.
            let uri = format!("/json?entries=0&q=client+{at}");
            crowd.spawn(async move { get(&uri).await.json()["taken_at_ms"].as_u64().unwrap() });
        }
        let taken: Vec<u64> = crowd.join_all().await;
        let snapshots = taken.iter().collect::<HashSet<_>>().len() as u128;
        let at_most = begun.elapsed().as_millis() / 200 + 2;
        assert!(snapshots <= at_most, "{snapshots} snapshots in {:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn clients_that_disconnect_do_not_affect_others() {
        for _ in 0..1_000 {
            let request = local("/json");
            let mut left = std::pin::pin!(send(watch().routes(), request));
            let _ = futures::poll!(left.as_mut());
        }
        // The queue may be full of these requests for a short time. `get` then sends the request again.
        assert_eq!(get("/json").await.status, 200);
    }

    /// The thread ends after the last request of all tests in this file. The next request starts another one.
    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn the_thread_ends_when_there_are_no_requests() {
        let is_there = || {
            let threads = std::fs::read_dir("/proc/self/task").unwrap().flatten();
            let mut names =
                threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("comm")).ok());
            names.any(|name| name.trim() == "tokio-ctx-watch")
        };
        let deadline = std::time::Instant::now() + HANG;
        for _ in 0..2 {
            assert_eq!(get("/json").await.status, 200);
            assert!(is_there());
            while is_there() {
                assert!(std::time::Instant::now() < deadline);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}
