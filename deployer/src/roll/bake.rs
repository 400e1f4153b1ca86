//! A deploy after its flip: the bake, and the way back.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use deployer_common::{lanes::FlipWord, word::State};
use tokio::task::JoinSet;
use tracing::Instrument as _;

use super::{deploy::LOOK, machine::Baked, orders::Order, record::unix_ms, run::Roll};
use crate::{
    api::What,
    deploy::health::{self, Health},
    failpoint::{Point, reach},
    keepalive::Closing,
    kernel::host,
    service::Worker,
};

impl Roll {
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
        let figures = self.machine.figures().unwrap_or_else(|| self.world.figures(&self.service, pool));
        let mut health = Health::new(limits, figures);
        // Ended with this: a gate that takes its time holds up neither a rollback nor the look at the figures.
        let mut gate = JoinSet::new();
        let mut gate_at = Instant::now() + gate_every;
        let mut is_told = false;
        let why = loop {
            // First of all: what was asked for is done, also by a daemon that is about to end.
            match self.record.orders().take_after_flip() {
                Order::Rollback { by } => break Baked::Bad(format!("rolled back on request, by {by}")),
                Order::Supersede { by } => break Baked::Superseded(by),
                Order::Flip { .. } | Order::None => {}
            }
            if self.record.is_suspended() {
                return;
            }
            if self.flip().current(host::now_ms()) != pool {
                break Baked::Bad("the old pool was made current again".to_owned());
            }
            let now = self.world.figures(&self.service, pool);
            if health.restart(&now) {
                self.machine.count_from(health.base());
                let _ = self.save().await;
            }
            if let Err(why) = health.judge(&now)
                && self.can_return(1 - pool, &why, &mut is_told)
            {
                break Baked::Bad(why);
            }
            if let Some(passed) = gate.try_join_next() {
                if let Err(why) = passed.unwrap_or_else(|error| Err(error.to_string()))
                    && self.can_return(1 - pool, &why, &mut is_told)
                {
                    break Baked::Bad(format!("the gate does not pass any more: {why}"));
                }
                gate_at = Instant::now() + gate_every;
            }
            if unix_ms() >= until_ms {
                break Baked::Done;
            }
            if Instant::now() >= gate_at && gate.is_empty() {
                gate.spawn(self.pass_gate().in_current_span());
            }
            let left = Duration::from_millis(until_ms.saturating_sub(unix_ms()));
            self.record.orders().wait(LOOK.min(left.max(Duration::from_millis(1)))).await;
        };
        if let Baked::Bad(why) = &why {
            // First of all, and one write; written down after that.
            self.turn_back();
            self.machine.arming(unix_ms());
            tracing::warn!(why, "the deploy is turned back");
        }
        if !matches!(why, Baked::Bad(_)) {
            self.note_former(self.before.clone());
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
