//! What a host does about its fleet's state: a pure function of that, and of how things stand on the host.

use std::collections::BTreeSet;

use super::{
    paths::Mark,
    state::{FORMAT, FleetState, Phase, Release},
};

use crate::version::Version;

/// How a service stands on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    /// The highest epoch that this host has acted upon: lower ones are refused.
    pub epoch: u64,
    /// What the pool that is current runs, if all of it says the same.
    pub current: Option<Release>,
    /// What the other pool runs, if it is up.
    pub other: Option<Release>,
    /// What is under way.
    pub stage: Stage,
    /// How the last order of the fleet ended here, by its epoch; `Err`: why it failed, or was stopped.
    pub ended: Option<(u64, Result<(), String>)>,
    /// Why the new version is ill, while it bakes.
    pub ill: Option<String>,
}

/// What is under way for a service on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// Nothing.
    Idle,
    /// A roll or deploy that is not the fleet's; its id.
    Busy(String),
    /// The other pool is being started, warmed, or asked its gate.
    Starting(Task),
    /// It is ready, both lanes are open, and it waits to be told to flip.
    Holding(Task),
    /// The kernel flips at this instant, milliseconds since 1970.
    Armed(Task, u64),
    /// It has flipped; both pools stand, until it is told. Since, milliseconds since 1970.
    Baking(Task, u64),
    /// It was turned back; both pools stand, until it is told.
    Lingering(Task),
    /// It is ending: a pool is being retired.
    Ending(Task),
    /// The workers are being restarted for the fleet.
    Rolling(u64),
}

/// What of a deploy on this host is the fleet's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// The epoch that it is for.
    pub epoch: u64,
    /// What it deploys.
    pub to: Release,
}

/// What a host is to do next. It is done, and then asked again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Goal {
    /// Nothing: it is as the fleet wants it, or the fleet wants nothing.
    Nothing,
    /// Wait for what is under way here.
    Wait,
    /// Begin a deploy.
    Begin(Task),
    /// Restart the workers.
    Roll {
        /// For this epoch.
        epoch: u64,
        /// The version aimed at; `None`: as they are.
        to: Option<Version>,
    },
    /// Say something to the fleet, once.
    Say(Mark),
    /// Confirm, if the state is still the one that was read; then flip at this instant, milliseconds since 1970.
    Confirm(u64),
    /// Flip at this instant, milliseconds since 1970; at once, if that is past.
    Flip(u64),
    /// Take back a flip that is armed, or is about to be; both pools stand.
    Disarm,
    /// Stop the deploy, and take back a flip that is armed.
    Stop,
    /// Make the old pool current again; both stand.
    Return,
    /// End the bake: the pool that is not current is retired.
    End,
}

/// A host's view of itself.
#[derive(Debug, Clone, Copy)]
pub struct Me<'a> {
    /// Its name.
    pub host: &'a str,
    /// What it has said of the state's epoch.
    pub said: &'a BTreeSet<Mark>,
    /// Its clock, milliseconds since 1970.
    pub now_ms: u64,
    /// For how long nobody has been able to say what its current pool runs, milliseconds; 0: it is known.
    pub unknown_ms: u64,
}

/// A pool of which nobody can say what it runs is given up after so long, milliseconds: a worker that has crashed comes back,
/// a host that boots warms its workers.
const UNKNOWN_MS: u64 = 90_000;
/// A flip that is armed for later than this, where it is due, was so before the clock was set; milliseconds.
const FAR_MS: u64 = 2000;

/// Nobody confirms later than this before the flip, milliseconds: the kernel is armed 100 ms before it, and a cancel must
/// have time to be heard.
pub const CONFIRM_BEFORE_MS: u64 = 150;

/// What this host is to do.
#[must_use]
pub fn goal(state: &FleetState, me: &Me<'_>, local: &Local) -> Goal {
    if state.format > FORMAT || state.epoch < local.epoch {
        return Goal::Nothing;
    }
    match state.phase {
        Phase::Idle | Phase::Retire => settle(state, me, local),
        Phase::Prepare if state.expects(me.host) => prepare(state, me, local),
        // Not an epoch of its own: that one is the order's.
        Phase::Prepare => converge(state.active.as_ref(), state.epoch.saturating_sub(1), me, local),
        Phase::Go => go(state, me, local),
        Phase::Cancel => cancel(state, me, local),
        Phase::Flipped => flipped(state, me, local),
        Phase::Back => back(state, me, local),
        Phase::Roll => roll(state, me, local),
    }
}

/// Whether this host may be in the server set of those that serve; `None`: that cannot be told just now, and it stays what it
/// is.
#[must_use]
pub fn serves(state: &FleetState, host: &str, local: &Local) -> Option<bool> {
    match (state.phase, &state.active) {
        (_, None) | (Phase::Roll, _) => Some(true),
        (Phase::Idle | Phase::Prepare | Phase::Retire, _) => {
            local.current.as_ref().map(|current| state.active.as_ref() == Some(current))
        }
        // Whoever knows one lane only would mix pages.
        _ => Some(state.has_member(host) && has_both(state, local)),
    }
}

/// Whether both versions stand here.
fn has_both(state: &FleetState, local: &Local) -> bool {
    let (Stage::Holding(task) | Stage::Armed(task, _) | Stage::Baking(task, _) | Stage::Lingering(task)) = &local.stage
    else {
        return false;
    };
    let is_of_it = |release: &Option<Release>| release.as_ref() == Some(&task.to);
    is_of_it(&state.active) || is_of_it(&state.other)
}

impl Me<'_> {
    fn say(&self, mark: Mark) -> Goal {
        if self.said.contains(&mark) { Goal::Nothing } else { Goal::Say(mark) }
    }
}

impl Local {
    /// Why the order of an epoch has failed here; `None`: it has not.
    fn failed(&self, epoch: u64) -> Option<&str> {
        match &self.ended {
            Some((of, Err(why))) if *of == epoch => Some(why),
            _ => None,
        }
    }
}

fn prepare(state: &FleetState, me: &Me<'_>, local: &Local) -> Goal {
    let (Some(to), epoch) = (&state.other, state.epoch) else { return Goal::Nothing };
    match &local.stage {
        Stage::Starting(task) if task.epoch == epoch => Goal::Wait,
        Stage::Holding(task) if task.epoch == epoch => me.say(Mark::Ready),
        Stage::Idle if local.failed(epoch).is_some() => me.say(Mark::Failed),
        Stage::Idle if state.active.is_none() || local.current == state.active => {
            Goal::Begin(Task { epoch, to: to.clone() })
        }
        // First what it has missed.
        _ => converge(state.active.as_ref(), epoch.saturating_sub(1), me, local),
    }
}

fn go(state: &FleetState, me: &Me<'_>, local: &Local) -> Goal {
    let epoch = state.epoch;
    match &local.stage {
        Stage::Holding(task) if task.epoch == epoch => {
            let (Some(at_ms), true) = (state.flip_at_ms, state.has_member(me.host)) else { return me.say(Mark::Ready) };
            if me.said.contains(&Mark::Confirmed) {
                // By a daemon that was killed before it had armed the kernel.
                Goal::Flip(at_ms)
            } else if me.now_ms.saturating_add(CONFIRM_BEFORE_MS) <= at_ms {
                Goal::Confirm(at_ms)
            } else {
                me.say(Mark::Ready)
            }
        }
        Stage::Baking(task, _) if task.epoch == epoch => me.say(Mark::Flipped),
        Stage::Idle if local.failed(epoch).is_some() => me.say(Mark::Failed),
        _ => Goal::Wait,
    }
}

fn cancel(state: &FleetState, me: &Me<'_>, local: &Local) -> Goal {
    let epoch = state.epoch;
    match &local.stage {
        Stage::Armed(task, _) if task.epoch == epoch => Goal::Disarm,
        // Nothing is armed, nor about to be. It goes on serving both: somebody may have flipped, whose pages come here, too.
        Stage::Holding(task) if task.epoch == epoch && me.said.contains(&Mark::Confirmed) => me.say(Mark::Disarmed),
        Stage::Baking(task, _) if task.epoch == epoch => me.say(Mark::Flipped),
        // The deploy is over: nothing can flip any more.
        Stage::Ending(_) | Stage::Idle if me.said.contains(&Mark::Confirmed) && local.current != state.other => {
            me.say(Mark::Disarmed)
        }
        _ => Goal::Wait,
    }
}

fn flipped(state: &FleetState, me: &Me<'_>, local: &Local) -> Goal {
    let epoch = state.epoch;
    match &local.stage {
        Stage::Baking(task, _) if task.epoch == epoch && !me.said.contains(&Mark::Flipped) => Goal::Say(Mark::Flipped),
        Stage::Baking(task, _) if task.epoch == epoch && local.ill.is_some() => me.say(Mark::Failed),
        Stage::Baking(task, _) if task.epoch == epoch => Goal::Nothing,
        _ => converge(state.active.as_ref(), epoch, me, local),
    }
}

fn back(state: &FleetState, me: &Me<'_>, local: &Local) -> Goal {
    match &local.stage {
        Stage::Lingering(_) if local.current == state.active => me.say(Mark::Back),
        // It has not flipped, and serves the pages of those that had.
        Stage::Holding(task) if state.other.as_ref() == Some(&task.to) => me.say(Mark::Back),
        Stage::Armed(task, _) if state.other.as_ref() == Some(&task.to) => Goal::Disarm,
        Stage::Idle if local.current == state.active => me.say(Mark::Back),
        _ => converge(state.active.as_ref(), state.epoch, me, local),
    }
}

fn settle(state: &FleetState, me: &Me<'_>, local: &Local) -> Goal {
    let goal = converge(state.active.as_ref(), state.epoch, me, local);
    if goal == Goal::Nothing && state.phase == Phase::Retire { me.say(Mark::Retired) } else { goal }
}

fn roll(state: &FleetState, me: &Me<'_>, local: &Local) -> Goal {
    let (epoch, is_turn) = (state.epoch, state.turn.iter().any(|host| host == me.host));
    if state.wanted.is_some() {
        return match &local.stage {
            Stage::Rolling(of) if *of == epoch => Goal::Stop,
            // Whatever is under way is not this roll, which does not begin any more.
            _ if is_turn => me.say(Mark::Rolled),
            _ => Goal::Nothing,
        };
    }
    match &local.stage {
        Stage::Idle if is_turn && local.ended.as_ref().is_some_and(|(of, _)| *of == epoch) => me.say(Mark::Rolled),
        Stage::Idle if is_turn => Goal::Roll { epoch, to: state.order.to.clone() },
        Stage::Idle => Goal::Nothing,
        Stage::Rolling(_) | Stage::Busy(_) => Goal::Wait,
        _ => converge(state.active.as_ref(), epoch, me, local),
    }
}

/// On the way to what the fleet serves, from wherever it is.
fn converge(target: Option<&Release>, epoch: u64, me: &Me<'_>, local: &Local) -> Goal {
    let is_target = |task: &Task| target == Some(&task.to);
    match &local.stage {
        Stage::Idle => match target {
            Some(_) if local.current.is_none() && me.unknown_ms < UNKNOWN_MS => Goal::Wait,
            Some(to) if local.current.as_ref() == Some(to) => Goal::Nothing,
            // Of one pool.
            Some(to) if to.lane == 0 => Goal::Roll { epoch, to: Some(to.version.clone()) },
            Some(to) => Goal::Begin(Task { epoch, to: to.clone() }),
            None => Goal::Nothing,
        },
        Stage::Busy(_) | Stage::Rolling(_) | Stage::Ending(_) => Goal::Wait,
        Stage::Holding(task) if is_target(task) => Goal::Flip(me.now_ms),
        // By a clock that was set since.
        Stage::Armed(task, at_ms) if is_target(task) && *at_ms > me.now_ms.saturating_add(FAR_MS) => Goal::Disarm,
        Stage::Starting(task) | Stage::Armed(task, _) if is_target(task) => Goal::Wait,
        Stage::Starting(_) | Stage::Holding(_) | Stage::Armed(..) => Goal::Stop,
        // Also where it would have to go back and cannot: the next deploy brings it there.
        Stage::Baking(task, _) if is_target(task) || local.other.as_ref() != target => Goal::End,
        Stage::Baking(..) => Goal::Return,
        Stage::Lingering(_) => Goal::End,
    }
}
