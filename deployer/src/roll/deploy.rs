//! The steps of a deploy that a roll does not have: a lane for the other pool, the gate, the flip, the bake, the way back.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use deployer_common::lanes::FlipWord;

use super::{
    left::Left,
    machine::Outcome,
    orders::Order,
    record::unix_ms,
    run::{ON_REQUEST, Roll},
    worker::Task,
};
use crate::{
    api::{Phase, What},
    config,
    deploy::gate,
    failpoint::{Point, reach},
    journal::LaneState,
    kernel::host,
    service::{
        blocking,
        pools::{self, Told},
    },
};

/// A flip is armed so long before its instant: the word stands in the table by then, whatever happens to the daemon.
const LEAD: Duration = Duration::from_millis(100);
/// A flip that is nearer than this is not taken back.
const TOO_LATE: Duration = Duration::from_millis(20);
/// A pool that is not whole so long before its flip does not take callers.
const LAST_LOOK: Duration = Duration::from_millis(250);
/// Between two looks while something is waited for.
pub(super) const LOOK: Duration = Duration::from_millis(200);

impl Roll {
    pub(super) fn deploy(&self) -> Option<&config::Deploy> {
        self.machine.plan().deploy.as_ref()?;
        self.service.config.deploy.as_ref()
    }

    /// The pool that the deploy starts; before the flip the one that is not current.
    pub(super) fn new_pool(&self) -> u32 {
        let first = self.machine.plan().surge.first();
        u32::from(first.is_some_and(|nth| self.service.numbers(1).contains(nth)))
    }

    pub(super) fn flip(&self) -> FlipWord {
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

    /// The same at the end of a deploy, of which nobody came so far as to be retired: its `prepare` failed, say.
    pub(super) async fn close_unused_lane(&self) {
        let other = 1 - self.service.current();
        if self.machine.plan().deploy.is_none() || self.flip().lane(other) == 0 {
            return;
        }
        let workers: Vec<_> = self.service.numbers(other).collect();
        if let Err(error) = self.close_lane(&workers).await {
            tracing::warn!(error, "the lane of the pool that is not current stays");
        }
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
    pub(super) fn note_lanes(&self, last: Option<u8>) {
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
        // Without a version they are restarted as they are.
        let (Some(deploy), Some(_)) = (self.service.config.deploy.clone(), &version) else { return };
        let (service, pool) = (Arc::clone(&self.service), self.service.current());
        let lane = self.flip().lane(pool);
        let tell = move || pools::tell(&service.config, &deploy, pool, &Told { lane, version: version.as_deref() });
        if let Err(error) = blocking(tell).await {
            tracing::warn!(%error, "the workers go on being told their former version (DEPLOYER_VERSION)");
        }
    }

    pub(super) fn count_flip(&self, back: bool) {
        if let Some(moves) = self.service.moves() {
            moves.flipped(back);
        }
    }

    /// Writes down what a rollback is to have serve once this deploy is over.
    pub(super) fn note_former(&self, version: Option<String>) {
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

    /// Asks the gate, if there is one, beside whatever else is done meanwhile.
    pub(super) fn pass_gate(&self) -> impl Future<Output = Result<(), String>> + Send + 'static {
        let asked = self.deploy().and_then(|deploy| Some((deploy.gate.clone()?, deploy.within)));
        let (service, to) = (self.record.service.clone(), self.to.clone().unwrap_or_default());
        let (pool, workers) = (self.new_pool(), self.pool_addresses(self.new_pool()));
        let lane = self.flip().lane(pool);
        async move {
            let Some((gate, within)) = asked else { return Ok(()) };
            let pool = pools::NAMES[pool as usize & 1];
            let about = gate::About { service: &service, version: &to, pool, lane };
            gate::pass(&gate, &about, &workers, within).await
        }
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
        let mut at_ms = at_ms.filter(|at| *at > soonest || is_on_its_way).unwrap_or(soonest);
        reach(Point::FlipBefore, None).await;
        if !is_on_its_way {
            // As it was written down, and never done: by a daemon that was killed.
            if self.record.stop_asked() || self.machine.is_stopping() {
                self.machine.stop(ON_REQUEST, true);
                return self.machine.disarmed();
            }
            if let Err(why) = self.await_pool().await {
                self.machine.unfit(&why);
                let _ = self.save().await;
                return;
            }
            if self.is_to_pause() {
                return;
            }
            at_ms = at_ms.max(unix_ms() + LEAD.as_millis() as u64);
            self.machine.arming(at_ms);
            self.machine.count_from(self.world.figures(&self.service, pool));
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

    /// Why the new pool is not to take callers now: more of its workers than may crash are not up.
    fn is_short(&self) -> Result<(), String> {
        let pool = self.service.pool(self.new_pool());
        let out: Vec<_> = pool.iter().filter(|worker| worker.control().phase != Phase::Up).collect();
        let most = self.deploy().map_or(0, |deploy| deploy.max_crashes);
        match out.first() {
            Some(first) if out.len() as u64 > most => Err(format!(
                "{} of {} workers of the new pool are not up any more, {} first of all",
                out.len(),
                pool.len(),
                first.at
            )),
            _ => Ok(()),
        }
    }

    /// Waits until the new pool is up: a worker of it may have crashed since it was warm, and be on its way back.
    async fn await_pool(&self) -> Result<(), String> {
        let until = Instant::now() + self.service.config.warm.within;
        loop {
            match self.is_short() {
                Err(why) if Instant::now() >= until => return Err(why),
                Err(_) if !self.is_to_pause() => self.record.orders().wait(LOOK).await,
                _ => return Ok(()),
            }
        }
    }

    /// Whether the flip has happened; if not, it was taken back, or is left to the next daemon.
    async fn await_flip(&mut self, pool: u32) -> bool {
        let mut whole = Instant::now();
        loop {
            let (word, now) = (self.flip(), host::now_ms());
            if word.current(now) == pool {
                return true;
            }
            if self.record.is_suspended() {
                return false;
            }
            let left = Duration::from_millis(word.at_ms().saturating_sub(now));
            let short = self.is_short().err();
            if short.is_none() {
                whole = Instant::now();
                // What has come and gone before the flip is forgiven.
                self.machine.count_from(self.world.figures(&self.service, pool));
            }
            // One that has crashed may come back in time.
            let short = short.filter(|_| left < LAST_LOOK || whole.elapsed() > self.service.config.warm.within);
            let is_stopping = self.record.stop_asked() || self.machine.is_stopping();
            if (is_stopping || short.is_some()) && left > TOO_LATE && self.take_back(pool, word) {
                self.record.add(What::Disarmed);
                match short {
                    Some(why) if !is_stopping => self.machine.unfit(&why),
                    _ => {
                        self.machine.stop(ON_REQUEST, true);
                        self.machine.disarmed();
                    }
                }
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
        self.count_flip(false);
        let until_ms = at_ms + self.machine.plan().deploy.as_ref().map_or(0, |deploy| deploy.bake_ms);
        self.record.add(What::Flipped { at_ms, lane: word.lane(pool), version: self.to.clone(), until_ms });
        let _ = self.save().await;
        reach(Point::FlipDone, None).await;
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
