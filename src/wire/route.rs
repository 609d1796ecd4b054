//! Which rules a request is under: those of its route, or the server's.

use std::fmt;

use http::Request;

use super::inbound::Inbound;

/// The rules of single routes, in the order in which they were given.
#[derive(Clone, Default)]
pub(crate) struct Routes(Vec<(String, Inbound)>);

impl Routes {
    pub(crate) fn add(&mut self, route: &str, inbound: Inbound) {
        self.0.push((route.into(), inbound));
    }

    /// The rules of the first route that matches this request, otherwise `usual`.
    pub(crate) fn rules<'a, A>(&'a self, request: &Request<A>, usual: &'a Inbound) -> &'a Inbound {
        if self.0.is_empty() {
            return usual;
        }
        let is_of = |route: &str| {
            #[cfg(feature = "axum")]
            if let Some(matched) = request.extensions().get::<::axum::extract::MatchedPath>() {
                if route == matched.as_str() {
                    return true;
                }
            }
            covers(route, request.uri().path())
        };
        self.0.iter().find(|(route, _)| is_of(route)).map_or(usual, |(_, inbound)| inbound)
    }
}

/// Whether a path is this one, or below it where the route ends in `/*`.
fn covers(route: &str, path: &str) -> bool {
    match route.strip_suffix('*') {
        Some(above) if above.ends_with('/') => path.starts_with(above),
        _ => route == path,
    }
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.iter().map(|(route, inbound)| (route, inbound))).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::covers;

    #[test]
    fn a_route_is_one_path_or_all_below() {
        for (route, path, is_covered) in [
            ("/events", "/events", true),
            ("/events", "/events/", false),
            ("/events", "/eventsource", false),
            ("/grpc.health.v1.Health/*", "/grpc.health.v1.Health/Watch", true),
            ("/grpc.health.v1.Health/*", "/grpc.health.v1.Healthy/Watch", false),
            ("/*", "/anything/at/all", true),
            // No pattern: a star elsewhere is a character.
            ("/a*", "/ab", false),
            ("/a*", "/a*", true),
            ("", "/", false),
        ] {
            assert_eq!(covers(route, path), is_covered, "{route} {path}");
        }
    }
}
