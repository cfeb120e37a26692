//! Ranks, strangers and impostors on localhost.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

use super::*;

/// More than any of these takes where nothing is missing.
const LONG: Duration = Duration::from_secs(20);

/// For what is to run out.
const SHORT: Duration = Duration::from_millis(600);

fn facts(batch_tokens: usize) -> Facts {
    vec![("hidden_size".to_owned(), "64".to_owned()), ("batch tokens".to_owned(), batch_tokens.to_string())]
}

fn process(rank: usize, world_size: usize, address: SocketAddr) -> Cluster {
    Cluster { rank, world_size, rendezvous: address.to_string(), secret: None, local_rank: 0 }
}

fn with_secret(process: Cluster, secret: &str) -> Cluster {
    Cluster { secret: Some(Secret::new(secret).unwrap()), ..process }
}

/// Rank 0 of so many, on a thread.
fn host(
    world_size: usize,
    secret: Option<&str>,
    timeout: Duration,
) -> (SocketAddr, JoinHandle<Result<Vec<Link>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut rank_0 = process(0, world_size, address);
    rank_0.secret = secret.map(|secret| Secret::new(secret).unwrap());
    (address, spawn(move || gather_at(&listener, &rank_0, &facts(16), timeout)))
}

#[track_caller]
fn assert_refused(process: Cluster, facts: &Facts, words: &[&str]) {
    let error = join(&process, facts, LONG).unwrap_err();
    for word in words {
        assert!(error.report().contains(word), "`{word}` is not in: {error}");
    }
}

#[test]
fn ranks_find_each_other_in_any_order_and_talk() {
    let (address, host) = host(3, Some("tea"), LONG);
    let others: Vec<_> = [2, 1]
        .into_iter()
        .map(|rank| spawn(move || join(&with_secret(process(rank, 3, address), "tea"), &facts(16), LONG)))
        .collect();
    let links = host.join().unwrap().unwrap();
    let ends: Vec<Link> = others.into_iter().map(|other| other.join().unwrap().unwrap()).collect();
    for (link, end) in links.iter().zip([&ends[1], &ends[0]]) {
        end.send(&Message::Ready).unwrap();
        assert!(matches!(link.receive().unwrap(), Message::Ready));
        link.end(Some(&Error::new(ErrorKind::Memory, "rank 1 of 3: full").at("GPU 1").with_hint("less")));
        let error = end.receive().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Memory);
        assert_eq!(error.report(), "rank 1 of 3: full\n  at GPU 1\n\nhint: less");
    }
}

#[test]
fn a_missing_rank_is_named_and_those_who_came_are_told() {
    let (address, host) = host(4, None, SHORT);
    let end = join(&process(2, 4, address), &facts(16), SHORT).unwrap();
    let error = host.join().unwrap().unwrap_err();
    assert_eq!(error.message(), "ranks 1, 3 of 4 did not come within 0.6 s");
    assert_eq!(end.receive().unwrap_err().message(), error.message());
}

#[test]
fn a_missing_rank_0_is_an_error_after_the_time_limit() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = join(&process(1, 2, address), &facts(16), SHORT).unwrap_err();
    assert!(error.message().starts_with("rank 0 was not found within 0.6 s"), "{error}");
}

#[test]
fn who_does_not_belong_is_refused_with_the_reason_and_the_others_come_in() {
    let (address, host) = host(3, None, LONG);
    assert_refused(process(1, 2, address), &facts(16), &["its world size is 2", "rank 0's is 3"]);
    assert_refused(process(3, 3, address), &facts(16), &["ranks from 1 to 2 are waited for"]);
    assert_refused(process(0, 3, address), &facts(16), &["ranks from 1 to 2 are waited for"]);
    assert_refused(process(1, 3, address), &facts(32), &["its batch tokens is 32, and rank 0's is 16"]);
    let secret = with_secret(process(1, 3, address), "tea");
    assert_refused(secret, &facts(16), &["it has a secret, and rank 0 has none"]);
    let _first = join(&process(1, 3, address), &facts(16), LONG).unwrap();
    assert_refused(process(1, 3, address), &facts(16), &["another process is rank 1 already"]);
    let _second = join(&process(2, 3, address), &facts(16), LONG).unwrap();
    assert_eq!(host.join().unwrap().unwrap().len(), 2);
}

#[test]
fn a_refused_rank_that_is_missing_then_is_explained_at_rank_0() {
    let (address, host) = host(2, None, SHORT);
    assert_refused(process(1, 2, address), &facts(32), &["batch tokens"]);
    let error = host.join().unwrap().unwrap_err();
    let hint = error.hint().unwrap();
    assert!(hint.contains("rank 1 was refused: its batch tokens is 32"), "{error}");
}

#[test]
fn a_wrong_secret_is_refused_and_never_printed() {
    let (address, host) = host(2, Some("tea"), LONG);
    assert_refused(with_secret(process(1, 2, address), "coffee"), &facts(16), &["its secret is another"]);
    assert_refused(process(1, 2, address), &facts(16), &["it has no secret"]);
    let known = with_secret(process(1, 2, address), "tea");
    assert!(!format!("{known:?}").contains("tea"));
    let _end = join(&known, &facts(16), LONG).unwrap();
    host.join().unwrap().unwrap();
}

#[test]
fn a_rank_0_that_does_not_know_the_secret_is_left() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let impostor = spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        wire::receive(&mut stream, GREETING_BYTES_MAX).unwrap();
        say(&mut stream, &Answer::Challenge([0; 32])).unwrap();
        wire::receive(&mut stream, GREETING_BYTES_MAX).unwrap();
        say(&mut stream, &Answer::Welcome(Some(vec![0; 32]))).unwrap();
    });
    assert_refused(with_secret(process(1, 2, address), "tea"), &facts(16), &["does not know the secret"]);
    impostor.join().unwrap();
}

#[test]
fn strangers_with_rubbish_or_silence_keep_nobody_waiting() {
    let (address, host) = host(2, None, LONG);
    let stranger = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(bytes).unwrap();
        stream
    };
    let _strangers = [
        stranger(b""),
        stranger(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"),
        stranger(&[3, 0, 0, 0, b'{', b'}', b'!']),
        stranger(&[200, 0, 0, 0, b'{']),
    ];
    let begun = Instant::now();
    let _end = join(&process(1, 2, address), &facts(16), LONG).unwrap();
    host.join().unwrap().unwrap();
    assert!(begun.elapsed() < GREETING_TIME, "{:?}", begun.elapsed());
}

#[test]
fn a_stranger_who_drips_has_no_more_time_than_one_who_is_silent() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let dripping = spawn(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        // A length of 200, and then byte after byte.
        stream.write_all(&[200, 0, 0, 0]).unwrap();
        while stream.write_all(b" ").is_ok() {
            thread::sleep(SHORT / 10);
        }
    });
    let host = Host { process: process(0, 2, address), facts: facts(16) };
    let begun = Instant::now();
    let (stream, _) = listener.accept().unwrap();
    assert!(host.greet(stream, SHORT).is_err());
    assert!(begun.elapsed() < 2 * SHORT, "{:?}", begun.elapsed());
    dripping.join().unwrap();
}

#[test]
fn another_protocol_is_refused() {
    let (address, host) = host(2, None, LONG);
    let mut stream = TcpStream::connect(address).unwrap();
    say(&mut stream, &serde_json::json!({"magic": MAGIC, "protocol": 99})).unwrap();
    let answer: Answer = wire::decode(&wire::receive(&mut stream, GREETING_BYTES_MAX).unwrap()).unwrap();
    let Answer::Refused(told) = answer else { panic!("{answer:?}") };
    assert!(told.into_error().message().contains("protocol 99"));
    let _end = join(&process(1, 2, address), &facts(16), LONG).unwrap();
    host.join().unwrap().unwrap();
}

#[test]
fn a_rank_that_leaves_while_others_are_waited_for_may_come_again() {
    let (address, host) = host(3, None, LONG);
    drop(join(&process(1, 3, address), &facts(16), LONG).unwrap());
    // Its seat is free as soon as rank 0 has noticed.
    let begun = Instant::now();
    let again = loop {
        match join(&process(1, 3, address), &facts(16), LONG) {
            Ok(link) => break link,
            Err(error) => assert!(begun.elapsed() < LONG, "{error}"),
        }
    };
    let _other = join(&process(2, 3, address), &facts(16), LONG).unwrap();
    let _links = host.join().unwrap().unwrap();
    again.quiet().unwrap();
}

#[test]
fn one_who_goes_away_or_hangs_is_known_at_the_other_end() {
    let (address, host) = host(3, None, SHORT);
    let gone = join(&process(1, 3, address), &facts(16), LONG).unwrap();
    let other = spawn(move || join(&process(2, 3, address), &facts(16), SHORT));
    let links = host.join().unwrap().unwrap();
    let alive = other.join().unwrap().unwrap();
    drop(gone);
    assert_eq!(links[0].receive().unwrap_err().message(), "rank 1 of 3 went away");
    // Silent for longer than the limit, but alive.
    thread::sleep(2 * SHORT);
    links[1].quiet().unwrap();
    drop(alive);
}
