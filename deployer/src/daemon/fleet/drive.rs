//! Drives a service's order where this host is the first in line, or nobody is.

use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::{Duration, Instant},
};

use tokio::time::sleep;
use tracing::{info, warn};

use super::{
    super::Daemon,
    hand::{Followed, lock},
};
use crate::{
    fleet::{
        board::Known,
        coordinator::{Op, Trouble, Watch},
        driver::{self, Step},
        paths::Mark,
        serverset,
        state::{FleetState, Phase},
    },
    kernel::clock,
};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// The same of who does not drive.
const ASIDE: Duration = Duration::from_millis(1000);
/// An order that nobody drives is taken over after so long, and up to twice that: not by all at once.
const FREE_FOR: Duration = Duration::from_millis(2000);

/// What drives a service.
pub(super) struct Driving {
    daemon: Arc<Daemon>,
    name: String,
    followed: Arc<Followed>,
    known: Known,
    quorum_since_ms: Option<u64>,
    wanted_since_ms: Option<u64>,
    free_since: Option<Instant>,
    /// An operator of this host wants it driven from here, at once.
    is_wanted: bool,
    news: Option<(u64, Watch)>,
}

impl Driving {
    pub(super) fn new(daemon: &Arc<Daemon>, name: &str) -> Self {
        Self {
            daemon: Arc::clone(daemon),
            name: name.to_owned(),
            followed: daemon.fleet.followed(name),
            known: Known::default(),
            quorum_since_ms: None,
            wanted_since_ms: None,
            free_since: None,
            is_wanted: false,
            news: None,
        }
    }

    pub(super) async fn run(mut self) {
        while self.daemon.registry.service(&self.name).is_some() {
            if let Err(trouble) = self.turn().await
                && !matches!(trouble, Trouble::Refused { .. } | Trouble::Away(_))
            {
                warn!(service = self.name, %trouble, "driving the fleet");
                sleep(LOOK).await;
            }
            self.pause().await;
        }
    }

    async fn pause(&mut self) {
        let mut view = self.followed.view.subscribe();
        let is_idle = view.borrow_and_update().as_ref().is_none_or(|view| view.state.phase == Phase::Idle);
        // Whoever does not drive looks now and then whether somebody does.
        let is_driver = lock(&self.followed.waits).is_some();
        let most = if is_idle || !is_driver { ASIDE } else { LOOK };
        let heard = async {
            match &mut self.news {
                Some((_, news)) => news.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = view.changed() => {}
            () = self.followed.drive.notified() => self.is_wanted = true,
            () = heard => {}
            () = sleep(most) => {}
        }
    }

    async fn turn(&mut self) -> Result<(), Trouble> {
        let fleet = Arc::clone(&self.daemon.fleet);
        let link = fleet.link();
        if !link.is_connected {
            return Ok(());
        }
        let phase = self.followed.view().map_or(Phase::Idle, |view| view.state.phase);
        if phase == Phase::Idle {
            return self.leave_line().await;
        }
        let Some(place) = self.first().await? else {
            *lock(&self.followed.waits) = None;
            return Ok(());
        };
        let Some((state, version)) = fleet.board.state(&self.name).await? else { return Ok(()) };
        self.step(&place, state, version).await
    }

    async fn leave_line(&mut self) -> Result<(), Trouble> {
        *lock(&self.followed.waits) = None;
        self.news = None;
        if self.followed.ordering.load(SeqCst) > 0 {
            return Ok(());
        }
        self.daemon.fleet.leave_line(&self.name).await
    }

    /// This host's place, if it is the first in line.
    async fn first(&mut self) -> Result<Option<String>, Trouble> {
        let fleet = Arc::clone(&self.daemon.fleet);
        let line = fleet.board.drivers(&self.name).await?;
        let above = fleet.board.paths.driver(&self.name);
        if let Some(first) = line.first() {
            self.free_since = None;
            let first = format!("{above}/{first}");
            return Ok(fleet.is_mine(&first).await?.then_some(first));
        }
        let free_since = *self.free_since.get_or_insert_with(Instant::now);
        let share = fleet.host.bytes().fold(7_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte)));
        if self.is_wanted || free_since.elapsed() >= FREE_FOR + FREE_FOR * (share % 1000) / 1000 {
            self.is_wanted = false;
            let place = fleet.get_in_line(&self.name).await?;
            info!(service = self.name, place, "nobody drives the fleet's order; this host does");
        }
        Ok(None)
    }

    async fn step(&mut self, place: &str, state: FleetState, version: i32) -> Result<(), Trouble> {
        let fleet = Arc::clone(&self.daemon.fleet);
        if self.news.as_ref().is_none_or(|(of, _)| *of != state.epoch) {
            let path = fleet.board.paths.epoch(&self.name, state.epoch);
            self.news = Some((state.epoch, fleet.board.coordinator.watch(&path, true)));
            self.quorum_since_ms = None;
            self.wanted_since_ms = None;
        }
        let mut seen = fleet.board.seen(&self.name, &state, &mut self.known).await?;
        let now_ms = clock::wall_ms();
        let has_quorum = seen.ready(&state).len() >= state.needed();
        self.quorum_since_ms = if has_quorum { self.quorum_since_ms.or(Some(now_ms)) } else { None };
        seen.quorum_since_ms = self.quorum_since_ms;
        self.wanted_since_ms = state.wanted.as_ref().and(self.wanted_since_ms.or(Some(now_ms)));
        seen.wanted_since_ms = self.wanted_since_ms;
        *lock(&self.followed.marks) = Mark::ALL.map(|mark| seen.who(mark).count());
        match driver::drive(&state, &seen, now_ms) {
            Step::Wait { why, hosts } => {
                *lock(&self.followed.waits) = Some((why, hosts));
                Ok(())
            }
            Step::Become { state: mut next, text } => {
                info!(service = self.name, epoch = next.epoch, phase = ?next.phase, text, "the fleet goes on");
                if next.epoch != state.epoch {
                    fleet.board.lay_out(&self.name, next.epoch).await?;
                }
                let more = if next.phase == Phase::Go { self.left_behind(&next).await? } else { Vec::new() };
                if next.phase == Phase::Go {
                    // Whoever is left behind was read first: that takes its time.
                    next.flip_at_ms = Some(clock::wall_ms().saturating_add(next.order.lead_ms));
                }
                fleet.board.change(&self.name, place, Some(version), &next, &text, more).await?;
                if next.phase == Phase::Idle {
                    // Others may want to order something meanwhile.
                    self.leave_line().await?;
                    fleet.board.tidy(&self.name, next.epoch).await?;
                }
                Ok(())
            }
        }
    }

    /// Who is not a member leaves the server set with GO: it does not know the new lane.
    async fn left_behind(&self, next: &FleetState) -> Result<Vec<Op>, Trouble> {
        let fleet = &self.daemon.fleet;
        let set = fleet.board.paths.active_set(&self.name);
        let members = serverset::read(&*fleet.board.coordinator, &set).await?.members;
        let gone = members.into_iter().filter(|(_, member)| !next.has_member(member.host()));
        Ok(gone.map(|(node, _)| Op::Delete { path: format!("{set}/{node}"), version: None }).collect())
    }
}

/// What hosts say when they flipped, milliseconds since 1970.
pub(super) fn flips(seen: &driver::Seen) -> std::collections::BTreeMap<String, u64> {
    let flipped = seen.marks.get(&Mark::Flipped).into_iter().flatten();
    flipped.filter_map(|(host, said)| Some((host.clone(), said.at_ms?))).collect()
}
