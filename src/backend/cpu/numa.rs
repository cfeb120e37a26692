//! The NUMA nodes of this machine, and threads that stay on some of them.
//!
//! A thread reads the memory of its own node fastest. What a thread starts, and the memory that it
//! is first to write, stay where it is: a replica's rank threads move to their nodes before they
//! open, and the replica's workers and activations follow. Weights stay where the system has put
//! the pages of the files.

use std::fs;
use std::io;

/// The nodes whose CPUs this process may use, with the numbers of those CPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nodes(Vec<Vec<usize>>);

impl Nodes {
    /// Returns this machine's nodes; one node that holds nothing where the system has no list of
    /// them.
    pub fn of_machine() -> Self {
        Self::of_lists(&lists_of_cpus(), &affinity().unwrap_or_default())
    }

    /// Returns the nodes with the given lists of CPUs, as Linux spells them (`0-15,32-47`), without
    /// CPUs that are not `allowed`.
    fn of_lists(lists: &[String], allowed: &[usize]) -> Self {
        let usable = |list: &String| -> Vec<usize> {
            parse(list).into_iter().filter(|cpu| allowed.binary_search(cpu).is_ok()).collect()
        };
        let nodes: Vec<_> = lists.iter().map(usable).filter(|cpus| !cpus.is_empty()).collect();
        // Node numbers are names: without the list of one, there is nothing to choose from.
        if nodes.is_empty() { Self(vec![Vec::new()]) } else { Self(nodes) }
    }

    /// Returns nodes with the given CPUs.
    #[cfg(test)]
    pub fn of_cpus(nodes: &[&[usize]]) -> Self {
        Self(nodes.iter().map(|cpus| cpus.to_vec()).collect())
    }

    /// Returns the number of nodes, at least one.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Returns the CPUs that a replica's threads are to stay on: those of the replica's share of
    /// the nodes, or of a node that it shares with other replicas. `None` where there is nothing to
    /// choose: one replica, or one node.
    pub fn cpus_of(&self, replica: usize, replicas: usize) -> Option<Vec<usize>> {
        if replicas < 2 || self.count() < 2 {
            return None;
        }
        let bound = |replica: usize| replica * self.count() / replicas;
        let first = bound(replica);
        let end = bound(replica + 1).max(first + 1);
        Some(self.0[first..end].concat())
    }
}

/// Returns the numbers in a list as Linux spells it; what is no number or range of numbers counts
/// for nothing.
fn parse(list: &str) -> Vec<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
    };
    list.split(',').filter_map(range).flatten().collect()
}

/// Returns the list of each node's CPUs, in order of the nodes' numbers.
#[cfg(target_os = "linux")]
fn lists_of_cpus() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/sys/devices/system/node") else { return Vec::new() };
    let list = |entry: fs::DirEntry| {
        let name = entry.file_name();
        let number: usize = name.to_str()?.strip_prefix("node")?.parse().ok()?;
        Some((number, fs::read_to_string(entry.path().join("cpulist")).ok()?))
    };
    let mut lists: Vec<_> = entries.filter_map(|entry| list(entry.ok()?)).collect();
    lists.sort();
    lists.into_iter().map(|(_, list)| list).collect()
}

#[cfg(not(target_os = "linux"))]
fn lists_of_cpus() -> Vec<String> {
    Vec::new()
}

/// Bits of a word of the sets of CPUs that the system takes.
#[cfg(target_os = "linux")]
const WORD_BITS: usize = libc::c_ulong::BITS as usize;

/// Returns the numbers of the CPUs that the calling thread may use, ascending.
#[cfg(target_os = "linux")]
fn affinity() -> io::Result<Vec<usize>> {
    // Linux writes as many words as its largest CPU number needs, at most 8192 bits on x86-64.
    let mut words: [libc::c_ulong; 8192 / WORD_BITS] = [0; _];
    let bytes = size_of_val(&words);
    // SAFETY: the call writes at most `bytes` bytes into `words`, all of whose bit patterns are
    // valid; 0 is the calling thread.
    let written = unsafe { libc::syscall(libc::SYS_sched_getaffinity, 0, bytes, words.as_mut_ptr()) };
    if written < 0 {
        return Err(io::Error::last_os_error());
    }
    let is_set = |cpu: &usize| words[cpu / WORD_BITS] >> (cpu % WORD_BITS) & 1 == 1;
    Ok((0..8 * bytes).filter(is_set).collect())
}

#[cfg(not(target_os = "linux"))]
fn affinity() -> io::Result<Vec<usize>> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Makes the calling thread, and every thread that it starts from now on, stay on some CPUs.
///
/// # Errors
///
/// The system's, which refuses CPUs that it does not have, or that this process may not use.
#[cfg(target_os = "linux")]
pub fn stay_on(cpus: &[usize]) -> io::Result<()> {
    let words_needed = cpus.iter().max().map_or(0, |cpu| cpu / WORD_BITS + 1);
    let mut words: Vec<libc::c_ulong> = vec![0; words_needed];
    for cpu in cpus {
        words[cpu / WORD_BITS] |= 1 << (cpu % WORD_BITS);
    }
    let bytes = size_of_val(&words[..]);
    // SAFETY: the call reads `bytes` bytes of `words`; 0 is the calling thread.
    let result = unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, bytes, words.as_ptr()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(not(target_os = "linux"))]
pub fn stay_on(_cpus: &[usize]) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::thread;

    use super::super::pool::Pool;
    use super::*;
    use crate::lock::lock;

    #[test]
    fn lists_are_read_as_linux_spells_them() {
        assert_eq!(parse("0-3,8-9\n"), [0, 1, 2, 3, 8, 9]);
        assert_eq!(parse("5"), [5]);
        // A node of memory alone.
        assert!(parse("\n").is_empty());
        assert_eq!(parse("a-b,,7"), [7]);
    }

    #[test]
    fn nodes_have_the_cpus_that_may_be_used() {
        let lists = ["0-3\n", "4-7\n", "\n", "8-11\n"].map(str::to_owned);
        let all: Vec<usize> = (0..12).collect();
        let expected = Nodes::of_cpus(&[&[0, 1, 2, 3], &[4, 5, 6, 7], &[8, 9, 10, 11]]);
        assert_eq!(Nodes::of_lists(&lists, &all), expected);
        assert_eq!(Nodes::of_lists(&lists, &[2, 3, 8]), Nodes::of_cpus(&[&[2, 3], &[8]]));
        assert_eq!(Nodes::of_lists(&[], &all).count(), 1);
        assert_eq!(Nodes::of_lists(&lists, &[]).count(), 1);
    }

    #[test]
    fn replicas_divide_the_nodes() {
        let nodes = Nodes::of_cpus(&[&[0, 1], &[2, 3], &[4, 5], &[6, 7]]);
        let cpus = |replicas| -> Vec<_> { (0..replicas).map(|r| nodes.cpus_of(r, replicas)).collect() };
        let some = |cpus: &[usize]| Some(cpus.to_vec());
        assert_eq!(cpus(1), [None]);
        assert_eq!(cpus(2), [some(&[0, 1, 2, 3]), some(&[4, 5, 6, 7])]);
        assert_eq!(cpus(3), [some(&[0, 1]), some(&[2, 3]), some(&[4, 5, 6, 7])]);
        assert_eq!(cpus(4), [some(&[0, 1]), some(&[2, 3]), some(&[4, 5]), some(&[6, 7])]);
        assert_eq!(cpus(8)[..3], [some(&[0, 1]), some(&[0, 1]), some(&[2, 3])]);
        assert_eq!(cpus(8)[7], some(&[6, 7]));
        assert_eq!(Nodes::of_cpus(&[&[0, 1]]).cpus_of(1, 2), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn threads_stay_where_the_one_that_starts_them_is() {
        for cpu in affinity().unwrap() {
            thread::spawn(move || {
                stay_on(&[cpu]).unwrap();
                let seen = Mutex::new(Vec::new());
                Pool::new(3).unwrap().run(&|_| lock(&seen).push(affinity().unwrap()));
                assert_eq!(lock(&seen)[..], vec![vec![cpu]; 3]);
            })
            .join()
            .unwrap();
        }
        let refused = thread::spawn(|| stay_on(&[8191])).join().unwrap();
        assert!(refused.is_err());
        // A refusal changes nothing, and neither do other threads.
        assert!(!affinity().unwrap().is_empty());
    }
}
