//! Which requests the routes answer: those of loopback peers, that no other site's page can have sent.
//!
//! Three ways lead to a port that listens on loopback alone, and each is closed here. A peer elsewhere, where the port
//! listens on more than loopback: its address says so. A proxy on this machine: it says for which peer it asks, in a
//! header. A page of another site in a browser on this machine, whose name was made to point here (DNS rebinding): the
//! browser still sends that name as the host.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::ConnectInfo;
use axum::extract::connect_info::MockConnectInfo;
use http::StatusCode;
use http::header::HOST;
use http::request::Parts;
use http::uri::Authority;

/// Which requests the [routes](super::Watch::routes) of a watch answer.
///
/// They show lines of code, the names of requests, and how busy the service is. So without more they answer only:
///
/// - peers on loopback addresses, as axum's [`ConnectInfo`] has them. A request that a proxy on this machine says it has
///   forwarded, by a header, is none of these;
/// - requests whose host is an IP address, `localhost`, or a name below that. A page of another site, whose name was made
///   to point to this machine, sends that name.
///
/// To look from elsewhere, forward a port: `ssh -L 9000:localhost:9000 host`, or `kubectl port-forward`.
///
/// ```
/// use tokio_ctx::watch::{self, Access};
///
/// // Behind something of your own that asks for a password.
/// let access = Access::loopback().any_peer().host("watch.example.com");
/// let app: axum::Router = axum::Router::new().nest("/watch", watch::install().routes_for(access));
/// ```
#[derive(Clone)]
#[must_use = "give it to `Watch::routes_for`"]
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

/// Why a request is not answered.
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) text: &'static str,
}

impl Access {
    /// Loopback peers only, and local hosts only.
    pub fn loopback() -> Access {
        Access { peers: Peers::Loopback, hosts: Hosts::Local(Vec::new()) }
    }

    /// Answers those peers for whose addresses `allow` returns true, instead of loopback peers. Of a request through a
    /// proxy the peer is the proxy.
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

    /// Answers all peers, also where there is no [`ConnectInfo`]: over a Unix socket, say. For routes that
    /// authenticate their users by a layer around them.
    pub fn any_peer(self) -> Access {
        Access { peers: Peers::Any, ..self }
    }

    /// Answers requests for this host as well: a name without a port.
    pub fn host(mut self, name: &str) -> Access {
        if let Hosts::Local(names) = &mut self.hosts {
            names.push(name.into());
        }
        self
    }

    /// Answers requests for all hosts. Not together with loopback peers alone: any site's page that a browser on
    /// this machine shows could then read the watch.
    pub fn any_host(self) -> Access {
        Access { hosts: Hosts::Any, ..self }
    }

    pub(super) fn check(&self, request: &Parts) -> Result<(), Refusal> {
        self.check_peer(request)?;
        self.check_host(request)
    }

    fn check_peer(&self, request: &Parts) -> Result<(), Refusal> {
        const FORWARDED: [&str; 4] = ["forwarded", "x-forwarded-for", "x-real-ip", "via"];
        let allowed = match &self.peers {
            Peers::Any => return Ok(()),
            Peers::Loopback => {
                peer(request)?.is_loopback()
                    && !FORWARDED.iter().any(|name| request.headers.contains_key(*name))
            }
            Peers::If(allow) => allow(peer(request)?),
        };
        let text = "this page answers only peers on the machine itself, or those its service allows: forward a port, \
                    or see tokio_ctx::watch::Access\n";
        if allowed { Ok(()) } else { Err(Refusal { status: StatusCode::FORBIDDEN, text }) }
    }

    fn check_host(&self, request: &Parts) -> Result<(), Refusal> {
        let Hosts::Local(names) = &self.hosts else { return Ok(()) };
        let is_allowed = |authority: &Authority| {
            let host = authority.host();
            is_local(host) || names.iter().any(|name| name.eq_ignore_ascii_case(host))
        };
        // HTTP/2 has it in the URI, HTTP/1 in the header, or in both. A request without, of HTTP/1.0, is no browser's.
        let in_header = |host: &http::HeaderValue| {
            Authority::try_from(host.as_bytes()).is_ok_and(|host| is_allowed(&host))
        };
        let allowed = request.uri.authority().is_none_or(is_allowed)
            && request.headers.get_all(HOST).iter().all(in_header);
        let text = "this page is not served under this host name: use an IP address or localhost, or see \
                    tokio_ctx::watch::Access::host\n";
        if allowed { Ok(()) } else { Err(Refusal { status: StatusCode::FORBIDDEN, text }) }
    }
}

fn peer(request: &Parts) -> Result<IpAddr, Refusal> {
    let info = request.extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0);
    let mock = || request.extensions.get::<MockConnectInfo<SocketAddr>>().map(|info| info.0);
    let text = "the service cannot tell whose request this is: serve the router with \
                `into_make_service_with_connect_info::<SocketAddr>()`, or see tokio_ctx::watch::Access::any_peer\n";
    let refusal = Refusal { status: StatusCode::INTERNAL_SERVER_ERROR, text };
    // `::ffff:127.0.0.1` is loopback as well.
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
