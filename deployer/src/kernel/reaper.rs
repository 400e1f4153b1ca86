//! The reaper: closes kept-alive connections to a worker from the caller's side, where that cannot lose a request.
//!
//! The program (`deployer-ebpf/src/reaper`) goes over all TCP sockets of this network namespace under their locks, and
//! closes those that it is aimed at if the ground given holds in that very moment, and their owner sleeps in `epoll_wait`
//! with nothing to see. It is no part of what is pinned: where its owner is gone, so is the program.
//!
//! It takes Linux 6.5 (`bpf_sock_destroy`). Where [`Reaper::load`] says why there is none, connections end by
//! themselves.

mod answer;
mod object;

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, OwnedFd},
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result, anyhow, bail};
use aya::{
    Ebpf,
    maps::{self, Array, MapData},
};
use deployer_common::reap::{Ends, GROUND_ANSWERED, GROUND_LEARN, GROUND_QUIET, LEARNT, Record, Target};
use rustix::event::epoll;

use super::{
    Pair, bpf,
    tables::{self, take},
};
pub use answer::Answer;

/// On what ground a connection may be closed, besides that its owner must be asleep, that everything sent has been
/// acknowledged, and everything received read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ground {
    /// Its last answer is complete, and nothing has been asked since. TCP sequence numbers, of the octet after the end.
    Complete {
        /// Where the last request ends.
        asked: u32,
        /// Where the answer to it ends.
        answered: u32,
    },
    /// Nothing has been sent or received, bare acknowledgements included.
    Quiet {
        /// For so many milliseconds at least.
        for_ms: u32,
        /// And what was sent last was the worker's, or nothing has been sent at all.
        answered: bool,
    },
}

impl Ground {
    fn target(self, ends: &Ends) -> Target {
        match self {
            Self::Complete { asked, answered } => Target::complete(ends, asked, answered),
            Self::Quiet { for_ms, answered: true } => Target::new(ends, GROUND_ANSWERED, for_ms.into()),
            Self::Quiet { for_ms, answered: false } => Target::new(ends, GROUND_QUIET, for_ms.into()),
        }
    }
}

/// The loaded program and what it is aimed at.
pub struct Reaper {
    /// Keeps program and tables in the kernel.
    _ebpf: Ebpf,
    iterator: OwnedFd,
    aims: Mutex<Aims>,
}

struct Aims {
    table: maps::HashMap<MapData, Ends, Target>,
    known: HashMap<Pair, Aim>,
    strikes: u64,
}

struct Aim {
    /// The first strike that sees it.
    since: u64,
    /// Strikes in a row that did not meet it.
    missed: u32,
}

impl Reaper {
    /// Loads the program, and tries it on a connection of its own. The thread's network namespace must have a loopback
    /// device that is up.
    ///
    /// # Errors
    /// Why connections cannot be closed here: the kernel is older than 6.5, was built without something, or refuses.
    pub fn load() -> Result<Self> {
        let mut ebpf = object::load()?;
        let program = ebpf.program("reap").ok_or_else(|| anyhow!("the eBPF object has no program reap"))?;
        let iterator = bpf::iterator(program.fd()?.as_fd()).context("opening an iterator over TCP sockets")?;
        let table = maps::HashMap::try_from(take(&mut ebpf, "TARGETS")?)?;
        let mut waker = Array::<_, u64>::try_from(take(&mut ebpf, "WAKER")?)?;
        let aims = Mutex::new(Aims { table, known: HashMap::new(), strikes: 0 });
        let reaper = Self { _ebpf: ebpf, iterator, aims };
        let learnt = reaper.learn().context("finding out how the kernel wakes who waits in epoll_wait")?;
        waker.set(0, learnt, 0).context("noting how the kernel wakes who waits in epoll_wait")?;
        Ok(reaper)
    }

    /// Aims at a connection, or changes the ground for it. Takes a few microseconds at most, also while a strike runs.
    ///
    /// # Errors
    /// When the ends are of two families of addresses, or too many connections are aimed at.
    pub fn aim(&self, pair: Pair, ground: Ground) -> io::Result<()> {
        let ends = ends(&pair)?;
        self.enter(ends, ground.target(&ends))
    }

    fn enter(&self, ends: Ends, target: Target) -> io::Result<()> {
        let mut aims = self.aims();
        aims.table.insert(ends, target, 0).map_err(io::Error::other)?;
        let since = aims.strikes + 1;
        aims.known.entry(pair(&ends)).or_insert(Aim { since, missed: 0 });
        Ok(())
    }

    /// Takes a connection back. A strike that runs may still close it.
    pub fn spare(&self, aimed: &Pair) {
        if let Ok(ends) = ends(aimed) {
            let mut aims = self.aims();
            // What is missing has been closed.
            let _ = aims.table.remove(&ends);
            aims.known.remove(&pair(&ends));
        }
    }

    /// Takes back what is not to be kept.
    pub fn retain(&self, keep: impl Fn(&Pair) -> bool) {
        let over: Vec<_> = self.aims().known.keys().filter(|pair| !keep(pair)).copied().collect();
        over.iter().for_each(|pair| self.spare(pair));
    }

    /// How many connections are aimed at.
    #[must_use]
    pub fn targets(&self) -> usize {
        self.aims().known.len()
    }

    /// Goes over all TCP sockets of the calling thread's network namespace once, and closes what may be closed of what is
    /// aimed at. Says what came of every target that was there from the beginning of the strike; those that are closed or
    /// gone are taken back. Blocks the thread: about a millisecond, and longer with many sockets.
    ///
    /// # Errors
    /// When the iterator fails.
    pub fn strike(&self) -> io::Result<Vec<(Pair, Answer)>> {
        let strike = {
            let mut aims = self.aims();
            if aims.known.is_empty() {
                return Ok(Vec::new());
            }
            aims.strikes += 1;
            aims.strikes
        };
        let met: HashMap<Pair, u32> =
            self.records()?.iter().map(|record| (pair(&record.ends), record.outcome)).collect();
        Ok(self.aims().judge(strike, &met))
    }

    fn records(&self) -> io::Result<Vec<Record>> {
        Ok(answer::records(&bpf::run(self.iterator.as_fd())?))
    }

    /// The function by which the kernel wakes who waits in `epoll_wait` for a socket, as it stands at one of our own: the
    /// kernel's list of symbols may be closed to us.
    fn learn(&self) -> Result<u64> {
        let listener = TcpListener::bind("127.0.0.1:0").context("listening at 127.0.0.1")?;
        let worker = listener.local_addr()?;
        let socket = TcpStream::connect(worker).with_context(|| format!("connecting to {worker}"))?;
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&poll, &socket, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
        let own = Pair { caller: socket.local_addr()?, worker };
        let ends = ends(&own)?;
        self.enter(ends, Target::new(&ends, GROUND_LEARN, 0))?;
        let found = self.records();
        self.spare(&own);
        let found = found?.into_iter().rfind(|record| record.ends == ends && record.outcome == LEARNT);
        match found.map(|record| record.detail) {
            Some(0) => bail!("the iterator over TCP sockets does not understand the socket of {own}"),
            Some(waker) => Ok(waker),
            None => bail!("the iterator over TCP sockets has not met the socket of {own}"),
        }
    }

    fn aims(&self) -> MutexGuard<'_, Aims> {
        // A panic elsewhere leaves the table as good as it was.
        self.aims.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Aims {
    /// What came of the targets that were there when a strike began.
    fn judge(&mut self, strike: u64, met: &HashMap<Pair, u32>) -> Vec<(Pair, Answer)> {
        let mut answers = Vec::new();
        for (pair, aim) in self.known.iter_mut().filter(|(_, aim)| aim.since <= strike) {
            let answer = met.get(pair).map_or(Answer::Missing, |outcome| Answer::of(*outcome));
            aim.missed = if answer == Answer::Missing { aim.missed + 1 } else { 0 };
            // Kernels before 6.16 may pass over a socket when others go while they look.
            let answer = if aim.missed > 1 { Answer::Gone } else { answer };
            answers.push((*pair, answer));
        }
        for (pair, _) in answers.iter().filter(|(_, answer)| matches!(answer, Answer::Closed | Answer::Gone)) {
            self.known.remove(pair);
            if let Ok(ends) = ends(pair) {
                let _ = self.table.remove(&ends);
            }
        }
        answers
    }
}

/// The ends of a connection as the table has them.
fn ends(pair: &Pair) -> io::Result<Ends> {
    let Pair { caller, worker } = pair;
    if caller.ip().to_canonical().is_ipv4() != worker.ip().to_canonical().is_ipv4() {
        let what = format!("{pair}: one end is IPv4, the other IPv6, so there can be no such connection");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    let words = |ip: IpAddr| tables::words(ip.to_canonical());
    Ok(Ends {
        caller: words(caller.ip()),
        worker: words(worker.ip()),
        caller_port: caller.port().into(),
        worker_port: worker.port().into(),
    })
}

fn pair(ends: &Ends) -> Pair {
    // Ports are 16 bits wide.
    let end = |words: [u32; 4], port: u32| SocketAddr::new(tables::address(words), port as u16);
    Pair { caller: end(ends.caller, ends.caller_port), worker: end(ends.worker, ends.worker_port) }
}

#[cfg(test)]
mod tests;
