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
    kernel::{Lasting, host},
    service::Worker,
};

/// How a pool does while it bakes.
struct Looks {
    health: Health,
    /// Ended with this: a gate that takes its time holds up neither a rollback nor the look at the figures.
    gate: JoinSet<Result<(), String>>,
    every: Duration,
    gate_at: Instant,
    /// Why the gate did not pass when it was asked last.
    said: Option<String>,
}

/// What an order makes of a bake.
fn asked(order: Order) -> Option<Baked> {
    match order {
        Order::Rollback { by } => Some(Baked::Bad(format!("rolled back on request, by {by}"))),
        Order::Return { why } => Some(Baked::Bad(why)),
        Order::Supersede { by } => Some(Baked::Superseded(by)),
        Order::End => Some(Baked::Done),
        Order::Flip { .. } | Order::None => None,
    }
}

fn is_over(ends: Option<&Lasting>) -> bool {
    ends.is_some_and(|ends| ends.left().is_zero())
}

impl Roll {
    /// Has the connections closed that were made when another pool was current: they would bring navigations to it.
    fn closing_former(&self, pool: u32) -> Vec<Closing> {
        let quiet_after = self.service.config.drain.quiet_after;
        self.service.pool(pool).iter().map(|worker| self.world.closing_former(worker, quiet_after)).collect()
    }

    /// Looks after the new pool until its time is over, or something is wrong with it.
    pub(super) async fn bake(&mut self, until_ms: Option<u64>) {
        let pool = self.new_pool();
        let _closing = self.closing_former(1 - pool);
        let Some(mut looks) = self.looks() else { return self.machine.baked(Baked::Done) };
        let ends = self.side_by_side(until_ms).await;
        let (mut is_told, mut is_waiting) = (false, false);
        let why = loop {
            // First of all: what was asked for is done, also by a daemon that is about to end.
            if let Some(baked) = asked(self.record.orders().take_after_flip()) {
                break baked;
            }
            if self.record.is_suspended() {
                return;
            }
            if self.flip().current(host::now_ms()) != pool {
                break Baked::Bad("the old pool was made current again".to_owned());
            }
            let ill = self.look(&mut looks).await;
            if until_ms.is_none() {
                // What becomes of it is the fleet's to say.
                self.record.set_ill(ill);
            } else if let Some(why) = ill
                && self.can_return(1 - pool, &why, &mut is_told)
            {
                break Baked::Bad(why);
            }
            if is_over(ends.as_ref()) && self.may_retire(&mut is_waiting) {
                break Baked::Done;
            }
            self.pause(ends.as_ref()).await;
        };
        self.baked(why).await;
    }

    async fn baked(&mut self, why: Baked) {
        if let Baked::Bad(why) = &why {
            // First of all, and one write; written down after that.
            self.turn_back();
            self.machine.arming(unix_ms());
            tracing::warn!(why, "the deploy is turned back");
        } else {
            self.note_former(self.before.clone());
        }
        self.machine.baked(why);
        // From here on nobody is told any more that it can be turned back.
        let _ = self.save().await;
    }

    /// When both pools have stood side by side for long enough, by the boot clock; `None`: until it is told. A former deployer
    /// has written down only the time of day.
    async fn side_by_side(&mut self, until_ms: Option<u64>) -> Option<Lasting> {
        let until_ms = until_ms?;
        if let Some(known) = self.machine.side_by_side() {
            return Some(known.clone());
        }
        let ends = Lasting::until(until_ms, unix_ms(), self.machine.bake());
        self.machine.stand_side_by_side(ends.clone());
        let _ = self.save().await;
        Some(ends)
    }

    /// Whether the pool that is not current may be retired: not while its service is bypassed or detached, when connections
    /// go to whichever worker they are dialled at.
    fn may_retire(&self, is_told: &mut bool) -> bool {
        let Err(why) = self.world.steering(&self.service) else { return true };
        if !std::mem::replace(is_told, true) {
            tracing::warn!(why, "both pools stay up: connections are not steered, so no worker can be retired");
        }
        false
    }

    /// Waits for an order, and for an end, but not for long.
    async fn pause(&self, ends: Option<&Lasting>) {
        let left = ends.map_or(LOOK, Lasting::left);
        self.record.orders().wait(LOOK.min(left.max(Duration::from_millis(1)))).await;
    }

    fn looks(&self) -> Option<Looks> {
        let deploy = self.deploy()?;
        let limits = health::Limits { max_crashes: deploy.max_crashes, max_failed: deploy.max_failed };
        let figures = self.machine.figures().unwrap_or_else(|| self.world.figures(&self.service, self.new_pool()));
        Some(Looks {
            health: Health::new(limits, figures),
            gate: JoinSet::new(),
            every: deploy.gate_every,
            gate_at: Instant::now() + deploy.gate_every,
            said: None,
        })
    }

    /// Why the new pool is ill, if it is.
    async fn look(&mut self, looks: &mut Looks) -> Option<String> {
        let now = self.world.figures(&self.service, self.new_pool());
        if looks.health.restart(&now) {
            self.machine.count_from(looks.health.base());
            let _ = self.save().await;
        }
        if let Some(passed) = looks.gate.try_join_next() {
            let passed = passed.unwrap_or_else(|error| Err(error.to_string()));
            looks.said = passed.err().map(|why| format!("the gate does not pass any more: {why}"));
            looks.gate_at = Instant::now() + looks.every;
        }
        if Instant::now() >= looks.gate_at && looks.gate.is_empty() {
            looks.gate.spawn(self.pass_gate().in_current_span());
        }
        looks.health.judge(&now).err().or_else(|| looks.said.clone())
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
    pub(super) fn turn_back(&self) {
        let (word, old) = (self.flip(), 1 - self.new_pool());
        let back = FlipWord::new([word.lane(0), word.lane(1)], [true, true], old);
        // The instant says that the other was current, where open lanes do not: see `was_turned_back`.
        self.world.publish_flip(&self.service, back.flipping(old, host::now_ms()));
        self.service.set_current(old);
    }

    pub(super) async fn go_back(&mut self, why: String) {
        self.turn_back();
        self.note_lanes(None);
        self.count_flip(true);
        let (old, at_ms) = (1 - self.new_pool(), self.machine.flip_at_ms().unwrap_or_else(unix_ms));
        self.machine.returned(at_ms);
        self.machine.stand_side_by_side(Lasting::new(self.machine.bake()));
        let until_ms = self.machine.side_by_side_until().unwrap_or(u64::MAX);
        self.record.add(What::Returned { at_ms, lane: self.flip().lane(old), why, until_ms });
        let _ = self.save().await;
        reach(Point::Returned, None).await;
    }

    /// Keeps the pool that was turned back for a while, or until it is told.
    pub(super) async fn linger(&mut self, until_ms: Option<u64>) {
        let _closing = self.closing_former(self.new_pool());
        let ends = self.side_by_side(until_ms).await;
        let mut is_waiting = false;
        while !self.record.is_suspended() {
            let is_told = matches!(self.record.orders().take_after_flip(), Order::Supersede { .. } | Order::End);
            if is_told || is_over(ends.as_ref()) && self.may_retire(&mut is_waiting) {
                self.machine.lingered();
                let _ = self.save().await;
                return;
            }
            self.pause(ends.as_ref()).await;
        }
    }
}
