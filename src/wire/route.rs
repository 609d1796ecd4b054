//! Selects the rules of a request: those of its route, or the server's.

use std::fmt;

use http::Request;

use super::inbound::Inbound;

/// The rules of single routes, in the order in which they were added.
#[derive(Clone, Default)]
pub(crate) struct Routes(Vec<(String, Inbound)>);

impl Routes {
    pub(crate) fn add(&mut self, route: &str, inbound: Inbound) {
        self.0.push((route.into(), inbound));
    }

    /// Returns the rules of the first route that matches this request, or else `usual`.
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

/// Returns whether a path matches a route in axum's syntax, or a prefix that ends in `/*`.
fn covers(route: &str, path: &str) -> bool {
    let (mut route, mut path) = (route.split('/').peekable(), path.split('/'));
    loop {
        let part = route.next();
        let is_last = route.peek().is_none();
        let name = part.and_then(|part| part.strip_prefix('{')?.strip_suffix('}'));
        match (part, path.next()) {
            (None, None) => return true,
            (Some("*"), Some(_)) if is_last => return true,
            (Some(_), Some(rest)) if is_last && name.is_some_and(|name| name.starts_with('*')) => {
                return !rest.is_empty();
            }
            (Some(_), Some(segment)) if name.is_some_and(|name| !name.starts_with('*')) => {
                if segment.is_empty() {
                    return false;
                }
            }
            (Some(part), Some(segment)) if part == segment => {}
            _ => return false,
        }
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
    fn a_route_is_a_path_or_a_pattern() {
        for (route, path, is_covered) in [
            ("/events", "/events", true),
            ("/events", "/events/", false),
            ("/events", "/eventsource", false),
            ("/grpc.health.v1.Health/*", "/grpc.health.v1.Health/Watch", true),
            ("/grpc.health.v1.Health/*", "/grpc.health.v1.Healthy/Watch", false),
            ("/*", "/anything/at/all", true),
            ("/files/*", "/files/", true),
            ("/files/*", "/files", false),
            ("/report/{id}", "/report/7", true),
            ("/report/{id}", "/report/", false),
            ("/report/{id}", "/report/7/pages", false),
            ("/report/{id}/pages", "/report/7/pages", true),
            ("/files/{*path}", "/files/a/b/c", true),
            ("/files/{*path}", "/files/", false),
            ("/files/{*path}", "/files", false),
            ("/", "/", true),
            // A star or a brace in any other place is an ordinary character.
            ("/files/{*path}/raw", "/files/a/raw", false),
            ("/files/*/raw", "/files/a/b", false),
            ("/files/*/raw", "/files/*/raw", true),
            ("/a*", "/ab", false),
            ("/a*", "/a*", true),
            ("/{a}b", "/ab", false),
            // The target of `OPTIONS *`, which has no path.
            ("*", "*", true),
            ("", "/", false),
        ] {
            assert_eq!(covers(route, path), is_covered, "{route} {path}");
        }
    }
}
