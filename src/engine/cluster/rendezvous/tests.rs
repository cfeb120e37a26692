//! Ranks, other clients and impostors on localhost.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

use super::*;

/// More than any successful step takes.
const LONG: Duration = Duration::from_secs(20);

/// A timeout that expires in a test.
const SHORT: Duration = Duration::from_millis(600);

fn settings(batch_tokens: usize) -> Settings {
    vec![("hidden_size".to_owned(), "64".to_owned()), ("batch tokens".to_owned(), batch_tokens.to_string())]
}

fn process(rank: usize, world_size: usize, address: SocketAddr) -> Cluster {
    Cluster { rank, world_size, rendezvous: address.to_string(), secret: None, local_rank: 0 }
}

fn with_secret(process: Cluster, secret: &str) -> Cluster {
    Cluster { secret: Some(Secret::new(secret).unwrap()), ..process }
}

/// Starts rank 0 of `world_size` ranks on a thread, and returns its address.
fn start_rank_0(
    world_size: usize,
    secret: Option<&str>,
    timeout: Duration,
) -> (SocketAddr, JoinHandle<Result<Vec<Link>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut rank_0 = process(0, world_size, address);
    rank_0.secret = secret.map(|secret| Secret::new(secret).unwrap());
    (address, spawn(move || gather_at(&listener, &rank_0, &settings(16), timeout)))
}

#[track_caller]
fn assert_refused(process: Cluster, settings: &Settings, parts: &[&str]) {
    let error = join(&process, settings, LONG).unwrap_err();
    for part in parts {
        assert!(error.report().contains(part), "`{part}` is not in: {error}");
    }
}

#[test]
fn ranks_join_in_any_order_and_exchange_messages() {
    let (address, rank_0) = start_rank_0(3, Some("tea"), LONG);
    let others: Vec<_> = [2, 1]
        .into_iter()
        .map(|rank| spawn(move || join(&with_secret(process(rank, 3, address), "tea"), &settings(16), LONG)))
        .collect();
    let links = rank_0.join().unwrap().unwrap();
    let ends: Vec<Link> = others.into_iter().map(|other| other.join().unwrap().unwrap()).collect();
    for (link, end) in links.iter().zip([&ends[1], &ends[0]]) {
        end.send(&Message::Ready).unwrap();
        assert!(matches!(link.receive().unwrap(), Message::Ready));
        link.close(Some(&Error::new(ErrorKind::Memory, "rank 1 of 3: full").at("GPU 1").with_hint("less")));
        let error = end.receive().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Memory);
        assert_eq!(error.report(), "rank 1 of 3: full\n  at GPU 1\n\nhint: less");
    }
}

#[test]
fn a_missing_rank_is_named_in_an_error_that_the_others_receive() {
    let (address, rank_0) = start_rank_0(4, None, SHORT);
    let end = join(&process(2, 4, address), &settings(16), SHORT).unwrap();
    let error = rank_0.join().unwrap().unwrap_err();
    assert_eq!(error.message(), "ranks 1, 3 of 4 did not join within 0.6 s");
    assert_eq!(end.receive().unwrap_err().message(), error.message());
}

#[test]
fn a_missing_rank_0_is_an_error_after_the_time_limit() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = join(&process(1, 2, address), &settings(16), SHORT).unwrap_err();
    assert!(error.message().starts_with("rank 0 was not found within 0.6 s"), "{error}");
}

#[test]
fn a_mismatched_rank_is_refused_and_the_others_join() {
    let (address, rank_0) = start_rank_0(3, None, LONG);
    assert_refused(process(1, 2, address), &settings(16), &["its world size is 2", "rank 0's is 3"]);
    assert_refused(process(3, 3, address), &settings(16), &["rank 0 accepts ranks from 1 to 2"]);
    assert_refused(process(0, 3, address), &settings(16), &["rank 0 accepts ranks from 1 to 2"]);
    assert_refused(process(1, 3, address), &settings(32), &["its batch tokens is 32, and rank 0's is 16"]);
    let secret = with_secret(process(1, 3, address), "tea");
    assert_refused(secret, &settings(16), &["it has a secret, and rank 0 has none"]);
    let _first = join(&process(1, 3, address), &settings(16), LONG).unwrap();
    assert_refused(process(1, 3, address), &settings(16), &["another process has joined as rank 1"]);
    let _second = join(&process(2, 3, address), &settings(16), LONG).unwrap();
    assert_eq!(rank_0.join().unwrap().unwrap().len(), 2);
}

#[test]
fn rank_0_explains_a_missing_rank_that_it_refused() {
    let (address, rank_0) = start_rank_0(2, None, SHORT);
    assert_refused(process(1, 2, address), &settings(32), &["batch tokens"]);
    let error = rank_0.join().unwrap().unwrap_err();
    let hint = error.hint().unwrap();
    assert!(hint.contains("rank 1 was refused: its batch tokens is 32"), "{error}");
}

#[test]
fn a_wrong_secret_is_refused_and_never_printed() {
    let (address, rank_0) = start_rank_0(2, Some("tea"), LONG);
    assert_refused(
        with_secret(process(1, 2, address), "coffee"),
        &settings(16),
        &["its secret differs from rank 0's"],
    );
    assert_refused(process(1, 2, address), &settings(16), &["it has no secret"]);
    let known = with_secret(process(1, 2, address), "tea");
    assert!(!format!("{known:?}").contains("tea"));
    let _end = join(&known, &settings(16), LONG).unwrap();
    rank_0.join().unwrap().unwrap();
}

#[test]
fn a_rank_refuses_a_rank_0_that_does_not_know_the_secret() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let impostor = spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        wire::receive(&mut stream, HANDSHAKE_BYTES_MAX).unwrap();
        send(&mut stream, &JoinReply::Challenge([0; 32])).unwrap();
        wire::receive(&mut stream, HANDSHAKE_BYTES_MAX).unwrap();
        send(&mut stream, &JoinReply::Accepted(Some(vec![0; 32]))).unwrap();
    });
    assert_refused(with_secret(process(1, 2, address), "tea"), &settings(16), &["does not know the secret"]);
    impostor.join().unwrap();
}

#[test]
fn other_clients_do_not_delay_a_rank() {
    let (address, rank_0) = start_rank_0(2, None, LONG);
    let client = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(bytes).unwrap();
        stream
    };
    // Silent, of another protocol, malformed, and cut off.
    let _clients = [
        client(b""),
        client(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"),
        client(&[3, 0, 0, 0, b'{', b'}', b'!']),
        client(&[200, 0, 0, 0, b'{']),
    ];
    let begun = Instant::now();
    let _end = join(&process(1, 2, address), &settings(16), LONG).unwrap();
    rank_0.join().unwrap().unwrap();
    assert!(begun.elapsed() < HANDSHAKE_TIMEOUT, "{:?}", begun.elapsed());
}

#[test]
fn the_handshake_timeout_holds_for_a_client_that_sends_slowly() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let client = spawn(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        // A length of 200, then one byte at a time.
        stream.write_all(&[200, 0, 0, 0]).unwrap();
        while stream.write_all(b" ").is_ok() {
            thread::sleep(SHORT / 10);
        }
    });
    let acceptor = Acceptor { process: process(0, 2, address), settings: settings(16) };
    let begun = Instant::now();
    let (stream, _) = listener.accept().unwrap();
    assert!(acceptor.handshake(stream, SHORT).is_err());
    assert!(begun.elapsed() < 2 * SHORT, "{:?}", begun.elapsed());
    client.join().unwrap();
}

#[test]
fn another_protocol_version_is_refused() {
    let (address, rank_0) = start_rank_0(2, None, LONG);
    let mut stream = TcpStream::connect(address).unwrap();
    send(&mut stream, &serde_json::json!({"magic": MAGIC, "protocol": 99})).unwrap();
    let reply: JoinReply = wire::decode(&wire::receive(&mut stream, HANDSHAKE_BYTES_MAX).unwrap()).unwrap();
    let JoinReply::Refused(error) = reply else { panic!("{reply:?}") };
    assert!(error.into_error().message().contains("protocol version is 99"));
    let _end = join(&process(1, 2, address), &settings(16), LONG).unwrap();
    rank_0.join().unwrap().unwrap();
}

#[test]
fn a_rank_may_join_again_before_all_have_joined() {
    let (address, rank_0) = start_rank_0(3, None, LONG);
    drop(join(&process(1, 3, address), &settings(16), LONG).unwrap());
    // Rank 0 accepts it again once it has noticed the disconnection.
    let begun = Instant::now();
    let again = loop {
        match join(&process(1, 3, address), &settings(16), LONG) {
            Ok(link) => break link,
            Err(error) => assert!(begun.elapsed() < LONG, "{error}"),
        }
    };
    let _other = join(&process(2, 3, address), &settings(16), LONG).unwrap();
    let _links = rank_0.join().unwrap().unwrap();
    again.check_idle().unwrap();
}

#[test]
fn a_disconnection_is_noticed_and_an_idle_link_stays_connected() {
    let (address, rank_0) = start_rank_0(3, None, SHORT);
    let gone = join(&process(1, 3, address), &settings(16), LONG).unwrap();
    let other = spawn(move || join(&process(2, 3, address), &settings(16), SHORT));
    let links = rank_0.join().unwrap().unwrap();
    let alive = other.join().unwrap().unwrap();
    drop(gone);
    assert_eq!(links[0].receive().unwrap_err().message(), "rank 1 of 3 disconnected");
    // Only heartbeats for longer than the timeout.
    thread::sleep(2 * SHORT);
    links[1].check_idle().unwrap();
    drop(alive);
}
