//! An HTTP server of rewards.
//!
//! [`Server`] binds an address and serves an [`Engine`](kudos::Engine) until a future resolves; then
//! it drains. [`Server::router`] is the same as a part of another service.
//!
//! ```no_run
//! use std::sync::Arc;
//! use kudos_server::{Options, Server};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let engine = Arc::new(kudos::Engine::open("models/reward")?);
//! let server = Server::bind(engine, Options::default(), "127.0.0.1:8000").await?;
//! server.run(std::future::pending()).await?;
//! # Ok(())
//! # }
//! ```
//!
//! A request goes through these modules:
//!
//! 1. `connection` accepts it, with limits on connections and on the time that headers take;
//! 2. `guard` checks where it comes from: host, origin, key;
//! 3. `routes` reads its form: this server's own, and those of other servers;
//! 4. `scoring` renders and tokenizes it on threads of its own;
//! 5. `scheduler` holds its sequences until a pass has capacity for them, oldest first, together with
//!    those that share their prompt;
//! 6. the engine scores them, and `routes` writes the answer.
//!
//! `docs/server.md` describes the interface.

mod app;
mod body;
mod canary;
mod connection;
mod failure;
mod guard;
mod metrics;
mod options;
mod routes;
mod scheduler;
mod scoring;
mod server;

pub use canary::Canary;
pub use options::{ApiKey, Options};
pub use server::{Drained, Server};
