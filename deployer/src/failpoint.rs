//! Failpoints: the places in a roll where a test may stop the world, to kill, fill or cut something there.
//!
//! Only the cargo feature `failpoints` makes them more than names: `DEPLOYER_FAILPOINT=NAME[@PORT]` chooses one, and
//! the task that reaches it first makes the file `reached` in `DEPLOYER_FAILPOINT_DIR` and waits there for a file `go`, or
//! panics with `DEPLOYER_FAILPOINT_DO=panic`. Where the kernel is written to, it is an error that comes back.

use std::{io, net::SocketAddr};

macro_rules! points {
    ($($(#[$doc:meta])* $point:ident = $name:literal,)+) => {
        /// A place in a roll.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Point { $($(#[$doc])* $point,)+ }

        impl Point {
            /// All of them, in the order in which a roll comes to them.
            pub const ALL: &[Self] = &[$(Self::$point,)+];

            /// Its name, for the environment.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$point => $name,)+ }
            }
        }
    };
}

points! {
    /// The roll is in the journal, and nothing is done yet.
    Begun = "begun",
    /// The switch is to be written down.
    SwitchBefore = "switch.before",
    /// It is written down, and the command has not been run.
    SwitchJournaled = "switch.journaled",
    /// The command has been run, and what came of it is not written down.
    SwitchDone = "switch.done",
    /// A batch has begun, and none of its workers.
    Batch = "batch",
    /// A drain is to be written down.
    DrainingBefore = "draining.before",
    /// It is written down, and the worker is still up.
    DrainingJournaled = "draining.journaled",
    /// Nothing new goes to the worker; it is not known to be empty.
    DrainingPublished = "draining.published",
    /// It is empty, and nothing selects it any more.
    Drained = "drained",
    /// The stop is written down, and not asked for.
    StoppingJournaled = "stopping.journaled",
    /// The process is gone.
    Stopped = "stopped",
    /// The start is written down, and not asked for.
    StartingJournaled = "starting.journaled",
    /// The process listens.
    Listening = "listening",
    /// The warm-up is written down, and the word says stopping.
    WarmingJournaled = "warming.journaled",
    /// The word says cold.
    Warming = "warming",
    /// It is warm, and the word says cold.
    Warm = "warm",
    /// The word says up, and that is not written down.
    Up = "up",
    /// What came of the worker is written down.
    Settled = "settled",
    /// The worker is to fail.
    FailingBefore = "failing.before",
    /// Its failure is written down, and the word says otherwise.
    FailingJournaled = "failing.journaled",
    /// The word says failed.
    Failed = "failed",
    /// A worker that was not stopped is to be put back.
    KeepingBefore = "keeping.before",
    /// It is back, and that is not written down.
    Kept = "kept",
    /// All of a batch are through, and the machine has not heard of it.
    BatchDone = "batch.done",
    /// It has, and that is written down.
    BatchJournaled = "batch.journaled",
    /// As the switch: to be written down.
    UnswitchBefore = "unswitch.before",
    /// Written down, not run.
    UnswitchJournaled = "unswitch.journaled",
    /// Run, not written down.
    UnswitchDone = "unswitch.done",
    /// A flip is to be written down.
    FlipBefore = "flip.before",
    /// It is written down, and not armed.
    FlipJournaled = "flip.journaled",
    /// It is armed, and its instant is to come.
    FlipArmed = "flip.armed",
    /// It has happened, and that is not written down.
    Flipped = "flipped",
    /// It is written down, and the new pool bakes.
    FlipDone = "flip.done",
    /// A deploy was turned back, and that is written down.
    Returned = "returned",
    /// A host is to confirm a flip of its fleet.
    FleetConfirm = "fleet.confirm",
    /// It has confirmed, and its kernel is not armed.
    FleetConfirmed = "fleet.confirmed",
    /// The roll is to end.
    FinishBefore = "finish.before",
    /// Its end has been told, and the journal still holds it.
    Finished = "finished",
    /// The journal has dropped it.
    Forgotten = "forgotten",
}

/// Stops here, where a test wants that.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub async fn reach(_: Point, _: Option<SocketAddr>) {}

/// The same where a background task of the daemon begins: `task.NAME`.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub async fn task(_: &'static str) {}

/// The last write of a configuration into the kernel's tables, `tables`, fails where a test wants that.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn tables() -> io::Result<()> {
    Ok(())
}

/// The last write of a configuration into the kernel's tables, `tables`, fails where a test wants that.
///
/// # Errors
/// Where a test wants that.
#[cfg(feature = "failpoints")]
pub fn tables() -> io::Result<()> {
    if comes_to("tables", None).is_some() { Err(io::Error::other("failpoint tables")) } else { Ok(()) }
}

/// Stops here, where a test wants that.
#[cfg(feature = "failpoints")]
pub async fn reach(point: Point, worker: Option<SocketAddr>) {
    stop_at(point.name(), worker).await;
}

/// The same where a background task of the daemon begins: `task.NAME`.
#[cfg(feature = "failpoints")]
pub async fn task(name: &'static str) {
    stop_at(&format!("task.{name}"), None).await;
}

#[cfg(feature = "failpoints")]
async fn stop_at(point: &str, worker: Option<SocketAddr>) {
    let Some(dir) = comes_to(point, worker) else { return };
    assert!(std::env::var("DEPLOYER_FAILPOINT_DO").as_deref() != Ok("panic"), "failpoint {point}");
    while !dir.join("go").exists() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

/// The failpoint's directory, if this is the place that the test has chosen, and comes to it for the first time.
#[cfg(feature = "failpoints")]
fn comes_to(point: &str, worker: Option<SocketAddr>) -> Option<std::path::PathBuf> {
    let wanted = std::env::var("DEPLOYER_FAILPOINT").ok()?;
    let dir = std::path::PathBuf::from(std::env::var_os("DEPLOYER_FAILPOINT_DIR")?);
    let (name, port) = wanted.split_once('@').map_or((&*wanted, None), |(name, port)| (name, Some(port)));
    let elsewhere = port.is_some_and(|port| worker.is_none_or(|at| at.port().to_string() != port));
    if name != point || elsewhere {
        return None;
    }
    // The task that makes the file is the first; all others pass.
    std::fs::File::create_new(dir.join("reached")).ok()?;
    tracing::warn!(point = name, worker = ?worker, "failpoint reached");
    Some(dir)
}
