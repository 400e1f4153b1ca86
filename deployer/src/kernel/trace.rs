//! Decisions told one by one, through aya-log, while somebody asks for them.
#![expect(unsafe_code, reason = "the reactor is given a descriptor that somebody else owns")]

use std::{
    io,
    mem::offset_of,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::SeqCst},
};

use anyhow::{Context, Result};
use aya::Ebpf;
use aya_log::EbpfLogger;
use deployer_common::{
    layout::{NO_WORKER, TRACE_BYPASSED, TRACE_DAEMON, TRACE_DECIDED, TRACE_OBSERVED, TRACE_UNSTEERED, Trace},
    word::State,
};
use tokio::io::unix::AsyncFd;

use super::{
    mapping::Mapping,
    tables::{address, map},
};

/// A decision that the programs have made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// When, in nanoseconds of `CLOCK_MONOTONIC`.
    pub at_ns: u64,
    /// The caller's process, as the machine's own pid namespace numbers it.
    pub pid: u32,
    /// What the caller's thread calls itself, up to 15 bytes of anything, and zeros.
    pub command: [u8; 16],
    /// What the caller dialled.
    pub dialled: SocketAddr,
    /// Index of the worker that it dialled; `None`: a service address.
    pub own: Option<u32>,
    /// The state of that worker, right after the decision.
    pub state: State,
    /// Index of the worker that was chosen; `None`: none.
    pub chosen: Option<u32>,
    /// Why it was looked at as it was.
    pub why: Why,
    /// 0 up, 1 draining, 2 cold, 3 none: of the worker chosen, or of the best where the caller was refused.
    pub rank: u8,
    /// It got a worker that is draining, because too few are up.
    pub floor: bool,
}

/// What the programs went by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The tables; this was carried out.
    Decided,
    /// Everything is bypassed, or the service.
    Bypassed,
    /// The daemon's own connection.
    Daemon,
    /// This caller is not steered.
    Unsteered,
    /// The service is observed: what would have been.
    Observed,
}

/// Which decisions are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Index of the service.
    pub service: u32,
    /// Only those that dialled this port, or are about `worker`; [`Wanted::NO_PORT`]: only the latter.
    pub port: Option<u32>,
    /// Index of the worker at that port.
    pub worker: Option<u32>,
    /// One in so many, by lot; 1: each.
    pub every: u32,
}

impl Wanted {
    /// A port that no connection has.
    pub const NO_PORT: u32 = 1 << 16;
}

/// The decisions that nobody has fetched yet.
pub struct Decisions {
    board: Mapping,
    log: AsyncFd<EbpfLogger<Heard>>,
    heard: Heard,
}

impl Decisions {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        let board = map(ebpf, "TRACE", size_of::<Trace>())?;
        let heard = Heard::default();
        let log = EbpfLogger::init_with_logger(ebpf, heard.clone()).context("taking up the programs' log (aya-log)")?;
        // SAFETY: the logger owns its ring's descriptor, which stays the same and open until it is dropped with this.
        let log = unsafe { AsyncFd::register(log) }.context("waiting for the programs' log")?;
        Ok(Self { board, log, heard })
    }

    fn set(&self, offset: usize, value: u64) {
        self.board.words()[offset / size_of::<u64>()].store(value, SeqCst);
    }

    fn get(&self, offset: usize) -> u64 {
        self.board.words()[offset / size_of::<u64>()].load(SeqCst)
    }

    /// Has decisions told from now on. None are, until [`Self::allow`] says how many.
    pub fn begin(&mut self, wanted: &Wanted) {
        self.end();
        self.log.get_mut().flush();
        self.heard.lock().clear();
        self.set(offset_of!(Trace, service), u64::from(wanted.service));
        self.set(offset_of!(Trace, port), u64::from(wanted.port.unwrap_or(0)));
        self.set(offset_of!(Trace, worker), u64::from(wanted.worker.unwrap_or(NO_WORKER)));
        self.set(offset_of!(Trace, every), u64::from(wanted.every));
        self.set(offset_of!(Trace, seen), 0);
        self.set(offset_of!(Trace, skipped), 0);
    }

    /// Has so many more told, until `until_ms` of `CLOCK_MONOTONIC`.
    pub fn allow(&self, more: u32, until_ms: u64) {
        self.set(offset_of!(Trace, left), u64::from(more));
        self.set(offset_of!(Trace, until_ms), until_ms);
    }

    /// Has none told any more.
    pub fn end(&self) {
        self.set(offset_of!(Trace, until_ms), 0);
    }

    /// How many were wanted since it began, and how many of those were not told because more came than was allowed.
    #[must_use]
    pub fn counted(&self) -> (u64, u64) {
        (self.get(offset_of!(Trace, seen)), self.get(offset_of!(Trace, skipped)))
    }

    /// What has been told, as soon as there is something.
    ///
    /// # Errors
    /// When the reactor is gone.
    pub async fn next(&mut self) -> io::Result<Vec<Decision>> {
        loop {
            let told = self.rest();
            if !told.is_empty() {
                return Ok(told);
            }
            self.log.readable_mut().await?.clear_ready();
        }
    }

    /// What has been told and not fetched.
    pub fn rest(&mut self) -> Vec<Decision> {
        self.log.get_mut().flush();
        std::mem::take(&mut *self.heard.lock())
    }
}

/// What aya-log hands over. No more than its ring holds.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<Decision>>>);

impl Heard {
    fn lock(&self) -> MutexGuard<'_, Vec<Decision>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl log::Log for Heard {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        self.lock().extend(parse(&record.args().to_string()));
    }

    fn flush(&self) {}
}

/// Reads a line of deployer-ebpf's `trace.rs`: numbers, in its order.
fn parse(line: &str) -> Option<Decision> {
    let numbers: Result<Vec<u64>, _> = line.split(' ').map(str::parse).collect();
    let [at_ns, pid, high, low, a, b, c, d, port, own, chosen, packed] = numbers.ok()?.try_into().ok()?;
    let word = |number: u64| u32::try_from(number).ok();
    let worker = |number: u64| Some(word(number)?).filter(|index| *index != NO_WORKER);
    let [why, rank, floor, state, ..] = packed.to_le_bytes();
    let mut command = [0; 16];
    command[..8].copy_from_slice(&high.to_be_bytes());
    command[8..].copy_from_slice(&low.to_be_bytes());
    Some(Decision {
        at_ns,
        pid: word(pid)?,
        command,
        dialled: SocketAddr::new(address([word(a)?, word(b)?, word(c)?, word(d)?]), u16::try_from(port).ok()?),
        own: worker(own),
        state: State::from_bits(u64::from(state)),
        chosen: worker(chosen),
        why: match u32::from(why) {
            TRACE_DECIDED => Why::Decided,
            TRACE_BYPASSED => Why::Bypassed,
            TRACE_DAEMON => Why::Daemon,
            TRACE_UNSTEERED => Why::Unsteered,
            TRACE_OBSERVED => Why::Observed,
            _ => return None,
        },
        rank,
        floor: floor != 0,
    })
}

#[cfg(test)]
mod tests {
    use deployer_common::endpoint::MAPPED;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_line_is_read_as_it_was_written() {
        let [high, low] = [u64::from_be_bytes(*b"nginx\0\0\0"), 0];
        let address = u32::from_ne_bytes([127, 0, 0, 1]);
        let line = format!("5 4711 {high} {low} 0 0 {MAPPED} {address} 8000 3 {NO_WORKER} {}", 0x0401_0103);
        let decision = parse(&line).unwrap();
        assert_eq!((decision.at_ns, decision.pid, &decision.command[..6]), (5, 4711, &b"nginx\0"[..]));
        assert_eq!(decision.dialled, "127.0.0.1:8000".parse().unwrap());
        assert_eq!((decision.own, decision.chosen, decision.state), (Some(3), None, State::Down));
        assert_eq!((decision.why, decision.rank, decision.floor), (Why::Unsteered, 1, true));
    }

    proptest! {
        #[test]
        fn any_line_is_read(line in "[0-9 ]{0,80}|.{0,40}") {
            let _ = parse(&line);
        }
    }
}
