//! Runs streams: each is a queue that runs when a thread waits for it.

use super::calls::results_copied;
use super::op::{Failure, Op, Stream};
use super::status::Status;
use super::trace::Label;
use super::world::{DeviceState, LAUNCH_OF, World};
use crate::check::{Fault, Violation};
use crate::decode::Program;
use crate::device::{Access, Launch};
use crate::exec;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Instant;

/// The progress of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// To the entry that was asked for.
    Done,
    /// Up to a collective that waits for other ranks.
    Waits {
        /// The group of ranks.
        group: usize,
    },
}

impl DeviceState {
    /// Appends to a stream.
    ///
    /// # Errors
    /// An unknown stream.
    pub fn push(&mut self, stream: usize, op: Op) -> Result<(), Status> {
        let blocking = self.streams.get(&stream).ok_or(Status::InvalidHandle)?.blocking;
        // The default stream and blocking streams wait for each other.
        let waits: Vec<(usize, u64)> = if stream == 0 {
            self.streams
                .iter()
                .filter(|(_, s)| s.blocking && s.done < s.pushed)
                .map(|(&id, s)| (id, s.pushed))
                .collect()
        } else if blocking && self.streams[&0].done < self.streams[&0].pushed {
            vec![(0, self.streams[&0].pushed)]
        } else {
            Vec::new()
        };
        let target = self.streams.get_mut(&stream).ok_or(Status::InvalidHandle)?;
        for (stream, sequence) in waits {
            target.queue.push_back(Op::Wait { stream, sequence });
            target.pushed += 1;
        }
        target.launches += usize::from(op.is_launch());
        target.queue.push_back(op);
        target.pushed += 1;
        Ok(())
    }

    /// Runs a stream until `sequence` of its entries are done, or a collective waits.
    ///
    /// # Errors
    /// The device's sticky error, old or new.
    pub fn run_until(&mut self, world: &World, stream: usize, sequence: u64) -> Result<Progress, Status> {
        while let Some(s) = self.streams.get_mut(&stream) {
            if let Some(status) = self.error {
                return Err(status);
            }
            if s.done >= sequence {
                break;
            }
            let Some(mut op) = s.queue.pop_front() else { break };
            let ready = self.trace.ready(s);
            let mut start = Ok(ready);
            let waits = match &mut op {
                Op::Wait { stream: other, sequence } => {
                    let progress = self.run_until(world, *other, *sequence)?;
                    start = Ok(ready.max(self.trace.ended(self.streams.get(other), *sequence)));
                    (progress != Progress::Done).then_some(progress)
                }
                Op::Collective { name, group, poll, .. } => match poll(&mut self.memory, ready) {
                    Some(ended) => {
                        start = ended.map_err(|failure| Failure {
                            why: format!("{name}: {}", failure.why),
                            ..failure
                        });
                        None
                    }
                    None => Some(Progress::Waits { group: *group }),
                },
                _ => None,
            };
            if let Some(waits) = waits {
                if let Some(s) = self.streams.get_mut(&stream) {
                    s.queue.push_front(op);
                }
                return Ok(waits);
            }
            let (label, is_launch) = (Label::new(&op), op.is_launch());
            if let (Op::CopyOut { pinned: true, .. }, Some(s)) = (&op, self.streams.get(&stream)) {
                results_copied(s.launches);
            }
            let end = match start.and_then(|start| self.perform(world, op).map(|()| start)) {
                Ok(start) => label.map_or(start, |label| self.record(world, stream, label, start)),
                Err(Failure { status, why, lasts }) => {
                    eprintln!("softgpu: device {}: {why}", self.index);
                    self.error = Some(status);
                    self.error_lasts = lasts;
                    self.message = why;
                    0
                }
            };
            if let Some(s) = self.streams.get_mut(&stream) {
                s.done += 1;
                s.launches -= usize::from(is_launch);
                s.clock = s.clock.max(end);
                s.ends.push(s.clock);
            }
        }
        self.error.map_or(Ok(Progress::Done), Err)
    }

    /// The next collective of a group in each stream, as (stream, entries to run until it is done).
    pub(super) fn collectives(&self, group: usize) -> Vec<(usize, u64)> {
        let of_group = |op: &Op| matches!(op, Op::Collective { group: other, .. } if *other == group);
        let next = |s: &Stream| s.queue.iter().position(of_group).map(|at| s.done + at as u64 + 1);
        self.streams.iter().filter_map(|(&id, s)| Some((id, next(s)?))).collect()
    }

    /// Traces the operation that has just run, and returns the time of its end.
    fn record(&mut self, world: &World, stream: usize, label: Label, start: u64) -> u64 {
        let link = world.settings.link_bytes_per_ns;
        let end = start + label.duration(link, self.memory.counters.warp_instructions);
        let priority = self.streams.get(&stream).map_or(0, |stream| stream.priority);
        self.trace.record((stream, priority), label, start, end);
        end
    }

    fn perform(&mut self, world: &World, op: Op) -> Result<(), Failure> {
        let memory = &mut self.memory;
        let in_copy = |(violation, detail): (Violation, String)| {
            Failure::fault(status_of(violation), format!("{violation} in a copy: {detail}"))
        };
        match op {
            Op::CopyIn { to, bytes } => {
                memory.range(to, bytes.len(), Access::Write).map_err(in_copy)?;
                // SAFETY: `range` found all of the target inside a live allocation; the source is a
                // Vec of that length.
                unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len()) };
            }
            Op::CopyInLate { to, from, bytes: held } => {
                memory.range(to, held.len(), Access::Write).map_err(in_copy)?;
                let bytes = read_late(from, held.len()).map_err(|why| {
                    let what = format!("a copy from pageable memory at {from:#x}, which is gone: {why}");
                    Failure::fault(Status::IllegalAddress, what)
                })?;
                if bytes != held {
                    eprintln!(
                        "softgpu: device {}: {} bytes of pageable memory at {from:#x} changed before their copy ran",
                        self.index,
                        held.len()
                    );
                }
                // SAFETY: `range` found all of the target inside a live allocation; the source is a
                // Vec of that length.
                unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len()) };
            }
            Op::CopyInPinned { to, from, bytes } => {
                memory.range(to, bytes, Access::Write).map_err(in_copy)?;
                if !world.is_pinned(from, bytes) {
                    return Err(Failure::fault(
                        Status::IllegalAddress,
                        "use after free of pinned memory in a copy to the device",
                    ));
                }
                // SAFETY: `range` found the target inside a live allocation, and the source is
                // pinned memory that lives still.
                unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
            }
            Op::CopyOut { to, from, bytes, .. } => {
                memory.range(from, bytes, Access::Read).map_err(in_copy)?;
                // SAFETY: `range` found the source inside a live allocation; the target is the
                // caller's, promised by cuMemcpyDtoHAsync's contract until the copy has been waited
                // for.
                unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
            }
            Op::CopyDevice { to, from, bytes } => {
                memory.peek(from, bytes).map_err(in_copy)?;
                memory.peek(to, bytes).map_err(in_copy)?;
                memory.copy_written(to, from, bytes);
                // SAFETY: both ranges were found inside live allocations; they may overlap.
                unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
            }
            Op::Fill { to, value, bytes } => {
                memory.range(to, bytes, Access::Write).map_err(in_copy)?;
                // SAFETY: `range` found the target inside a live allocation.
                unsafe { std::ptr::write_bytes(to as *mut u8, value, bytes) };
            }
            Op::Launch { program, config, params } => return self.launch(world, &program, &config, &params),
            Op::Record { event } => {
                if let Some(event) = self.events.get_mut(&event) {
                    event.passed = Some(Instant::now());
                }
            }
            Op::Wait { .. } | Op::Collective { .. } => {}
            Op::Library { name, call, .. } => {
                call(memory)
                    .map_err(|why| Failure::fault(Status::IllegalAddress, format!("{name}: {why}")))?;
            }
        }
        Ok(())
    }

    fn launch(
        &mut self,
        world: &World,
        program: &Program,
        config: &exec::Config,
        params: &[u8],
    ) -> Result<(), Failure> {
        if world.fails("lost", self.index) {
            return Err(Failure::fault(
                Status::Unknown,
                format!("the device was lost before kernel `{}`, as planned", program.name),
            ));
        }
        let of_kernel = format!("{LAUNCH_OF}{}", program.name);
        if world.fails("launch", self.index) || world.fails(&of_kernel, self.index) {
            return Err(Failure::fault(
                Status::LaunchFailed,
                format!("kernel `{}` failed, as planned", program.name),
            ));
        }
        let outcome = exec::launch(program, config, params, &mut self.memory);
        self.launches.push(Launch {
            kernel: program.name.clone(),
            device: self.index,
            grid: config.grid,
            block: config.block,
            counters: self.memory.counters,
        });
        outcome.map_err(|Fault { violation, message }| Failure::fault(status_of(violation), message))
    }
}

/// Reads memory of this process that may be gone.
fn read_late(from: usize, bytes: usize) -> std::io::Result<Vec<u8>> {
    let mut read = vec![0; bytes];
    File::open("/proc/self/mem")?.read_exact_at(&mut read, from as u64)?;
    Ok(read)
}

fn status_of(violation: Violation) -> Status {
    match violation {
        Violation::Misaligned => Status::MisalignedAddress,
        Violation::Barrier => Status::LaunchTimeout,
        Violation::Trap | Violation::Descriptor => Status::IllegalInstruction,
        _ => Status::IllegalAddress,
    }
}
