//! Barriers of others that a roll waits for: before its first batch, or a deploy's flip. A double one is left together with
//! the others, at the end of a roll, or after the flip.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::{sync::Notify, task::JoinHandle};

use super::{deploy::LOOK, machine::End, run::Roll};
use crate::{
    api::{Exit, What},
    fleet::{
        barrier::{self, DoubleBarrier},
        coordinator::Coordinator,
    },
};

/// How long its end waits for a node to be taken away that nobody waits for.
const WITHDRAW_WITHIN: Duration = Duration::from_secs(2);

/// This host's part in barriers of others.
#[derive(Default)]
pub struct Barriers {
    /// Where they are; `None`: nowhere.
    pub coordinator: Option<Arc<dyn Coordinator>>,
    inside: Option<DoubleBarrier>,
    leaving: Option<(JoinHandle<()>, Arc<Notify>)>,
}

impl Barriers {
    /// Those of a coordinator.
    #[must_use]
    pub fn of(coordinator: Option<Arc<dyn Coordinator>>) -> Self {
        Self { coordinator, ..Self::default() }
    }
}

impl Roll {
    /// Waits for the barriers that are asked for, once. Says whether it is to go on; the loop looks why not.
    pub(super) async fn pass_barriers(&mut self) -> bool {
        let wanted = self.machine.plan().barriers.clone();
        if wanted.is_empty() || self.record.has(|what| matches!(what, What::Passed)) {
            return true;
        }
        let Some(fleet) = self.barriers.coordinator.clone() else {
            self.machine.stop("stopped: its barrier cannot be asked without connect of [fleet]", false);
            return false;
        };
        if let Some(path) = &wanted.plain
            && !self.waits(path, barrier::open(&*fleet, path)).await
        {
            return false;
        }
        if let Some(at) = wanted.double {
            let path = at.path.clone();
            // The same after a restart of the daemon, so that it is not counted twice.
            let who = format!("{} {}", rustix::system::uname().nodename().to_string_lossy(), self.record.id);
            let mut double = DoubleBarrier::new(fleet, at, who);
            if !self.waits(&path, double.enter()).await {
                double.withdraw().await;
                return false;
            }
            self.barriers.inside = Some(double);
        }
        self.record.add(What::Passed);
        true
    }

    /// Waits for this, unless it is asked to stop, or left to the next daemon. Whether it has come.
    async fn waits(&mut self, path: &str, work: impl Future<Output = Result<(), String>>) -> bool {
        self.record.add(What::Waiting { barrier: path.to_owned() });
        let done = tokio::select! {
            done = work => done,
            () = self.is_broken_off() => return false,
        };
        if let Err(why) = &done {
            self.machine.stop(&format!("stopped: {why}"), false);
        }
        done.is_ok()
    }

    async fn is_broken_off(&self) {
        while !(self.record.is_suspended() || self.record.stop_asked()) {
            self.record.orders().wait(LOOK).await;
        }
    }

    /// Leaves the double barrier after the flip, while the new version bakes.
    pub(super) fn leave_barrier(&mut self) {
        let Some(mut double) = self.barriers.inside.take() else { return };
        let enough = Arc::new(Notify::new());
        let told = Arc::clone(&enough);
        let task = tokio::spawn(async move {
            let left = tokio::select! {
                left = double.leave() => left,
                () = told.notified() => Err("the others have not left it".to_owned()),
            };
            if let Err(why) = left {
                tracing::warn!(why, "the double barrier is left alone");
                double.withdraw().await;
            }
        });
        self.barriers.leaving = Some((task, enough));
    }

    /// At the end: a roll that is done leaves together with the others; else nobody is to wait for this host.
    pub(super) async fn end_barriers(&mut self, end: &End) {
        if let Some(mut double) = self.barriers.inside.take() {
            let is_done = end.result == Exit::Done && self.machine.plan().deploy.is_none();
            let path = self.machine.plan().barriers.double.as_ref().map(|at| at.path.clone()).unwrap_or_default();
            if !is_done || !self.waits(&path, double.leave()).await {
                double.withdraw().await;
            }
        }
        if let Some((task, enough)) = self.barriers.leaving.take() {
            enough.notify_one();
            let _ = tokio::time::timeout(WITHDRAW_WITHIN, task).await;
        }
    }
}
