//! Selects the requests that the routes answer: those from loopback peers that cannot originate from a page of another
//! site.
//!
//! A request from elsewhere can reach the port in three ways, and each is refused here. If the port listens on other
//! addresses as well, the peer's address is not a loopback address. A proxy on this machine adds a header with the
//! address of the client. A page of another site, whose name resolves to this machine (DNS rebinding), can send
//! requests from a browser on this machine; the browser sends that name as the host.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::ConnectInfo;
use axum::extract::connect_info::MockConnectInfo;
use http::StatusCode;
use http::header::HOST;
use http::request::Parts;
use http::uri::Authority;

/// Selects the requests that the [routes](super::Watch::routes) of a watch answer.
///
/// The routes show lines of code, the names of requests, and the load of the service. By default they answer only:
///
/// - peers on loopback addresses, according to axum's [`ConnectInfo`]. A request with a header that a forwarding proxy
///   adds is refused;
/// - requests whose host is an IP address, `localhost`, or a name below `localhost`. A page of another site whose name
///   resolves to this machine has another host.
///
/// For access from another machine, forward a port: `ssh -L 9000:localhost:9000 host`, or `kubectl port-forward`.
///
/// ```
/// use tokio_ctx::watch::{self, Access};
///
/// // Behind your own authentication.
/// let access = Access::loopback().any_peer().host("watch.example.com");
/// let app: axum::Router = axum::Router::new().nest("/watch", watch::install().routes_for(access));
/// ```
#[derive(Clone)]
#[must_use = "pass it to `Watch::routes_for`"]
pub struct Access {
    peers: Peers,
    hosts: Hosts,
}

#[derive(Clone)]
enum Peers {
    Loopback,
    If(Arc<dyn Fn(IpAddr) -> bool + Send + Sync>),
    Any,
}

#[derive(Clone)]
enum Hosts {
    Local(Vec<Box<str>>),
    Any,
}

/// The response to a request that is refused.
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) text: &'static str,
}

impl Access {
    /// Answers loopback peers only, and local hosts only.
    pub fn loopback() -> Access {
        Access { peers: Peers::Loopback, hosts: Hosts::Local(Vec::new()) }
    }

    /// Answers the peers for whose addresses `allow` returns true, instead of loopback peers. The peer of a request that
    /// comes through a proxy is the proxy.
    ///
    /// ```
    /// use std::net::IpAddr;
    /// use tokio_ctx::watch::Access;
    ///
    /// let access = Access::loopback().peers(|ip| matches!(ip, IpAddr::V4(ip) if ip.is_private() || ip.is_loopback()));
    /// # let _ = access;
    /// ```
    pub fn peers(self, allow: impl Fn(IpAddr) -> bool + Send + Sync + 'static) -> Access {
        Access { peers: Peers::If(Arc::new(allow)), ..self }
    }

    /// Answers all peers, even if there is no [`ConnectInfo`], for example over a Unix socket. Use it for routes behind a
    /// layer that authenticates their users.
    pub fn any_peer(self) -> Access {
        Access { peers: Peers::Any, ..self }
    }

    /// Also answers requests for this host, which is a name without a port.
    pub fn host(mut self, name: &str) -> Access {
        if let Hosts::Local(names) = &mut self.hosts {
            names.push(name.into());
        }
        self
    }

    /// Answers requests for all hosts. Do not use it if the answer depends only on the address of the peer: a page of any
    /// site that is open in a browser on this machine could then read the watch.
    pub fn any_host(self) -> Access {
        Access { hosts: Hosts::Any, ..self }
    }

    pub(super) fn check(&self, request: &Parts) -> Result<(), Refusal> {
        self.check_peer(request)?;
        self.check_host(request)
    }

    fn check_peer(&self, request: &Parts) -> Result<(), Refusal> {
        let allowed = match &self.peers {
            Peers::Any => return Ok(()),
            Peers::Loopback => {
                peer(request)?.is_loopback()
                    && !request.headers.keys().any(|name| is_of_proxy(name.as_str()))
            }
            Peers::If(allow) => allow(peer(request)?),
        };
        let text = "this page is available only from this machine, or from peers that the service allows: forward a port, \
                    or see tokio_ctx::watch::Access\n";
        if allowed { Ok(()) } else { Err(Refusal { status: StatusCode::FORBIDDEN, text }) }
    }

    fn check_host(&self, request: &Parts) -> Result<(), Refusal> {
        let Hosts::Local(names) = &self.hosts else { return Ok(()) };
        let is_allowed = |authority: &Authority| {
            let host = authority.host();
            is_local(host) || names.iter().any(|name| name.eq_ignore_ascii_case(host))
        };
        // HTTP/2 has the host in the URI, HTTP/1 in the header or in both. Only HTTP/1.0 has requests without a host, and
        // browsers do not use it.
        let in_header = |host: &http::HeaderValue| {
            Authority::try_from(host.as_bytes()).is_ok_and(|host| is_allowed(&host))
        };
        let allowed = request.uri.authority().is_none_or(is_allowed)
            && request.headers.get_all(HOST).iter().all(in_header);
        let text = "this page is not available under this host name: use an IP address or localhost, or see \
                    tokio_ctx::watch::Access::host\n";
        if allowed { Ok(()) } else { Err(Refusal { status: StatusCode::FORBIDDEN, text }) }
    }
}

/// Returns whether only proxies add this header.
fn is_of_proxy(name: &str) -> bool {
    const NAMES: [&str; 10] = [
        "cf-connecting-ip",
        "client-ip",
        "fastly-client-ip",
        "forwarded",
        "true-client-ip",
        "via",
        "x-client-ip",
        "x-cluster-client-ip",
        "x-envoy-external-address",
        "x-real-ip",
    ];
    NAMES.contains(&name) || name.starts_with("x-forwarded") || name.starts_with("x-original-")
}

fn peer(request: &Parts) -> Result<IpAddr, Refusal> {
    let info = request.extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0);
    let mock = || request.extensions.get::<MockConnectInfo<SocketAddr>>().map(|info| info.0);
    let text = "the address of the peer is not known: serve the router with \
                `into_make_service_with_connect_info::<SocketAddr>()`, or see tokio_ctx::watch::Access::any_peer\n";
    let refusal = Refusal { status: StatusCode::INTERNAL_SERVER_ERROR, text };
    // `::ffff:127.0.0.1` is a loopback address as well.
    info.or_else(mock).map(|peer| peer.ip().to_canonical()).ok_or(refusal)
}

fn is_local(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let host = host.strip_suffix('.').unwrap_or(host);
    let top = host.rsplit('.').next().unwrap_or(host);
    top.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok()
}

/// [`Access::loopback`].
impl Default for Access {
    fn default() -> Access {
        Access::loopback()
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let peers = match self.peers {
            Peers::Loopback => "loopback",
            Peers::If(_) => "a function's",
            Peers::Any => "any",
        };
        let mut text = f.debug_struct("Access");
        text.field("peers", &format_args!("{peers}"));
        match &self.hosts {
            Hosts::Local(names) => text.field("hosts", names),
            Hosts::Any => text.field("hosts", &format_args!("any")),
        };
        text.finish()
    }
}
