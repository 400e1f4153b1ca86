//! What happened on a host, as `deployer events` tells it: each change once, with what it was before and by whom.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{Exit, Phase, TestResult};

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Goes on over restarts of the daemon, without gaps but where lines could not be kept ([`Change::Lost`]).
    pub seq: u64,
    /// Milliseconds since 1970.
    pub time_ms: u64,
    /// By whom: "uid 0 (pid 4711)", "roll web-1718000000000", "the kernel", "the watch", "the daemon", "SIGHUP".
    pub by: String,
    /// The service that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The worker that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<SocketAddr>,
    /// The roll that it is part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roll: Option<String>,
    /// What.
    #[serde(flatten)]
    pub change: Change,
}

/// What happened. Where `was` is `None`, nothing was known of it before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Change {
    /// A daemon has begun.
    Started {
        /// Its version.
        version: String,
        /// Its process id.
        pid: u32,
        /// The one before, and how it ended: "0.1.0 (pid 4711), stopped".
        was: Option<String>,
    },
    /// The daemon has been asked to stop, and does. The programs go on steering.
    Stopped {
        /// Its version.
        version: String,
        /// Its process id.
        pid: u32,
    },
    /// A service has been configured otherwise.
    Service {
        /// How; `None`: it is no longer configured.
        now: Option<Box<Configured>>,
        /// How it was.
        was: Option<Box<Configured>>,
    },
    /// The configuration was read again.
    Reloaded {
        /// Why it is not in force; `None`: it is.
        error: Option<String>,
    },
    /// A worker has come into another phase, or the reason for the one it is in has changed.
    Phase {
        /// The phase.
        phase: Phase,
        /// The phase before.
        was: Option<Phase>,
        /// Why, or the version it now runs. May be empty.
        reason: String,
        /// What was the reason, where the phase is the same.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason_was: Option<String>,
    },
    /// A worker's process has ended, which nobody had asked for, or connections were open in it when it did.
    ProcessEnded {
        /// How, and which process, in words.
        text: String,
        /// Connections that were open in it, and are cut.
        cut: usize,
        /// Their callers, the first few: "127.0.0.1:43210, open for 1.3 s".
        callers: Vec<String>,
    },
    /// Connections go on to a worker although it is drained, since too few others are up; or no longer.
    LetIn {
        /// What is short: "1 other is up, and min_up = 2"; `None`: no longer.
        now: Option<String>,
        /// What was.
        was: Option<String>,
    },
    /// A service, or every one, is bypassed, or steered again.
    Bypass {
        /// It is bypassed.
        on: bool,
        /// It was.
        was: bool,
    },
    /// Everything was taken out of the kernel.
    Detached,
    /// A roll has begun.
    RollBegun {
        /// The version aimed at.
        to: Option<String>,
        /// The version that the workers said they run.
        was: Option<String>,
        /// So many workers are to be restarted.
        workers: usize,
        /// In so many batches.
        batches: usize,
    },
    /// A roll has run a command: `switch` or `unswitch`.
    RollCommand {
        /// `switch` or `unswitch`.
        which: String,
        /// Its words.
        argv: Vec<String>,
        /// Why it failed; `None`: it succeeded.
        error: Option<String>,
    },
    /// A deploy's gate was asked before the flip.
    Gate {
        /// Why it does not pass; `None`: it does.
        error: Option<String>,
    },
    /// A roll waits for a barrier of others.
    BarrierAwaited {
        /// Its path in ZooKeeper.
        barrier: String,
    },
    /// It has come through its barriers.
    BarrierPassed,
    /// A flip is armed.
    FlipArmed {
        /// For this instant, milliseconds since 1970.
        at_ms: u64,
        /// The lane that will be current.
        lane: u8,
    },
    /// It has been taken back before its instant.
    FlipDisarmed,
    /// Another pool is current.
    Flipped {
        /// Since, milliseconds since 1970.
        at_ms: u64,
        /// Its lane.
        lane: u8,
        /// What it runs.
        version: Option<String>,
    },
    /// A deploy was turned back: the former pool is current again.
    FlippedBack {
        /// Since, milliseconds since 1970.
        at_ms: u64,
        /// Its lane.
        lane: u8,
        /// Why.
        why: String,
    },
    /// The new version of a deploy that is the fleet's is ill.
    DeployIll {
        /// Why.
        why: String,
    },
    /// A flip that is held, a rollback, or another deploy in place of this one was asked for.
    DeployAsked {
        /// `flip`, `rollback`, `supersede`.
        what: String,
    },
    /// A stop after the batch in hand was asked for.
    RollStopAsked,
    /// This daemon goes on with a roll that another has begun.
    RollResumed {
        /// With what, in words.
        text: String,
    },
    /// A roll has ended.
    RollEnded {
        /// How.
        result: Exit,
        /// In a sentence.
        text: String,
        /// Workers now on the new version (or restarted).
        changed: usize,
        /// Workers that failed and are out.
        failed: Vec<SocketAddr>,
        /// Duration, seconds.
        seconds: f64,
    },
    /// There is a connection to what the fleet agrees through.
    FleetConnected {
        /// `zookeeper zk1:2181/deployer`
        coordinator: String,
    },
    /// The connection was lost. What is served stays as it is.
    FleetLost {
        /// Why.
        why: String,
    },
    /// An order of the fleet has come into another phase, or is tried again.
    FleetPhase {
        /// The order's epoch.
        epoch: u64,
        /// The phase: "prepare", "go", "cancel", "flipped", "back", "retire", "roll", "idle".
        phase: String,
        /// What it is about, in words.
        text: String,
    },
    /// A host of the fleet: "enabled", "drained", "forgotten", "there", "gone".
    FleetHost {
        /// Its name.
        host: String,
        /// What it is now.
        what: String,
    },
    /// Something that an operator must know has appeared, or has gone: what `deployer status` lists as trouble.
    Trouble {
        /// What does not work as it should.
        text: String,
        /// It is there; it was not before.
        on: bool,
    },
    /// The self-test has another result.
    SelfTest {
        /// The result.
        result: TestResult,
        /// The one before.
        was: Option<TestResult>,
        /// What is wrong, or why it could not be tested; empty where all is well.
        detail: String,
    },
    /// Lines of this history could not be written (the disk was full), and are not in the file.
    Lost {
        /// So many.
        lines: u64,
    },
}

/// How a service is configured, as far as the history tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configured {
    /// `enforce` or `observe`.
    pub mode: String,
    /// `steer` or `refuse`.
    pub policy: String,
    /// So many workers stay in rotation.
    pub min_up: usize,
    /// The service address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<SocketAddr>,
    /// The workers: "127.0.0.1:8000-8003 127.0.0.1:8010".
    pub workers: String,
    /// The workers of its second pool; empty: it has one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub second: String,
    /// Where spares may listen; empty: there are none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub spares: String,
}
