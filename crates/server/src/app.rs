//! [`App`]: the state that all requests share, and the phases of a server's life.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use kudos::Engine;
use tokio::sync::{Semaphore, watch};

use crate::body::Bodies;
use crate::canary::Readiness;
use crate::failure::Failure;
use crate::guard::Guard;
use crate::metrics::Metrics;
use crate::options::Options;
use crate::routes::LINES_KIB;
use crate::scheduler::Scheduler;
use crate::scoring::Workers;

/// Value of `Retry-After`, in seconds, while a server drains: another one may be there by then.
const RETRY_AFTER_DRAIN: u64 = 5;

/// Streams whose lines fit into memory at a time.
const STREAMS: usize = 16;

/// The state that all requests share.
#[derive(Clone, Debug)]
pub(crate) struct App(Arc<Shared>);

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) engine: Arc<Engine>,
    pub(crate) options: Options,
    pub(crate) scheduler: Scheduler,
    pub(crate) workers: Workers,
    pub(crate) bodies: Bodies,
    /// Text of the lines of all streams that have no result yet, in KiB.
    pub(crate) lines_budget: Arc<Semaphore>,
    pub(crate) guard: Guard,
    pub(crate) metrics: Metrics,
    pub(crate) readiness: Readiness,
    /// Set when no more requests are accepted.
    pub(crate) draining: watch::Sender<bool>,
    /// Requests that were accepted and not answered yet.
    pub(crate) under_way: watch::Sender<usize>,
}

impl Deref for App {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

/// A request that was accepted, until this is dropped.
#[derive(Debug)]
pub(crate) struct UnderWay(App);

/// A request's place among those under way, which a streamed answer takes with it.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    _under_way: Arc<UnderWay>,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.send_modify(|count| *count -= 1);
    }
}

impl App {
    /// Makes the state of a server that is bound to the name or address `bound`, within a runtime.
    pub(crate) fn new(engine: Arc<Engine>, options: Options, bound: &str) -> Self {
        Self(Arc::new(Shared {
            scheduler: Scheduler::new(Arc::clone(&engine), options.queue_tokens, options.gather),
            workers: Workers::new(),
            bodies: Bodies::new(options.body_bytes_max, options.body_timeout),
            lines_budget: Arc::new(Semaphore::new(STREAMS * LINES_KIB)),
            guard: Guard::new(&options, bound),
            metrics: Metrics::new(&engine, &options),
            readiness: Readiness::new(),
            draining: watch::Sender::new(false),
            under_way: watch::Sender::new(0),
            engine,
            options,
        }))
    }

    /// Returns why the server should get no requests now, if it should not.
    pub(crate) fn not_ready(&self) -> Option<String> {
        if *self.draining.borrow() {
            return Some("the server is ending".to_owned());
        }
        self.engine.failure().map(|error| error.to_string()).or_else(|| self.readiness.reason())
    }

    /// Accepts a request, unless the server is ending.
    fn accept(&self) -> Result<Place, Failure> {
        // Counted before the phase is read, so that a drain misses none.
        self.under_way.send_modify(|count| *count += 1);
        let place = Place { _under_way: Arc::new(UnderWay(self.clone())) };
        if *self.draining.borrow() {
            let message = "the server is ending, and takes no more requests";
            return Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, "draining", message)
                .with_retry_after(RETRY_AFTER_DRAIN));
        }
        Ok(place)
    }
}

/// Counts requests, logs them, and accepts those that ask for work while the server does.
pub(crate) async fn accept(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let start = Instant::now();
    let path = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
    let method = request.method().clone();
    let place =
        if method == Method::POST || method == Method::PUT { app.accept().map(Some) } else { Ok(None) };
    let response = match place {
        Err(failure) => failure.into_response(),
        Ok(place) => {
            let _until_answered = place.clone();
            place.map(|place| request.extensions_mut().insert(place));
            next.run(request).await
        }
    };
    let (status, time) = (response.status().as_u16(), start.elapsed());
    app.metrics.answered(&path, status, time);
    // The path is one of the router's own: nothing that a client wrote is in this line.
    tracing::info!("{method} {path} {status} {:.1} ms", time.as_secs_f64() * 1e3);
    response
}
