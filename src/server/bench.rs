//! What looking at a head costs: the door for `benches/request.rs`, in no other build.

use http::Extensions;
use http::Method;
use http::Uri;
use http::Version;

use super::policy;
use crate::admission;
use crate::message::Request;
use crate::message::RequestParts;
use crate::message::bench::Head;
use crate::route::Routes;
use crate::tls::certificate::Names;

/// A request for chat.
pub struct Asked(Request<()>);

impl Asked {
    /// With this head.
    pub fn new(Head(headers): Head) -> Self {
        let (method, uri, version) = (Method::POST, Uri::from_static("/v1/chat/completions"), Version::HTTP_11);
        Self(Request::new(RequestParts { method, uri, version, headers, extensions: Extensions::new() }, ()))
    }
}

/// The routes of a configuration, and its limits.
pub struct Gate {
    routes: Routes,
    limits: crate::config::Limits,
}

impl Gate {
    /// Those of the configuration that `admission` has.
    pub fn new(admission: &admission::bench::Bench) -> Self {
        let config = admission.config();
        Self { routes: Routes::new(config, Names::default()), limits: config.limits.clone() }
    }

    /// Marks credentials, checks the head and finds its route, as each request's is.
    pub fn pass(&self, Asked(request): &mut Asked) -> usize {
        admission::protect_credentials(request.headers_mut(), None);
        assert!(policy::check(request, false, &self.routes, None, &self.limits).is_ok());
        let route = self.routes.find(policy::host_of(request), request.uri().path(), request.headers());
        let Ok(route) = route else { panic!("there is a route") };
        route.upstream
    }
}
