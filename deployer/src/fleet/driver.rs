//! What becomes of a fleet's state: pure functions of it and of what the hosts say. Whoever drives calls [`drive`] again and
//! again, and writes down what it says by compare-and-set; so any daemon can go on where another has ended.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    paths::Mark,
    sound,
    state::{Ended, FORMAT, FleetState, Order, Outcome, Phase, Release, Wanted, contains},
};

/// Hosts that are not ready are waited for so long, once there are enough others; milliseconds.
const PATIENCE_MS: u64 = 20_000;
/// So often hosts are told to flip, if nobody confirms.
const TRIES: u32 = 5;
/// Enough hosts must be ready within this time, milliseconds.
const PREPARE_WITHIN_MS: u64 = 30 * 60_000;
/// A flip is looked at so long after its instant, milliseconds: as much as clocks may differ.
const SETTLE_MS: u64 = 500;
/// A host that has confirmed, and is silent for so long after its instant, counts as flipped; milliseconds.
const SILENT_MS: u64 = 5_000;
/// Hosts that are there and do not get on are waited for so long, milliseconds.
const LAGGARDS_MS: u64 = 120_000;
/// A host that is not there may come back for so long in its turn, milliseconds.
pub(super) const GONE_MS: u64 = 60_000;

/// What a host says.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Said {
    /// Why it failed; of [`Mark::Rolled`], what was wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// When it flipped, milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_ms: Option<u64>,
    /// Of [`Mark::Ready`]: whether its clock is synchronised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub synchronised: Option<bool>,
}

/// What is seen of the fleet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// The roster: whether a host is enabled.
    pub roster: BTreeMap<String, bool>,
    /// Hosts that are there.
    pub alive: BTreeSet<String>,
    /// What hosts say of the state's epoch.
    pub marks: BTreeMap<Mark, BTreeMap<String, Said>>,
    /// The order's barrier is held by somebody.
    pub barrier_held: bool,
    /// Since when enough hosts are ready, milliseconds since 1970.
    pub quorum_since_ms: Option<u64>,
    /// Since when an abort is wanted, as the driver has seen it; milliseconds since 1970.
    pub wanted_since_ms: Option<u64>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing yet.
    Wait {
        /// What is waited for.
        why: String,
        /// Whom it is waited for.
        hosts: Vec<String>,
    },
    /// The state changes.
    Become {
        /// To this.
        state: Box<FleetState>,
        /// In words.
        text: String,
    },
}

/// The next step of the order in hand.
#[must_use]
pub fn drive(state: &FleetState, seen: &Seen, now_ms: u64) -> Step {
    match state.phase {
        Phase::Idle => wait("nothing is under way", []),
        Phase::Prepare => prepare(state, seen, now_ms),
        Phase::Go => go(state, seen, now_ms),
        Phase::Cancel => cancel(state, seen, now_ms),
        Phase::Flipped => flipped(state, seen, now_ms),
        Phase::Back => back(state, seen, now_ms),
        Phase::Retire => retire(state, seen, now_ms),
        Phase::Roll => super::turns::roll(state, seen, now_ms),
    }
}

impl Seen {
    /// Who says this.
    pub fn who(&self, mark: Mark) -> impl Iterator<Item = &String> {
        self.marks.get(&mark).into_iter().flat_map(BTreeMap::keys)
    }

    /// Whether a host says this.
    #[must_use]
    pub fn says(&self, host: &str, mark: Mark) -> bool {
        self.marks.get(&mark).is_some_and(|who| who.contains_key(host))
    }

    /// Hosts expected that are ready, and whose clocks will do.
    #[must_use]
    pub fn ready(&self, state: &FleetState) -> Vec<String> {
        let will_do = |said: &Said| state.order.allow_unsynchronised || said.synchronised == Some(true);
        let all = self.marks.get(&Mark::Ready).into_iter().flatten();
        let all = all.filter(|(host, _)| !self.says(host, Mark::Failed));
        all.filter(|(host, said)| state.expects(host) && will_do(said)).map(|(host, _)| host.clone()).collect()
    }

    /// Hosts expected that cannot do it, and why.
    fn unfit(&self, state: &FleetState) -> BTreeMap<String, String> {
        let failed = self.marks.get(&Mark::Failed).into_iter().flatten();
        let failed = failed.map(|(host, said)| (host.clone(), said.why.clone().unwrap_or_else(|| "failed".to_owned())));
        let ready = self.marks.get(&Mark::Ready).into_iter().flatten();
        let unsure = ready.filter(|(_, said)| !state.order.allow_unsynchronised && said.synchronised != Some(true));
        let unsure = unsure.map(|(host, _)| (host.clone(), UNSYNCHRONISED.to_owned()));
        unsure.chain(failed).filter(|(host, _)| state.expects(host)).collect()
    }

    /// When the last flip was, milliseconds since 1970: old pages may be as young as that. Nobody has flipped before the
    /// decision but at its instant.
    fn last_flip(&self, state: &FleetState) -> u64 {
        let late = self.marks.get(&Mark::Flipped).into_iter().flatten().filter_map(|(_, said)| said.at_ms).max();
        let decided = state.since_ms.saturating_sub(2 * SETTLE_MS);
        state
            .flip_at_ms
            .unwrap_or(0)
            .max(decided)
            .max(late.unwrap_or(0).min(state.since_ms.saturating_add(LAGGARDS_MS)))
    }

    /// Those of these hosts that are there and do not say this.
    fn open<'a>(&self, hosts: &'a [String], mark: Mark) -> Vec<&'a String> {
        hosts.iter().filter(|host| self.alive.contains(*host) && !self.says(host, mark)).collect()
    }
}

const UNSYNCHRONISED: &str = "its clock is not synchronised (--allow-unsynchronised has it flip all the same)";

fn wait<'a>(why: impl Into<String>, hosts: impl IntoIterator<Item = &'a String>) -> Step {
    Step::Wait { why: why.into(), hosts: hosts.into_iter().cloned().collect() }
}

pub(super) fn enter(state: &FleetState, phase: Phase, now_ms: u64, text: impl Into<String>) -> (FleetState, String) {
    let said = text.into();
    (FleetState { phase, since_ms: now_ms, said: said.clone(), ..state.clone() }, said)
}

pub(super) fn become_(state: FleetState, text: String) -> Step {
    Step::Become { state: Box::new(state), text }
}

/// The order is over.
pub(super) fn over(state: &FleetState, result: Ended, now_ms: u64, text: String) -> Step {
    let (mut next, text) = enter(state, Phase::Idle, now_ms, text);
    next.other = None;
    next.wanted = None;
    next.members.clear();
    next.turn.clear();
    next.outcome = Some(Outcome { epoch: state.epoch, result, text: text.clone(), at_ms: now_ms });
    become_(next, text)
}

fn prepare(state: &FleetState, seen: &Seen, now_ms: u64) -> Step {
    let (ready, unfit, needed) = (seen.ready(state), seen.unfit(state), state.needed());
    let total = state.expected.len();
    if let Some(wanted) = &state.wanted {
        return over(state, Ended::Aborted, now_ms, format!("aborted by {}; {UNTOUCHED}", wanted.by));
    }
    if total.saturating_sub(unfit.len()) < needed {
        let why: Vec<_> = unfit.iter().map(|(host, why)| format!("{host}: {why}")).collect();
        let text = format!("aborted: {needed} of {total} hosts are needed; {}; {UNTOUCHED}", why.join("; "));
        return over(state, Ended::Aborted, now_ms, text);
    }
    if ready.len() < needed {
        if now_ms > state.since_ms.saturating_add(PREPARE_WITHIN_MS) {
            let text = format!("aborted: {} of {needed} hosts ready after half an hour; {UNTOUCHED}", ready.len());
            return over(state, Ended::Aborted, now_ms, text);
        }
        return not_ready(state, &ready, &unfit);
    }
    let is_patient = seen.quorum_since_ms.is_none_or(|since| now_ms < since.saturating_add(PATIENCE_MS));
    if ready.len() + unfit.len() < total && is_patient {
        return not_ready(state, &ready, &unfit);
    }
    if seen.barrier_held {
        let path = state.order.barrier.as_deref().unwrap_or_default();
        return wait(format!("the barrier {path} is held"), []);
    }
    flip_together(state, ready, now_ms)
}

fn not_ready(state: &FleetState, ready: &[String], unfit: &BTreeMap<String, String>) -> Step {
    let open = state.expected.iter().filter(|host| !contains(ready, host) && !unfit.contains_key(*host));
    let (ready, total, needed) = (ready.len(), state.expected.len(), state.needed());
    wait(format!("{ready} of {total} hosts ready, {needed} needed"), open)
}

const UNTOUCHED: &str = "nobody has met the new version";

/// GO: these hosts flip together.
fn flip_together(state: &FleetState, members: Vec<String>, now_ms: u64) -> Step {
    let left: Vec<_> = state.expected.iter().filter(|host| !contains(&members, host)).cloned().collect();
    let text = match left.as_slice() {
        [] => format!("GO: {} hosts flip in {} ms", members.len(), state.order.lead_ms),
        left => format!("GO: {} hosts flip in {} ms, without {}", members.len(), state.order.lead_ms, left.join(", ")),
    };
    let (next, text) = enter(state, Phase::Go, now_ms, text);
    let (flip_at_ms, tries) = (Some(now_ms.saturating_add(state.order.lead_ms)), state.tries.saturating_add(1));
    become_(FleetState { members, flip_at_ms, tries, ..next }, text)
}

fn go(state: &FleetState, seen: &Seen, now_ms: u64) -> Step {
    let at_ms = state.flip_at_ms.unwrap_or(state.since_ms);
    if let Some(wanted) = &state.wanted {
        let (mut next, text) = enter(state, Phase::Cancel, now_ms, format!("to be aborted, by {}", wanted.by));
        next.why = text.clone();
        return become_(next, text);
    }
    let open = seen.open(&state.members, Mark::Flipped);
    let has_everybody = state.members.iter().all(|host| seen.says(host, Mark::Flipped));
    if now_ms < at_ms.saturating_add(SETTLE_MS) && !has_everybody {
        let (confirmed, total) = (seen.who(Mark::Confirmed).count(), state.members.len());
        return wait(format!("{confirmed} of {total} hosts have confirmed"), open);
    }
    if seen.who(Mark::Confirmed).next().is_some() {
        let (mut next, text) = enter(state, Phase::Flipped, now_ms, "flipped; both versions stand side by side");
        std::mem::swap(&mut next.active, &mut next.other);
        return become_(next, text);
    }
    let ready = seen.ready(state);
    if state.tries >= TRIES || now_ms > state.since_ms.saturating_add(PREPARE_WITHIN_MS) {
        let why = format!(
            "nobody has confirmed, {} times; are the hosts' clocks right, and that of the driver?",
            state.tries
        );
        let (mut next, text) = enter(state, Phase::Cancel, now_ms, why);
        next.why = text.clone();
        return become_(next, text);
    }
    if ready.len() >= state.needed() {
        return flip_together(state, ready, now_ms);
    }
    wait("nobody has confirmed, and too few hosts are ready for another try", state.members.iter())
}

fn cancel(state: &FleetState, seen: &Seen, now_ms: u64) -> Step {
    let at_ms = state.flip_at_ms.unwrap_or(state.since_ms);
    let is_open = |host: &&String| !seen.says(host, Mark::Disarmed) && !seen.says(host, Mark::Flipped);
    let open: Vec<_> = seen.who(Mark::Confirmed).filter(is_open).collect();
    if let Some(host) = seen.who(Mark::Flipped).next() {
        return return_(state, now_ms, format!("{}; too late, {host} has flipped", state.why));
    }
    if open.is_empty() {
        return over(state, Ended::Aborted, now_ms, format!("{}: aborted; {UNTOUCHED}", state.why));
    }
    if now_ms > at_ms.saturating_add(SETTLE_MS + SILENT_MS) {
        return return_(state, now_ms, format!("{}; {} has confirmed, and is silent", state.why, open[0]));
    }
    wait("who has confirmed takes its flip back", open)
}

/// Everybody returns to the old version. Epoch and active change together: whoever comes back later finds it.
fn return_(state: &FleetState, now_ms: u64, why: String) -> Step {
    let (mut next, text) = enter(state, Phase::Back, now_ms, format!("{why}; the old version serves again"));
    next.epoch = next.epoch.saturating_add(1);
    next.wanted = None;
    next.why = why;
    next.flip_at_ms = Some(now_ms);
    if state.phase == Phase::Flipped {
        std::mem::swap(&mut next.active, &mut next.other);
    }
    become_(next, text)
}

fn flipped(state: &FleetState, seen: &Seen, now_ms: u64) -> Step {
    if let Some(wanted) = &state.wanted {
        return return_(state, now_ms, format!("rolled back by {}", wanted.by));
    }
    let ill: Vec<_> = seen.unfit(state).into_iter().filter(|(host, _)| state.has_member(host)).collect();
    if let Some((host, why)) = ill.first().filter(|_| ill.len() > state.expected.len().saturating_sub(state.needed())) {
        return return_(
            state,
            now_ms,
            format!("{} of {} hosts are ill; {host}: {why}", ill.len(), state.members.len()),
        );
    }
    let until = seen.last_flip(state).saturating_add(state.order.bake_ms);
    let open = seen.open(&state.members, Mark::Flipped);
    if now_ms < until || (!open.is_empty() && now_ms < until.saturating_add(LAGGARDS_MS)) {
        let (open_count, total) = (open.len(), state.members.len());
        let why = match open_count {
            0 => "both versions stand side by side".to_owned(),
            open => format!("{} of {total} hosts have flipped", total - open),
        };
        return wait(why, open);
    }
    let (mut next, text) = enter(state, Phase::Retire, now_ms, "the old version is retired");
    next.former = next.other.take();
    become_(next, text)
}

fn retire(state: &FleetState, seen: &Seen, now_ms: u64) -> Step {
    let open = seen.open(&state.members, Mark::Retired);
    if !open.is_empty() && now_ms < state.since_ms.saturating_add(LAGGARDS_MS) {
        return wait("hosts retire the old version", open);
    }
    let version = state.active.as_ref().map_or("", |active| active.version.as_str());
    let (through, total) = (state.members.len().saturating_sub(open.len()), state.expected.len());
    over(state, Ended::Done, now_ms, format!("{version} serves on {through} of {total} hosts"))
}

fn back(state: &FleetState, seen: &Seen, now_ms: u64) -> Step {
    let open = seen.open(&state.expected, Mark::Back);
    let until = state.flip_at_ms.unwrap_or(state.since_ms).saturating_add(state.order.bake_ms);
    if now_ms < until || (!open.is_empty() && now_ms < until.saturating_add(LAGGARDS_MS)) {
        let why = if open.is_empty() { "pages of the new version have their time" } else { "hosts return" };
        return wait(why, open);
    }
    over(state, Ended::TurnedBack, now_ms, format!("{}; the old version serves again", state.why))
}

/// A deploy is ordered.
///
/// # Errors
/// Why it cannot be.
pub fn deploy(
    state: &FleetState,
    order: Order,
    active: Option<Release>,
    lanes: u8,
    seen: &Seen,
    now_ms: u64,
) -> Result<(FleetState, String), String> {
    let expected = ordered(state, seen)?;
    let Some(version) = order.to.clone() else { return Err("a deploy needs a version: --to VERSION".to_owned()) };
    let active = state.active.clone().or(active);
    let Some(old) = &active else {
        return Err("nobody knows what the fleet serves: no host that is there says it".to_owned());
    };
    let lane = next_lane(state.last_lane.max(if state.last_lane == 0 { old.lane } else { 0 }), old.lane, lanes);
    let text = format!("{version} (lane {lane}) is prepared on {} hosts, by {}", expected.len(), order.by);
    let next = FleetState {
        format: FORMAT,
        epoch: sound::next(state.epoch)?,
        phase: Phase::Prepare,
        active: active.clone(),
        other: Some(Release { version, lane }),
        last_lane: lane,
        former: state.former.clone(),
        order,
        expected,
        since_ms: now_ms,
        said: text.clone(),
        outcome: state.outcome.clone(),
        ..FleetState::default()
    };
    Ok((next, text))
}

/// Who is expected of an order.
pub(super) fn ordered(state: &FleetState, seen: &Seen) -> Result<Vec<String>, String> {
    if state.phase != Phase::Idle {
        return Err(format!("epoch {} is under way, begun by {}", state.epoch, state.order.by));
    }
    let expected: Vec<_> = seen.roster.iter().filter(|(_, enabled)| **enabled).map(|(host, _)| host.clone()).collect();
    if expected.is_empty() { Err("no host is enabled in the roster".to_owned()) } else { Ok(expected) }
}

/// The lane after the last in a ring from 1 to `lanes`, but for the one that is in use.
fn next_lane(last: u8, used: u8, lanes: u8) -> u8 {
    let ring = (0..lanes).map(|step| (u16::from(last) + u16::from(step)) % u16::from(lanes.max(1)) + 1);
    ring.map(|lane| lane as u8).find(|lane| *lane != used).unwrap_or(1)
}

/// An operator wants the order in hand aborted, or turned back.
///
/// # Errors
/// Why there is nothing to turn back.
pub fn want(state: &FleetState, by: &str) -> Result<FleetState, String> {
    match state.phase {
        Phase::Prepare | Phase::Go | Phase::Cancel | Phase::Flipped | Phase::Roll => {
            Ok(FleetState { wanted: Some(Wanted { by: by.to_owned() }), ..state.clone() })
        }
        Phase::Back => Err(format!("epoch {} is being turned back already", state.epoch)),
        Phase::Idle => Err("nothing is under way; to return to a former version, deploy it".to_owned()),
        Phase::Retire => Err("the old version is being retired; wait for its end, and deploy it".to_owned()),
    }
}
