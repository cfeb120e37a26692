//! CPU time of the machine, of this process and of a process group, by which a slot is known to be
//! disturbed by other work. `None` except on Linux.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use crate::machine;
use kudos::Result;

/// A slot is disturbed when other processes, hypervisors included (steal), had more cores than this.
const FOREIGN_CORES_MAX: f64 = 0.12;

/// CPU time of three ticks of the clock by which the system counts it says nothing.
const FOREIGN_SECONDS_MIN: f64 = 0.03;

/// A disturbed slot is measured up to so many times, and the least disturbed one counts.
const ATTEMPTS_MAX: usize = 4;

/// The machine is quiet when it was so for this time.
const QUIET: Duration = Duration::from_millis(700);

/// A process group, by its leader's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Group(pub(super) u32);

/// CPU time until a moment.
#[derive(Clone, Copy, Debug)]
struct Usage {
    at: Instant,
    /// CPU time of all CPUs, other than idle.
    busy_seconds: f64,
    /// CPU time of this process and the group.
    own_seconds: f64,
}

/// CPU time between two moments.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Foreign {
    /// Cores that other processes had, on average.
    pub(super) cores: f64,
    seconds: f64,
}

impl Usage {
    fn read(group: Option<Group>) -> Option<Self> {
        let own = machine::cpu_seconds()? + group.map_or(Some(0.0), Group::cpu_seconds)?;
        Some(Self { at: Instant::now(), busy_seconds: busy_seconds()?, own_seconds: own })
    }

    /// CPU time of other processes since `self`.
    fn foreign(self, group: Option<Group>) -> Option<Foreign> {
        let after = Self::read(group)?;
        let own = after.own_seconds - self.own_seconds;
        let seconds = (after.busy_seconds - self.busy_seconds - own).max(0.0);
        let elapsed = (after.at - self.at).as_secs_f64().max(1e-9);
        Some(Foreign { cores: seconds / elapsed, seconds })
    }
}

impl Foreign {
    fn disturbs(self) -> bool {
        self.cores > FOREIGN_CORES_MAX && self.seconds > FOREIGN_SECONDS_MIN
    }
}

/// A slot: what was measured in it, and the CPU time that other processes had.
#[derive(Debug)]
pub(super) struct Slot<T> {
    pub(super) measured: T,
    pub(super) foreign: Option<Foreign>,
}

impl<T> Slot<T> {
    /// Measures a slot of this process and a group.
    pub(super) fn of(group: Option<Group>, measure: impl FnOnce() -> Result<T>) -> Result<Self> {
        let before = Usage::read(group);
        let measured = measure()?;
        Ok(Self { measured, foreign: before.and_then(|before| before.foreign(group)) })
    }

    pub(super) fn is_disturbed(&self) -> bool {
        self.foreign.is_some_and(Foreign::disturbs)
    }
}

/// The least disturbed of several slots, of which the first that is not disturbed is the last, and
/// the number of the others. Waits for up to `wait` before each but the first.
pub(super) fn least_disturbed<T>(
    wait: Duration,
    mut slot: impl FnMut() -> Result<Slot<T>>,
) -> Result<(Slot<T>, usize)> {
    let (mut least, mut repeated) = (slot()?, 0);
    while least.is_disturbed() && repeated + 1 < ATTEMPTS_MAX {
        wait_until_quiet(wait);
        repeated += 1;
        let other = slot()?;
        let cores = |slot: &Slot<T>| slot.foreign.map(|foreign| foreign.cores);
        if cores(&other) < cores(&least) {
            least = other;
        }
    }
    Ok((least, repeated))
}

/// Waits until other processes are quiet, for `most` at the longest.
fn wait_until_quiet(most: Duration) {
    let began = Instant::now();
    while began.elapsed() < most {
        let Some(before) = Usage::read(None) else { return };
        thread::sleep(QUIET.min(most));
        if !before.foreign(None).is_some_and(Foreign::disturbs) {
            return;
        }
    }
}

impl Group {
    /// CPU time of its processes, and of children that have ended.
    pub(super) fn cpu_seconds(self) -> Option<f64> {
        let ticks = ticks_per_second()?;
        Some(self.processes()?.iter().map(|process| process.ticks).sum::<f64>() / ticks)
    }

    /// The sum over its processes of the most memory that each has had in RAM.
    pub(super) fn peak_memory_bytes(self) -> Option<u64> {
        let of = |process: &Process| machine::peak_memory_bytes_of(process.id);
        self.processes()?.iter().map(of).sum()
    }

    fn processes(self) -> Option<Vec<Process>> {
        let ids =
            fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let processes: Vec<Process> = ids.filter_map(|id: u32| Process::read(id, self)).collect();
        (!processes.is_empty()).then_some(processes)
    }
}

/// A process of a group.
struct Process {
    id: u32,
    /// CPU time of its threads and of its children that have ended.
    ticks: f64,
}

impl Process {
    /// `None` where it has ended, or is of another group.
    fn read(id: u32, group: Group) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        // The name before it is in brackets, and may have spaces. Then: state, parent, group, ...
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let field = |index: usize| fields.get(index)?.parse::<u32>().ok();
        (field(2)? == group.0).then_some(())?;
        let ticks = (11..=14).map(|index| field(index).map(f64::from)).sum::<Option<f64>>()?;
        Some(Self { id, ticks })
    }
}

/// CPU time of all CPUs other than idle, steal included.
fn busy_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    // cpu  user nice system idle iowait irq softirq steal ...
    let fields: Vec<f64> =
        stat.lines().next()?.split_whitespace().skip(1).map_while(|field| field.parse().ok()).collect();
    let busy = [0, 1, 2, 5, 6, 7].into_iter().map(|index| fields.get(index).copied()).sum::<Option<f64>>()?;
    Some(busy / ticks_per_second()?)
}

#[cfg(unix)]
fn ticks_per_second() -> Option<f64> {
    Some(rustix::param::clock_ticks_per_second() as f64)
}

#[cfg(not(unix))]
fn ticks_per_second() -> Option<f64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_ticks_do_not_disturb_a_short_slot() {
        assert!(!Foreign { cores: 0.5, seconds: 0.02 }.disturbs());
        assert!(!Foreign { cores: 0.05, seconds: 2.0 }.disturbs());
        assert!(Foreign { cores: 0.2, seconds: 0.2 }.disturbs());
    }

    #[test]
    fn a_disturbed_slot_is_measured_again_up_to_three_times() {
        let run = |cores: &[f64]| {
            let mut slots = cores
                .iter()
                .map(|&cores| Slot { measured: cores, foreign: Some(Foreign { cores, seconds: 1.0 }) });
            let (slot, repeated) = least_disturbed(Duration::ZERO, || Ok(slots.next().unwrap())).unwrap();
            (slot.measured, slot.is_disturbed(), repeated)
        };
        assert_eq!(run(&[0.0, 9.0]), (0.0, false, 0));
        assert_eq!(run(&[2.0, 0.01, 0.0]), (0.01, false, 1));
        assert_eq!(run(&[2.0, 0.5, 1.0, 3.0, 0.0]), (0.5, true, 3));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn cpu_time_of_this_process_is_not_foreign() {
        let own = Usage::read(None).unwrap();
        assert!(own.busy_seconds > own.own_seconds && own.own_seconds > 0.0, "{own:?}");
        assert!(Group(u32::MAX).cpu_seconds().is_none(), "there is no such group");
    }
}
