//! The flip of a deploy: held until it is told, armed in the kernel for an instant, and taken back where it must not come.

use std::time::{Duration, Instant};

use deployer_common::lanes::FlipWord;

use super::{deploy::LOOK, orders::Order, record::unix_ms, run::Roll};
use crate::{
    api::{Phase, What},
    failpoint::{Point, reach},
    kernel::{Lasting, clock, host},
};

/// A flip is armed so long before its instant: the word stands in the table by then, whatever happens to the daemon.
const LEAD: Duration = Duration::from_millis(100);
/// A flip that is nearer than this is not taken back.
const TOO_LATE: Duration = Duration::from_millis(20);
/// A flip that is so far from its instant, since the time of day was set, is armed anew; milliseconds.
const STEP_MS: u64 = 20;
/// A pool that is not whole so long before its flip does not take callers.
const LAST_LOOK: Duration = Duration::from_millis(250);

impl Roll {
    /// Waits until somebody says that it is to flip, or is to stop.
    pub(super) async fn hold(&mut self) {
        if self.machine.fleet().is_some()
            && let Err(why) = self.open_early().await
        {
            return self.machine.stop(&format!("stopped: its lane was not opened: {why}"), false);
        }
        self.record.orders().holds();
        self.record.add(What::Holding);
        while !self.is_to_pause() {
            if let Order::Flip { at_ms } = self.record.orders().take_before_flip() {
                self.machine.released(at_ms);
                // The fleet says it once more to a daemon that begins, or says something else.
                if self.machine.fleet().is_none() {
                    let _ = self.save().await;
                }
                return;
            }
            self.record.orders().wait(LOOK).await;
        }
        if self.record.stop_asked() {
            // Whoever is in hand is so of the end that follows, which a daemon before had begun.
            self.machine.stop(&self.record.stop_text(), false);
        }
    }

    /// Has everybody dial the new pool's lane who has a page of its version: other hosts may flip earlier than this one.
    async fn open_early(&self) -> Result<(), String> {
        self.save().await?;
        let word = self.flip();
        let lanes = [word.lane(0), word.lane(1)];
        self.world.publish_flip(&self.service, FlipWord::new(lanes, [true, true], 1 - self.new_pool()));
        self.note_lanes(None);
        Ok(())
    }

    /// Whether the new pool was current, and turned back by a daemon that could not write that down. A lane that everybody may
    /// dial says so, but for the fleet's, where it is the instant that [`Roll::turn_back`] leaves.
    fn was_turned_back(&self, pool: u32, word: FlipWord) -> bool {
        let fleets = self.machine.fleet().is_some();
        let has_been = if fleets { word.at_ms() != 0 } else { word.is_open(pool, host::now_ms()) };
        self.machine.flip_at_ms().is_some() && has_been
    }

    /// Whether a wait is to be broken off: the loop looks why.
    fn is_to_pause(&self) -> bool {
        self.record.is_suspended() || (self.record.stop_asked() && !self.machine.has_flipped())
    }

    /// Arms the flip, and waits until it has happened. Where a former daemon has armed it, it only waits.
    pub(super) async fn flip_at(&mut self, at_ms: Option<u64>) {
        let (pool, word, now) = (self.new_pool(), self.flip(), host::now_ms());
        let is_on_its_way = word.current(now.max(word.at_ms())) == pool;
        if !is_on_its_way && self.was_turned_back(pool, word) {
            // The bake finds that out.
            return self.machine.flipped();
        }
        if !is_on_its_way && self.machine.flip_at_ms().is_some() {
            self.machine.hold_again();
        }
        if !self.machine.is_flipping() {
            return;
        }
        let soonest = unix_ms() + LEAD.as_millis() as u64;
        let mut at_ms = at_ms.filter(|at| *at > soonest || is_on_its_way).unwrap_or(soonest);
        reach(Point::FlipBefore, None).await;
        if !is_on_its_way {
            // As it was written down, and never done: by a daemon that was killed.
            if self.record.stop_asked() || self.machine.is_stopping() {
                self.machine.stop(&self.record.stop_text(), true);
                return self.machine.disarmed();
            }
            if let Err(why) = self.await_pool().await {
                self.machine.unfit(&why);
                let _ = self.save().await;
                return;
            }
            if self.is_to_pause() || self.record.orders().is_disarmed() {
                return self.machine.hold_again();
            }
            at_ms = at_ms.max(unix_ms() + LEAD.as_millis() as u64);
            self.machine.arming(at_ms);
            self.machine.count_from(self.world.figures(&self.service, pool));
            if let Err(why) = self.save().await {
                self.machine.stop(&format!("stopped: the flip was not armed: {why}"), true);
                return self.machine.disarmed();
            }
            reach(Point::FlipJournaled, None).await;
            self.world.publish_flip(&self.service, word.flipping(pool, clock::monotonic_ms(at_ms)));
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
            if self.record.orders().is_disarmed() && !is_stopping && left > TOO_LATE && self.take_back(pool, word) {
                self.record.add(What::Disarmed);
                self.machine.hold_again();
                let _ = self.save().await;
                return false;
            }
            if (is_stopping || short.is_some()) && left > TOO_LATE && self.take_back(pool, word) {
                self.record.add(What::Disarmed);
                match short {
                    Some(why) if !is_stopping => self.machine.unfit(&why),
                    _ => {
                        self.machine.stop(&self.record.stop_text(), true);
                        self.machine.disarmed();
                    }
                }
                let _ = self.save().await;
                return false;
            }
            if left > TOO_LATE {
                self.arm_anew(pool, word);
            }
            // Closer and closer: the last look is shortly before it is too late.
            let pause = if left > TOO_LATE { left / 2 } else { left };
            self.record.orders().wait(LOOK.min(pause.max(Duration::from_millis(1)))).await;
        }
    }

    /// Arms a flip once more where the time of day has been set since: it is for an instant of that.
    fn arm_anew(&self, pool: u32, armed: FlipWord) {
        let Some(at_ms) = self.machine.flip_at_ms() else { return };
        let instant = clock::monotonic_ms(at_ms);
        if instant.abs_diff(armed.at_ms()) <= STEP_MS {
            return;
        }
        self.world.publish_flip(&self.service, armed.flipping(pool, instant));
        if host::now_ms() >= armed.at_ms() {
            // Somebody may have met the new pool.
            return self.world.publish_flip(&self.service, armed);
        }
        self.note_lanes(None);
        let moved_ms = (instant as i64).saturating_sub(armed.at_ms() as i64);
        tracing::warn!(moved_ms, "the time of day was set: the flip is armed anew, for the same instant of it");
    }

    /// Takes a flip back, unless its instant has come meanwhile.
    fn take_back(&self, pool: u32, armed: FlipWord) -> bool {
        // What was opened before is closed when it is retired: pages of other hosts are served as long.
        let is_early = self.machine.fleet().is_some();
        let open = [0, 1].map(|it| (it != pool || is_early) && armed.is_open(it, host::now_ms()));
        let before = FlipWord::new([armed.lane(0), armed.lane(1)], open, 1 - pool);
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
        let flipped_ms = self.flip().at_ms();
        let word = self.flip().settled(host::now_ms());
        self.world.publish_flip(&self.service, word);
        self.note_lanes(None);
        reach(Point::Flipped, None).await;
        if self.machine.flip_at_ms().is_none() {
            self.machine.arming(at_ms);
        }
        self.machine.flipped();
        if flipped_ms != 0 {
            let since = Duration::from_millis(host::now_ms().saturating_sub(flipped_ms));
            self.machine.stand_side_by_side(Lasting::new(self.machine.bake().saturating_sub(since)));
        }
        self.count_flip(false);
        let until_ms = self.machine.side_by_side_until().unwrap_or(u64::MAX);
        self.record.add(What::Flipped {
            at_ms,
            lane: word.lane(pool),
            version: self.to.clone().map(String::from),
            until_ms,
        });
        let _ = self.save().await;
        reach(Point::FlipDone, None).await;
    }
}
