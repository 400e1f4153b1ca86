//! The steps of a deploy that a roll does not have: a lane for the other pool, the gate, the flip, the bake, the way back.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use deployer_common::{lanes::FlipWord, word::State};

use super::{
    left::Left,
    machine::{Baked, Outcome},
    orders::Order,
    record::unix_ms,
    run::{ON_REQUEST, Roll},
    worker::Task,
};
use crate::{
    api::What,
    config,
    deploy::{
        gate,
        health::{self, Health},
    },
    failpoint::{Point, reach},
    journal::LaneState,
    keepalive::Closing,
    kernel::host,
    service::{
        Worker, blocking,
        pools::{self, Told},
    },
};

/// A flip is armed so long before its instant: the word stands in the table by then, whatever happens to the daemon.
const LEAD: Duration = Duration::from_millis(100);
/// A flip that is nearer than this is not taken back.
const TOO_LATE: Duration = Duration::from_millis(20);
/// Between two looks while something is waited for.
const LOOK: Duration = Duration::from_millis(200);

impl Roll {
    fn deploy(&self) -> Option<&config::Deploy> {
        self.machine.plan().deploy.as_ref()?;
        self.service.config.deploy.as_ref()
    }

    /// The pool that the deploy starts; before the flip the one that is not current.
    pub(super) fn new_pool(&self) -> u32 {
        let first = self.machine.plan().surge.first();
        u32::from(first.is_some_and(|nth| self.service.numbers(1).contains(nth)))
    }

    fn flip(&self) -> FlipWord {
        self.world.flip(&self.service)
    }

    fn pool_addresses(&self, pool: u32) -> Vec<SocketAddr> {
        self.service.pool(pool).iter().map(|worker| worker.at).collect()
    }

    /// Takes the lane of a pool away, so that who names it gets what is current, before its workers are drained. Not of the
    /// pool that is current.
    pub(super) async fn close_lane(&self, spares: &[usize]) -> Result<(), String> {
        let pool = u32::from(spares.first().is_some_and(|nth| self.service.numbers(1).contains(nth)));
        let (word, now) = (self.flip(), host::now_ms());
        if word.is_armed(now) || word.current(now) == pool {
            return Err(format!(
                "pool {} is current, and its workers are not retired",
                pools::NAMES[pool as usize & 1]
            ));
        }
        let lanes = [0, 1].map(|it| if it == pool { 0 } else { word.lane(it) });
        self.world.publish_flip(&self.service, FlipWord::new(lanes, [pool == 1, pool == 0], 1 - pool));
        self.note_lanes(None);
        blocking(host::grace_period).await.map_err(|error| format!("waiting for an RCU grace period: {error}"))
    }

    /// Gives the new pool a lane, if it has none, and tells its workers.
    pub(super) async fn open_pool(&mut self) -> Result<u8, String> {
        let Some(deploy) = self.deploy().cloned() else { return Err("the service has one pool".to_owned()) };
        let (pool, word, now) = (self.new_pool(), self.flip(), host::now_ms());
        // One that everybody may dial is of a version before: its pages must not meet a pool that is not warm.
        let mut lane = if word.is_open(pool, now) { 0 } else { word.lane(pool) };
        if lane == 0 {
            let last =
                self.journal.read(|state| state.services.get(&self.record.service)?.lanes.as_ref().map(|it| it.last));
            lane = next_lane(last.unwrap_or(0), word, deploy.lanes);
            let lanes = [0, 1].map(|it| if it == pool { lane } else { word.lane(it) });
            let open = [0, 1].map(|it| it != pool && word.is_open(it, now));
            self.world.publish_flip(&self.service, FlipWord::new(lanes, open, 1 - pool));
            self.note_lanes(Some(lane));
            self.record.add(What::Pool { pool: pools::NAMES[pool as usize & 1].to_owned(), lane });
        }
        let (service, to) = (Arc::clone(&self.service), self.to.clone());
        let told =
            blocking(move || pools::tell(&service.config, &deploy, pool, &Told { lane, version: to.as_deref() }));
        told.await.map_err(|error| format!("telling the workers of the new pool their lane: {error}"))?;
        Ok(lane)
    }

    /// Writes down which pool is current, for the time after the machine was started anew.
    fn note_lanes(&self, last: Option<u8>) {
        let (word, now, unix) = (self.flip(), host::now_ms(), unix_ms());
        let at_ms = if word.is_armed(now) { unix + (word.at_ms() - now) } else { 0 };
        let (from, to) = (word.current(now), word.current(now.max(word.at_ms())));
        let lanes = [word.lane(0), word.lane(1)];
        let open = [word.is_open(0, now), word.is_open(1, now)];
        self.journal.update(|state| {
            let known = &mut state.services.entry(self.record.service.clone()).or_default().lanes;
            let last = last.or(known.as_ref().map(|known| known.last)).unwrap_or(lanes[to as usize & 1]);
            *known = Some(LaneState { lanes, open, from, to, at_ms, last });
        });
    }

    /// What is run before the pool is started.
    pub(super) async fn prepare(&mut self) {
        if let Err(why) = self.open_pool().await {
            return self.machine.commanded(Err(why));
        }
        let command = self.deploy().and_then(|deploy| deploy.prepare.clone());
        let points = [Point::SwitchBefore, Point::SwitchJournaled, Point::SwitchDone];
        self.command("prepare", command.as_ref(), self.to.clone(), points).await;
    }

    /// How long a command may take.
    pub(super) fn switch_within(&self) -> Duration {
        self.deploy().map_or(self.service.config.roll.switch_within, |deploy| deploy.within)
    }

    /// Starts some workers of the new pool.
    pub(super) async fn start_pool(&mut self, left: &Arc<Left>, workers: &[usize]) {
        if let Err(why) = self.open_pool().await {
            return self.machine.stop(&format!("stopped: {why}"), false);
        }
        let (nth, of) = self.machine.surge_batch();
        self.record.add(What::Batch { nth, of, workers: self.addresses(workers), back: false });
        self.together(left, workers, Task::Restart { to: self.to.clone() }).await;
    }

    /// Drains and stops the workers of the pool that is not current.
    pub(super) async fn retire_pool(&mut self, left: &Arc<Left>, workers: &[usize]) {
        if let Err(why) = self.close_lane(workers).await {
            return self.machine.batch_done(workers.iter().map(|nth| (*nth, Outcome::Kept(why.clone()))).collect());
        }
        self.record.add(What::RetirePool { workers: self.addresses(workers) });
        self.together(left, workers, Task::Retire).await;
    }

    /// What the workers of a service with two pools are told that are rolled one by one.
    pub(super) async fn tell_version(&self, version: Option<String>) {
        let (Some(deploy), Some(_)) = (self.service.config.deploy.clone(), &version) else { return };
        let (service, pool) = (Arc::clone(&self.service), self.service.current());
        let lane = self.flip().lane(pool);
        let tell = move || pools::tell(&service.config, &deploy, pool, &Told { lane, version: version.as_deref() });
        if let Err(error) = blocking(tell).await {
            tracing::warn!(%error, "the workers go on being told their former version (DEPLOYER_VERSION)");
        }
    }

    fn count_flip(&self, back: bool) {
        if let Some(moves) = self.service.moves() {
            moves.flipped(back);
        }
    }

    /// Writes down what a rollback is to have serve once this deploy is over.
    fn note_former(&self, version: Option<String>) {
        let service = &self.record.service;
        self.journal.update(|state| state.services.entry(service.clone()).or_default().former = version);
    }

    pub(super) fn about<'a>(&'a self, deploy_to: &'a str) -> gate::About<'a> {
        let pool = if self.machine.plan().deploy.is_some() { self.new_pool() } else { self.service.current() };
        gate::About {
            service: &self.record.service,
            version: deploy_to,
            pool: pools::NAMES[pool as usize & 1],
            lane: self.flip().lane(pool),
        }
    }

    async fn pass_gate(&self) -> Result<(), String> {
        let Some((gate, within)) = self.deploy().and_then(|deploy| Some((deploy.gate.as_ref()?, deploy.within))) else {
            return Ok(());
        };
        let about = self.about(self.to.as_deref().unwrap_or_default());
        gate::pass(gate, &about, &self.pool_addresses(self.new_pool()), within).await
    }

    async fn pass_gate_after(&self, time: Duration) -> Result<(), String> {
        tokio::time::sleep(time).await;
        self.pass_gate().await
    }

    pub(super) async fn gate(&mut self) {
        let result = self.pass_gate().await;
        self.record.add(What::Gate { error: result.clone().err() });
        self.machine.gated(result);
        let _ = self.save().await;
    }

    /// Waits until somebody says that it is to flip, or is to stop.
    pub(super) async fn hold(&mut self) {
        self.record.add(What::Holding);
        while !self.is_to_pause() {
            if let Order::Flip { at_ms } = self.record.orders().take_before_flip() {
                self.machine.released(at_ms);
                let _ = self.save().await;
                return;
            }
            self.record.orders().wait(LOOK).await;
        }
    }

    /// Whether a wait is to be broken off: the loop looks why.
    fn is_to_pause(&self) -> bool {
        self.record.is_suspended() || (self.record.stop_asked() && !self.machine.has_flipped())
    }

    /// Arms the flip, and waits until it has happened. Where a former daemon has armed it, it only waits.
    pub(super) async fn flip_at(&mut self, at_ms: Option<u64>) {
        let (pool, word, now) = (self.new_pool(), self.flip(), host::now_ms());
        let is_on_its_way = word.current(now.max(word.at_ms())) == pool;
        if !is_on_its_way && self.machine.flip_at_ms().is_some() && word.is_open(pool, now) {
            // It was current, and turned back by a daemon that could not write that down: the bake finds that out.
            return self.machine.flipped();
        }
        let soonest = unix_ms() + LEAD.as_millis() as u64;
        let at_ms = at_ms.filter(|at| *at > soonest || is_on_its_way).unwrap_or(soonest);
        reach(Point::FlipBefore, None).await;
        if !is_on_its_way {
            if let Some(why) = self.not_to_flip(pool) {
                self.machine.stop(&why, true);
                return self.machine.disarmed();
            }
            self.machine.arming(at_ms);
            if let Err(why) = self.save().await {
                self.machine.stop(&format!("stopped: the flip was not armed: {why}"), true);
                return self.machine.disarmed();
            }
            reach(Point::FlipJournaled, None).await;
            let (unix, now) = (unix_ms(), host::now_ms());
            self.world.publish_flip(&self.service, word.flipping(pool, now + at_ms.saturating_sub(unix).max(1)));
            self.note_lanes(None);
            self.record.add(What::Armed { at_ms, lane: word.lane(pool) });
            reach(Point::FlipArmed, None).await;
        }
        if self.await_flip(pool).await {
            self.flipped(pool, at_ms).await;
        }
    }

    /// Why the flip is not armed, if it is not to be: a stop, or the pool is not what the gate has seen. It may have held,
    /// or waited for another daemon, for long.
    fn not_to_flip(&self, pool: u32) -> Option<String> {
        let is_up = |worker: &Worker| self.world.state(worker) == State::Up;
        let out: Vec<_> = self.service.pool(pool).iter().filter(|worker| !is_up(worker)).collect();
        match out.first() {
            // The reason is known.
            _ if self.machine.is_stopping() => Some(String::new()),
            None => None,
            Some(worker) => {
                let (out, all, at) = (out.len(), self.service.pool(pool).len(), worker.at);
                Some(format!("stopped: {out} of the {all} workers of the new pool are not up any more ({at})"))
            }
        }
    }

    /// Whether the flip has happened; if not, it was taken back, or is left to the next daemon.
    async fn await_flip(&mut self, pool: u32) -> bool {
        loop {
            let (word, now) = (self.flip(), host::now_ms());
            if word.current(now) == pool {
                return true;
            }
            if self.record.is_suspended() {
                return false;
            }
            let left = Duration::from_millis(word.at_ms().saturating_sub(now));
            let is_to_stop = self.record.stop_asked() || self.machine.is_stopping();
            if is_to_stop && left > TOO_LATE && self.take_back(pool, word) {
                self.record.add(What::Disarmed);
                self.machine.stop(ON_REQUEST, true);
                self.machine.disarmed();
                let _ = self.save().await;
                return false;
            }
            self.record.orders().wait(LOOK.min(left.max(Duration::from_millis(1)))).await;
        }
    }

    /// Takes a flip back, unless its instant has come meanwhile.
    fn take_back(&self, pool: u32, armed: FlipWord) -> bool {
        let before = FlipWord::new(
            [armed.lane(0), armed.lane(1)],
            [0, 1].map(|it| it != pool && armed.is_open(it, host::now_ms())),
            1 - pool,
        );
        self.world.publish_flip(&self.service, before);
        if host::now_ms() >= armed.at_ms() {
            // Somebody may have met the new pool.
            self.world.publish_flip(&self.service, armed);
            return false;
        }
        self.note_lanes(None);
        true
    }

    async fn flipped(&mut self, pool: u32, at_ms: u64) {
        self.service.set_current(pool);
        let word = self.flip().settled(host::now_ms());
        self.world.publish_flip(&self.service, word);
        self.note_lanes(None);
        reach(Point::Flipped, None).await;
        if self.machine.flip_at_ms().is_none() {
            self.machine.arming(at_ms);
        }
        self.machine.flipped();
        self.note_former(self.before.clone());
        self.count_flip(false);
        let until_ms = at_ms + self.machine.plan().deploy.as_ref().map_or(0, |deploy| deploy.bake_ms);
        self.record.add(What::Flipped { at_ms, lane: word.lane(pool), version: self.to.clone(), until_ms });
        let _ = self.save().await;
        reach(Point::FlipDone, None).await;
    }

    /// Has the connections closed that were made when another pool was current: they would bring navigations to it.
    fn closing_former(&self, pool: u32) -> Vec<Closing> {
        let quiet_after = self.service.config.drain.quiet_after;
        self.service.pool(pool).iter().map(|worker| self.world.closing_former(worker, quiet_after)).collect()
    }

    /// Looks after the new pool until its time is over, or something is wrong with it.
    pub(super) async fn bake(&mut self, until_ms: u64) {
        let pool = self.new_pool();
        let _closing = self.closing_former(1 - pool);
        let Some((limits, gate_every)) = self.deploy().map(|deploy| {
            let limits = health::Limits { max_crashes: deploy.max_crashes, max_failed: deploy.max_failed };
            (limits, deploy.gate_every)
        }) else {
            return self.machine.baked(Baked::Done);
        };
        let mut health = Health::new(limits, self.world.figures(&self.service, pool));
        let mut is_told = false;
        // Beside everything else: a rollback does not wait for a gate that hangs.
        let mut gate = Box::pin(self.pass_gate_after(gate_every));
        let why = loop {
            if self.record.is_suspended() {
                return;
            }
            if self.flip().current(host::now_ms()) != pool {
                break Baked::Bad("the old pool was made current again".to_owned());
            }
            match self.record.orders().take_after_flip() {
                Order::Rollback { by } => break Baked::Bad(format!("rolled back on request, by {by}")),
                Order::Supersede { by } => break Baked::Superseded(by),
                Order::Flip { .. } | Order::None => {}
            }
            let now = self.world.figures(&self.service, pool);
            health.restart(&now);
            if let Err(why) = health.judge(&now)
                && self.can_return(1 - pool, &why, &mut is_told)
            {
                break Baked::Bad(why);
            }
            if unix_ms() >= until_ms {
                break Baked::Done;
            }
            let left = Duration::from_millis(until_ms.saturating_sub(unix_ms()));
            tokio::select! {
                passed = &mut gate => match passed {
                    Err(why) if self.can_return(1 - pool, &why, &mut is_told) => {
                        break Baked::Bad(format!("the gate does not pass any more: {why}"));
                    }
                    _ => gate.set(self.pass_gate_after(gate_every)),
                },
                () = self.record.orders().wait(LOOK.min(left.max(Duration::from_millis(1)))) => {}
            }
        };
        drop(gate);
        if let Baked::Bad(why) = &why {
            // First of all, and one write; written down after that.
            self.turn_back();
            self.machine.arming(unix_ms());
            tracing::warn!(why, "the deploy is turned back");
        }
        self.machine.baked(why);
        // From here on nobody is told any more that it can be turned back.
        let _ = self.save().await;
    }

    /// Whether there is a pool to turn back to, of which enough are up: an ill version is better than nobody.
    fn can_return(&self, old: u32, why: &str, is_told: &mut bool) -> bool {
        let is_up = |worker: &&Arc<Worker>| self.world.state(worker) == State::Up;
        let up = self.service.pool(old).iter().filter(is_up).count();
        let can = up >= self.service.config.limits.min_up;
        if !can && !std::mem::replace(is_told, true) {
            tracing::error!(why, up, "the deploy is not turned back: fewer than min_up of the old pool are up");
        }
        can
    }

    /// Makes the old pool current again.
    fn turn_back(&self) {
        let (word, old) = (self.flip(), 1 - self.new_pool());
        self.world.publish_flip(&self.service, FlipWord::new([word.lane(0), word.lane(1)], [true, true], old));
        self.service.set_current(old);
    }

    pub(super) async fn go_back(&mut self, why: String) {
        self.turn_back();
        self.note_lanes(None);
        self.note_former(None);
        self.count_flip(true);
        let (old, at_ms) = (1 - self.new_pool(), self.machine.flip_at_ms().unwrap_or_else(unix_ms));
        self.machine.returned(at_ms);
        let until_ms = at_ms + self.machine.plan().deploy.as_ref().map_or(0, |deploy| deploy.bake_ms);
        self.record.add(What::Returned { at_ms, lane: self.flip().lane(old), why, until_ms });
        let _ = self.save().await;
        reach(Point::Returned, None).await;
    }

    /// Keeps the pool that was turned back for a while.
    pub(super) async fn linger(&mut self, until_ms: u64) {
        let _closing = self.closing_former(self.new_pool());
        while !self.record.is_suspended() {
            let is_superseded = matches!(self.record.orders().take_after_flip(), Order::Supersede { .. });
            if is_superseded || unix_ms() >= until_ms {
                self.machine.lingered();
                let _ = self.save().await;
                return;
            }
            let left = Duration::from_millis(until_ms.saturating_sub(unix_ms()));
            self.record.orders().wait(LOOK.min(left.max(Duration::from_millis(1)))).await;
        }
    }
}

/// The lane after the last that was given, in a ring from 1 to `lanes`; never one that a pool has.
fn next_lane(last: u8, word: FlipWord, lanes: u8) -> u8 {
    let taken = [word.lane(0), word.lane(1)];
    let last = if last == 0 { taken[0].max(taken[1]) } else { last };
    let ring = (0..lanes).map(|step| (u16::from(last) + u16::from(step)) % u16::from(lanes.max(1)) + 1);
    ring.map(|lane| lane as u8).find(|lane| !taken.contains(lane)).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_go_round() {
        let word = |a, b| FlipWord::new([a, b], [true, false], 0);
        assert_eq!(next_lane(0, word(1, 0), 16), 2);
        assert_eq!(next_lane(5, word(4, 0), 16), 6);
        assert_eq!(next_lane(16, word(16, 0), 16), 1);
        assert_eq!(next_lane(3, word(1, 0), 3), 2, "the lane of the current pool is left out");
        assert_eq!(next_lane(255, word(255, 0), 255), 1);
        assert_eq!(next_lane(200, word(7, 0), 16), (200 % 16) + 1, "of a ring that was longer");
    }
}
