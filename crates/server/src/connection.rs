//! Connections: HTTP/1.1, with limits on their number and on the time that headers take.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

/// Time after which accepting is tried again where the system refuses it.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// Limits of connections.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) connections: usize,
    pub(crate) header_timeout: Duration,
}

/// Accepts connections and serves `router` on them until `ended` resolves; then connections end with
/// the answer that is under way. Returns when all have, or after `end_timeout`.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    ended: impl Future<Output = ()>,
    end_timeout: Duration,
) {
    let places = Arc::new(Semaphore::new(limits.connections));
    let (ending, is_ending) = watch::channel(false);
    tokio::pin!(ended);
    loop {
        let accept = async {
            let place = Arc::clone(&places).acquire_owned().await.expect("the semaphore is never closed");
            (place, accept(&listener).await)
        };
        let (place, stream) = tokio::select! {
            accepted = accept => accepted,
            () = &mut ended => break,
        };
        let (router, is_ending) = (router.clone(), is_ending.clone());
        tokio::spawn(async move {
            let _place = place;
            // An error is the client's: it closed the connection, or sent no HTTP.
            if let Err(error) = connection(stream, router, limits.header_timeout, is_ending).await {
                tracing::debug!("a connection ended: {error}");
            }
        });
    }
    drop(listener);
    ending.send_replace(true);
    let all = Arc::clone(&places);
    let connections = u32::try_from(limits.connections).unwrap_or(u32::MAX);
    let _ = tokio::time::timeout(end_timeout, all.acquire_many(connections)).await;
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                let is_client_s =
                    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset);
                if !is_client_s {
                    // Such as too many open files, until connections end.
                    tracing::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    router: Router,
    header_timeout: Duration,
    mut is_ending: watch::Receiver<bool>,
) -> hyper::Result<()> {
    // Answers are small, and wait for nothing.
    let _ = stream.set_nodelay(true);
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(header_timeout);
    let service = TowerToHyperService::new(router);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        ended = connection.as_mut() => return ended,
        _ = is_ending.wait_for(|&is_ending| is_ending) => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}
