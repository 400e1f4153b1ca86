//! The steps of a deploy that a roll does not have, but for its flip and its bake: a lane for the other pool, the gate.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use deployer_common::lanes::FlipWord;

use super::{left::Left, machine::Outcome, record::unix_ms, run::Roll, worker::Task};
use crate::{
    api::What,
    config,
    deploy::gate,
    failpoint::Point,
    journal::LaneState,
    kernel::host,
    service::{
        blocking,
        pools::{self, Told},
    },
    version::Version,
};

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
        let fleets = self.machine.fleet().map(|fleet| fleet.lane);
        if lane == 0 || fleets.is_some_and(|fleets| fleets != lane) {
            let last =
                self.journal.read(|state| state.services.get(&self.record.service)?.lanes.as_ref().map(|it| it.last));
            lane = fleets.unwrap_or_else(|| next_lane(last.unwrap_or(0), word, deploy.lanes));
            let open = [0, 1].map(|it| it != pool && word.is_open(it, now));
            self.world.publish_flip(&self.service, FlipWord::new(with_lane(word, pool, lane), open, 1 - pool));
            self.note_lanes(Some(lane));
            self.record.add(What::Pool { pool: pools::NAMES[pool as usize & 1].to_owned(), lane });
        }
        let (service, to) = (Arc::clone(&self.service), self.to.clone());
        let told = blocking(move || pools::tell(&service.config, &deploy, pool, &Told { lane, version: to.as_ref() }));
        told.await.map_err(|error| format!("telling the workers of the new pool their lane: {error}"))?;
        Ok(lane)
    }

    /// Writes down which pool is current, for the time after the machine was started anew.
    pub(super) fn note_lanes(&self, last: Option<u8>) {
        let (word, now, unix) = (self.flip(), host::now_ms(), unix_ms());
        let at_ms = if word.is_armed(now) { unix.saturating_add(word.at_ms().saturating_sub(now)) } else { 0 };
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
        // The next daemon must not hold, or bake, a pool without a lane. Where this fails, so does each worker's intent.
        let _ = self.save_in_hand().await;
        if let Err(why) = self.close_lane(workers).await {
            return self.machine.batch_done(workers.iter().map(|nth| (*nth, Outcome::Kept(why.clone()))).collect());
        }
        self.record.add(What::RetirePool { workers: self.addresses(workers) });
        self.together(left, workers, Task::Retire).await;
    }

    /// What the workers of a service with two pools are told that are rolled one by one.
    pub(super) async fn tell_version(&self, version: Option<Version>) {
        // Without a version they are restarted as they are.
        let (Some(deploy), Some(_)) = (self.service.config.deploy.clone(), &version) else { return };
        let (service, pool) = (Arc::clone(&self.service), self.service.current());
        let lane = self.flip().lane(pool);
        let tell = move || pools::tell(&service.config, &deploy, pool, &Told { lane, version: version.as_ref() });
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
    pub(super) fn note_former(&self, version: Option<Version>) {
        let service = &self.record.service;
        self.journal.update(|state| state.services.entry(service.clone()).or_default().former = version);
    }

    pub(super) fn about<'a>(&'a self, version: Option<&'a Version>) -> gate::About<'a> {
        let pool = if self.machine.plan().deploy.is_some() { self.new_pool() } else { self.service.current() };
        gate::About {
            service: &self.record.service,
            version,
            pool: pools::NAMES[pool as usize & 1],
            lane: self.flip().lane(pool),
            is_tls: self.service.config.tls.is_some(),
        }
    }

    /// Asks the gate, if there is one, beside whatever else is done meanwhile.
    pub(super) fn pass_gate(&self) -> impl Future<Output = Result<(), String>> + Send + 'static {
        let asked = self.deploy().and_then(|deploy| Some((deploy.gate.clone()?, deploy.user.clone(), deploy.within)));
        let (service, to) = (self.record.service.clone(), self.to.clone());
        let (pool, workers) = (self.new_pool(), self.pool_addresses(self.new_pool()));
        let (lane, is_tls) = (self.flip().lane(pool), self.service.config.tls.is_some());
        async move {
            let Some((gate, user, within)) = asked else { return Ok(()) };
            let pool = pools::NAMES[pool as usize & 1];
            let about = gate::About { service: &service, version: to.as_ref(), pool, lane, is_tls };
            gate::pass(&gate, &about, &workers, user.as_deref(), within).await
        }
    }

    pub(super) async fn gate(&mut self) {
        let result = self.pass_gate().await;
        self.record.add(What::Gate { error: result.clone().err() });
        self.machine.gated(result);
        let _ = self.save().await;
    }
}

/// The lanes where a pool has this one. Lanes of a ring are free; where the fleet has given one that the current pool has, it
/// is that pool's no more.
fn with_lane(word: FlipWord, pool: u32, lane: u8) -> [u8; 2] {
    [0, 1].map(|it| match word.lane(it) {
        _ if it == pool => lane,
        taken if taken == lane => 0,
        other => other,
    })
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
    fn a_lane_is_of_one_pool() {
        let word = FlipWord::new([4, 7], [true, false], 0);
        assert_eq!([with_lane(word, 1, 5), with_lane(word, 1, 4), with_lane(word, 0, 7)], [[4, 5], [0, 4], [7, 0]]);
    }

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
