//! Groups of sends and receives, one per thread, as far as they are an exchange: every rank sends
//! as many elements to every other rank.

use super::abi::{INVALID_USAGE, NcclResult, SUCCESS};
use super::comm::Part;
use std::cell::RefCell;
use std::ffi::{c_int, c_uint};

/// Direction of a message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    To,
    From,
}

/// A send or a receive.
#[derive(Clone, Copy)]
pub(super) struct Message {
    pub(super) address: u64,
    pub(super) count: usize,
    pub(super) kind: c_uint,
    pub(super) comm: usize,
    pub(super) stream: usize,
}

/// The messages of a group, with their peers.
#[derive(Default)]
pub(super) struct Messages(Vec<(Direction, c_int, Message)>);

/// The thread's group: how many were opened and not closed, and the messages.
#[derive(Default)]
struct Group {
    open: usize,
    messages: Messages,
}

thread_local! {
    static GROUP: RefCell<Group> = RefCell::default();
}

/// Whether the thread has opened a group.
pub(super) fn is_open() -> bool {
    GROUP.with_borrow(|group| group.open > 0)
}

pub(super) fn open() {
    GROUP.with_borrow_mut(|group| group.open += 1);
}

/// Adds a message to the thread's group.
pub(super) fn add(direction: Direction, peer: c_int, message: Message) -> NcclResult {
    GROUP.with_borrow_mut(|group| {
        if group.open == 0 {
            eprintln!("softgpu: nccl: a send or a receive outside of a group, which would wait for its peer");
            return INVALID_USAGE;
        }
        group.messages.0.push((direction, peer, message));
        SUCCESS
    })
}

/// Closes a group; the messages, where it is the outermost one.
pub(super) fn close() -> Result<Option<Messages>, NcclResult> {
    GROUP.with_borrow_mut(|group| {
        group.open = group.open.checked_sub(1).ok_or(INVALID_USAGE)?;
        Ok((group.open == 0).then(|| std::mem::take(&mut group.messages)))
    })
}

/// A rank's input and output: one part for each other rank, in their order.
pub(super) struct Parts {
    pub(super) to: Vec<Part>,
    pub(super) from: Vec<Part>,
}

impl Messages {
    pub(super) fn first(&self) -> Option<Message> {
        self.0.first().map(|(_, _, message)| *message)
    }

    /// The parts of an exchange of `bytes` bytes with each of the other ranks.
    ///
    /// # Errors
    /// Messages that are no exchange.
    pub(super) fn parts(&self, rank: usize, ranks: usize, bytes: usize) -> Result<Parts, String> {
        let first = self.first().ok_or("a group without messages")?;
        let alike = |message: &Message| {
            let call = |m: &Message| (m.count, m.kind, m.comm, m.stream);
            call(message) == call(&first)
        };
        if !self.0.iter().all(|(_, _, message)| alike(message)) {
            return Err("messages of one group with several counts, types, communicators or streams".into());
        }
        let with = |direction: Direction| {
            let others = (0..ranks).filter(|&peer| peer != rank);
            let part = |peer: usize| {
                let mut found =
                    self.0.iter().filter(|(way, to, _)| (*way, *to) == (direction, peer as c_int));
                match (found.next(), found.next()) {
                    (Some((_, _, message)), None) => Ok((message.address, bytes)),
                    _ => Err(format!("a group without exactly one message each way for rank {peer}")),
                }
            };
            others.map(part).collect::<Result<Vec<_>, _>>()
        };
        let parts = Parts { to: with(Direction::To)?, from: with(Direction::From)? };
        match self.0.len() == parts.to.len() + parts.from.len() {
            true => Ok(parts),
            false => Err("a group with messages for the rank itself".into()),
        }
    }
}
