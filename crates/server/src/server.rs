//! [`Server`]: from the bound address to the end of its last request.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use kudos::Engine;
use tokio::net::{TcpListener, lookup_host};
use tokio::task::JoinHandle;

use crate::app::App;
use crate::connection::{self, Limits};
use crate::options::Options;
use crate::{canary, routes};

/// Time for the bytes of the last answers, once all requests have one.
const LAST_BYTES: Duration = Duration::from_secs(2);

/// A server that is bound to an address.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    app: App,
    canary: JoinHandle<()>,
}

/// How a server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Every request that was accepted has its answer.
    All,
    /// So many were under way at the end of the time for them.
    Cut(usize),
}

impl Server {
    /// Binds `address`, such as `127.0.0.1:8000`; a name in it is one of the server's own. Connections
    /// wait until [`run`](Self::run) accepts them.
    ///
    /// # Errors
    ///
    /// The system's: the address is not this machine's, or is in use.
    pub async fn bind(engine: Arc<Engine>, options: Options, address: &str) -> io::Result<Self> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for resolved in lookup_host(address).await? {
            match TcpListener::bind(resolved).await {
                Ok(listener) => {
                    let name = address.rsplit_once(':').map_or(address, |(name, _)| name);
                    let app = App::new(engine, options, name);
                    let canary = tokio::spawn(canary::watch(app.clone()));
                    return Ok(Self { listener, app, canary });
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Returns the address that the server is bound to.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Returns the routes of a server, for a service that binds and accepts itself. It is bound to
    /// `name` as far as `Host` is concerned. Must be called within a runtime.
    pub fn router(engine: Arc<Engine>, options: Options, name: &str) -> Router {
        let app = App::new(engine, options, name);
        tokio::spawn(canary::watch(app.clone()));
        routes::router(app)
    }

    /// Serves until `end` resolves. Then it drains: requests are refused with status 503, and those
    /// under way are completed, for as long as [`Options::drain`]. The engine stays open.
    pub async fn run(self, end: impl Future<Output = ()>) -> Drained {
        let Self { listener, app, canary } = self;
        let limits =
            Limits { connections: app.options.connections_max, header_timeout: app.options.header_timeout };
        let draining = app.clone();
        let mut drained = Drained::All;
        let ended = async {
            end.await;
            draining.draining.send_replace(true);
            let mut under_way = draining.under_way.subscribe();
            let answered = under_way.wait_for(|&count| count == 0);
            if tokio::time::timeout(draining.options.drain, answered).await.is_err() {
                drained = Drained::Cut(*draining.under_way.borrow());
            }
        };
        connection::serve(listener, routes::router(app), limits, ended, LAST_BYTES).await;
        canary.abort();
        drained
    }
}
