//! A service that scores from an async runtime: a line of JSON in, a line with the reward out.
//!
//! ```text
//! cargo run --release --example service -- demo/model 127.0.0.1:8000
//! echo '{"prompt": "What is 1+1?", "response": "1+1=2"}' | nc -N 127.0.0.1 8000
//! ```
//!
//! The engine needs no runtime, and blocks none: `submit(..).await` waits while the engine's queue
//! is full, and nothing is read meanwhile from a client that sends faster than the device scores.
//! Rendering and tokenizing take CPU time, so they run in `spawn_blocking`.

use std::io;
use std::sync::Arc;

use kudos::{Engine, Result, Score};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_blocking;

/// Serves connections until the listener fails.
pub(crate) async fn serve(engine: Arc<Engine>, listener: TcpListener) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        let engine = Arc::clone(&engine);
        // A failed connection does not affect the others.
        tokio::spawn(async move { drop(serve_connection(&engine, stream).await) });
    }
}

/// Replies to the lines of one connection, in their order.
async fn serve_connection(engine: &Arc<Engine>, stream: TcpStream) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    while let Some(line) = lines.next_line().await? {
        let reply = match score(engine, &line).await {
            Ok(score) => json!({"reward": score.reward, "tokens": score.tokens}),
            Err(error) => json!({"error": error.kind().name(), "message": error.message()}),
        };
        writer.write_all(format!("{reply}\n").as_bytes()).await?;
    }
    Ok(())
}

async fn score(engine: &Arc<Engine>, line: &str) -> Result<Score> {
    let request: Value = serde_json::from_str(line).unwrap_or_default();
    let text = |key: &str| request[key].as_str().unwrap_or_default().to_owned();
    let exchange = (text("prompt"), text("response"));
    let preparing = Arc::clone(engine);
    let tokens =
        spawn_blocking(move || preparing.prepare(exchange)).await.expect("preparation does not panic");
    // Waits for capacity of the queue, then for the score.
    engine.submit(tokens).await?.await
}

#[allow(dead_code, reason = "the tests call `serve`")]
#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(model), Some(address)) = (arguments.next(), arguments.next()) else {
        return Err("usage: service MODEL ADDRESS".into());
    };
    let engine = Arc::new(Engine::open(model)?);
    println!("running on {}", engine.device());
    serve(engine, TcpListener::bind(address).await?).await?;
    Ok(())
}
