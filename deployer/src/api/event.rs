//! What happens in a roll, as its clients hear of it.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{Exit, Phase};

/// Something that happened in a roll.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// From 0, without gaps.
    pub seq: u64,
    /// Milliseconds since 1970.
    pub time_ms: u64,
    /// The roll.
    pub roll: String,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum What {
    /// The roll has begun; always the first.
    Begun {
        /// The service.
        service: String,
        /// The version aimed at.
        to: Option<String>,
        /// Who asked: "root (pid 4711)".
        by: String,
        /// The workers, batch by batch.
        batches: Vec<Vec<SocketAddr>>,
        /// Spares that are started first and retired at the end.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        spares: Vec<SocketAddr>,
    },
    /// A command was run: `switch` or `unswitch`.
    Command {
        /// `switch` or `unswitch`.
        which: String,
        /// Its words.
        argv: Vec<String>,
        /// Why it failed; `None`: it succeeded.
        error: Option<String>,
    },
    /// A batch has begun.
    Batch {
        /// From 1.
        nth: usize,
        /// Of how many.
        of: usize,
        /// Its workers.
        workers: Vec<SocketAddr>,
        /// Whether workers are being rolled back.
        back: bool,
    },
    /// A worker was not empty at its deadline, and is left: nothing of it is cut, and the roll comes back to it at its end.
    Left {
        /// The worker.
        worker: SocketAddr,
        /// What held it.
        why: String,
    },
    /// The workers that were left are taken again, all others being through.
    Again {
        /// All of them.
        workers: Vec<SocketAddr>,
        /// Whether workers are being rolled back.
        back: bool,
        /// So long they are waited for, at the longest.
        seconds: f64,
    },
    /// Spares are being started, before any worker is touched.
    Surge {
        /// All of them.
        spares: Vec<SocketAddr>,
    },
    /// Spares are being drained and stopped.
    Retire {
        /// All of them.
        spares: Vec<SocketAddr>,
    },
    /// A deploy gives the other pool a lane, and starts it.
    Pool {
        /// `a` or `b`.
        pool: String,
        /// The lane.
        lane: u8,
    },
    /// The workers of the pool that is not current are drained and stopped.
    RetirePool {
        /// All of them.
        workers: Vec<SocketAddr>,
    },
    /// The gate was asked.
    Gate {
        /// Why it does not pass; `None`: it does.
        error: Option<String>,
    },
    /// All is ready, and a deploy waits to be told to flip.
    Holding,
    /// A barrier of others is waited for: before the first batch or the flip, or until all have left it.
    Waiting {
        /// Its path.
        barrier: String,
    },
    /// All barriers asked for are passed.
    Passed,
    /// The flip is armed: the kernel does it at that instant.
    Armed {
        /// Milliseconds since 1970.
        at_ms: u64,
        /// The lane that will be current.
        lane: u8,
    },
    /// It has been taken back before its instant.
    Disarmed,
    /// The new pool is current.
    Flipped {
        /// Since, milliseconds since 1970.
        at_ms: u64,
        /// Its lane.
        lane: u8,
        /// What it runs.
        version: Option<String>,
        /// So long both pools stand side by side, milliseconds since 1970; [`u64::MAX`]: until the fleet says.
        until_ms: u64,
    },
    /// The old pool is current again.
    Returned {
        /// Since, milliseconds since 1970.
        at_ms: u64,
        /// Its lane.
        lane: u8,
        /// Why.
        why: String,
        /// So long the other stays for the pages of its version, milliseconds since 1970; [`u64::MAX`]: until the fleet says.
        until_ms: u64,
    },
    /// The new version is ill while it bakes, and the fleet decides what becomes of it.
    Ill {
        /// Why.
        why: String,
    },
    /// Somebody has asked for a flip that is held, a rollback, or another deploy in place of this one.
    Asked {
        /// Who.
        by: String,
        /// `flip`, `rollback`, `supersede`.
        what: String,
    },
    /// A worker has come into another phase.
    Phase {
        /// The worker.
        worker: SocketAddr,
        /// It is a spare.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        spare: bool,
        /// The phase.
        phase: Phase,
        /// The phase before.
        was: Phase,
        /// Why, or the version it now runs. May be empty.
        reason: String,
    },
    /// What holds a drain; sent when it changes, at most once a second a worker.
    Held {
        /// The worker.
        worker: SocketAddr,
        /// It is a spare.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        spare: bool,
        /// Connections open.
        open: u64,
        /// connect() calls on their way.
        tickets: u64,
        /// Who, by process and state, with one address: "nginx (pid 4711): 3 established, 127.0.0.1:43210".
        by: Vec<String>,
        /// Others that would have to be up: "1 other is up, and min_up = 2". It waits for them; if it is draining already,
        /// callers go on to it meanwhile.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        floor: Option<String>,
    },
    /// A drain's deadline has passed, and connections of callers that the service does not steer were cut: they do not stop a
    /// roll.
    OutsidersCut {
        /// The worker.
        worker: SocketAddr,
        /// It is a spare.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        spare: bool,
        /// Connections that were open.
        connections: u64,
        /// `connect()` calls on their way. They are not cut: their connections arrive at the worker after its restart.
        tickets: u64,
        /// Whose they were, by process, user and state: "python3 (pid 4711, user nobody): 1 established, 127.0.0.1:43210".
        by: Vec<String>,
    },
    /// A worker's process has ended, which nobody had asked for, or requests were inside it when it did.
    Ended {
        /// The worker.
        worker: SocketAddr,
        /// How, and which process, in words.
        text: String,
        /// Connections that were open in it, and are cut.
        cut: usize,
        /// Their callers, the first few: "127.0.0.1:43210, open for 1.3 s".
        callers: Vec<String>,
    },
    /// Another daemon has taken the roll up.
    Resumed {
        /// What it goes on with, in words.
        text: String,
    },
    /// The roll waits for its journal to be written, or goes on after that.
    Journal {
        /// What keeps the journal from being written; `None`: it is written again.
        trouble: Option<String>,
    },
    /// Events before the next one are not in the daemon's memory any more. Its number is that of the last of them.
    Skipped {
        /// How many.
        events: u64,
    },
    /// A stop after the batch in hand was asked for.
    StopAsked {
        /// Who asked.
        by: String,
    },
    /// The roll has ended; always the last.
    Finished {
        /// How.
        result: Exit,
        /// In a sentence: which worker and why, where it did not go well.
        text: String,
        /// Workers now on the new version (or restarted).
        changed: usize,
        /// Workers that failed and are out.
        failed: Vec<SocketAddr>,
        /// Duration, seconds.
        seconds: f64,
    },
}
