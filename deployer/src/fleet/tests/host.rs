//! A host of the simulation: a daemon that may be dead, a disk that is not, and a kernel that flips whoever lives.

use std::{collections::BTreeSet, sync::Arc};

use super::world::{Agenda, Chance, Event};
use crate::fleet::{
    member::{Goal, Local, Stage, Task},
    paths::Mark,
    state::{FleetState, Release},
};

pub(super) struct Host {
    pub(super) name: String,
    nth: usize,
    /// The daemon runs.
    pub(super) is_up: bool,
    /// It reaches ZooKeeper.
    pub(super) is_linked: bool,
    /// What its clock is ahead of the true time, milliseconds.
    pub(super) offset: i64,
    /// Grows with each life of the daemon.
    pub(super) life: u32,
    /// Grows with each thing that its pools are at.
    work: u32,
    /// Grows with each flip that is armed or taken back.
    armed: u32,
    pub(super) local: Local,
    pub(super) view: Option<(Arc<FleetState>, i32)>,
    pub(super) said: BTreeSet<Mark>,
    /// Of which epoch; `None`: it has to look.
    pub(super) said_of: Option<u64>,
    pub(super) session: u32,
    /// What it has asked last, while it waits for the answer: nothing else is done meanwhile.
    pub(super) asked: Option<u32>,
    pub(super) questions: u32,
    /// It was told to flip, and its deploy has not heard it.
    pending: bool,
    begun: u64,
    /// Releases that it has flipped to, by its deploys' epochs.
    pub(super) flips: Vec<(u64, Release)>,
}

impl Host {
    pub(super) fn new(nth: usize, current: Release) -> Self {
        let local = Local { epoch: 0, current: Some(current), other: None, stage: Stage::Idle, ended: None, ill: None };
        Self {
            name: format!("h{nth:04}"),
            nth,
            is_up: true,
            is_linked: true,
            offset: 0,
            life: 0,
            work: 0,
            armed: 0,
            local,
            view: None,
            said: BTreeSet::new(),
            said_of: None,
            session: 0,
            asked: None,
            questions: 0,
            pending: false,
            begun: 0,
            flips: Vec::new(),
        }
    }

    pub(super) fn clock(&self, now: u64) -> u64 {
        now.saturating_add_signed(self.offset)
    }

    /// Has what is under way be done after a while; it is begun anew by a new daemon.
    fn at_work(&mut self, agenda: &mut Agenda, chance: &mut Chance) {
        self.work += 1;
        // An order is for the deploy that was under way.
        self.pending = false;
        let after = if chance.one_in(30) { chance.between(2000, 15_000) } else { chance.between(200, 2000) };
        agenda.add(after, Event::Done(self.nth, self.work));
    }

    pub(super) fn down(&mut self) {
        self.is_up = false;
        self.pending = false;
        self.asked = None;
        self.life += 1;
        self.work += 1;
        self.said_of = None;
    }

    pub(super) fn up(&mut self, agenda: &mut Agenda, chance: &mut Chance) {
        self.is_up = true;
        if matches!(self.local.stage, Stage::Starting(_) | Stage::Ending(_)) {
            self.at_work(agenda, chance);
        }
    }

    /// Does what is to be done here.
    pub(super) fn act(&mut self, goal: Goal, epoch: u64, agenda: &mut Agenda, chance: &mut Chance) {
        self.local.epoch = self.local.epoch.max(epoch);
        match goal {
            Goal::Begin(task) => self.begin(task, agenda, chance),
            // It goes through a queue of the deploy's.
            Goal::Flip(at) => {
                self.pending = true;
                agenda.add(chance.between(0, 30), Event::Ordered(self.nth, self.work, at));
            }
            Goal::Disarm => self.disarm(agenda),
            Goal::Stop => self.stop(agenda, chance),
            Goal::Return => {
                if let Stage::Baking(task, _) = self.local.stage.clone() {
                    std::mem::swap(&mut self.local.current, &mut self.local.other);
                    self.local.stage = Stage::Lingering(task);
                }
            }
            Goal::End => {
                if let Stage::Baking(task, _) | Stage::Lingering(task) = self.local.stage.clone() {
                    self.local.stage = Stage::Ending(task);
                    self.at_work(agenda, chance);
                }
            }
            Goal::Nothing | Goal::Wait | Goal::Roll { .. } | Goal::Say(_) | Goal::Confirm(_) => {}
        }
    }

    fn begin(&mut self, task: Task, agenda: &mut Agenda, chance: &mut Chance) {
        let failed = self.local.ended.as_ref().is_some_and(|(of, how)| *of == task.epoch && how.is_err());
        if self.local.stage != Stage::Idle || (failed && agenda.now < self.begun + 3000) {
            return;
        }
        self.begun = agenda.now;
        self.local.other = None;
        self.local.ill = None;
        if let Some(current) = self.local.current.as_mut().filter(|current| current.lane == task.to.lane) {
            current.lane = 0;
        }
        self.local.stage = Stage::Starting(task);
        self.at_work(agenda, chance);
    }

    /// How it stands, as its agent sees it.
    pub(super) fn seen(&self) -> Local {
        match &self.local.stage {
            Stage::Holding(task) if self.pending => {
                Local { stage: Stage::Armed(task.clone(), 0), ..self.local.clone() }
            }
            _ => self.local.clone(),
        }
    }

    fn disarm(&mut self, agenda: &Agenda) {
        self.pending = false;
        if let Stage::Armed(task, at) = self.local.stage.clone()
            && self.clock(agenda.now) + 20 < at
        {
            self.armed += 1;
            self.local.stage = Stage::Holding(task);
        }
    }

    fn stop(&mut self, agenda: &mut Agenda, chance: &mut Chance) {
        match self.local.stage.clone() {
            Stage::Starting(task) | Stage::Holding(task) => {
                self.local.stage = Stage::Ending(task);
                self.at_work(agenda, chance);
            }
            Stage::Armed(task, at) if self.clock(agenda.now) + 20 < at => {
                self.armed += 1;
                self.local.stage = Stage::Ending(task);
                self.at_work(agenda, chance);
            }
            _ => {}
        }
    }

    /// What was under way is done.
    pub(super) fn done(&mut self, work: u32, is_calm: bool, chance: &mut Chance) {
        if work != self.work || !self.is_up {
            return;
        }
        match self.local.stage.clone() {
            Stage::Starting(task) if !is_calm && chance.one_in(400) => {
                self.local.stage = Stage::Idle;
                self.local.ended = Some((task.epoch, Err("a worker did not come up".to_owned())));
            }
            Stage::Starting(task) => {
                self.local.other = Some(task.to.clone());
                self.local.stage = Stage::Holding(task);
            }
            Stage::Ending(task) => {
                let is_done = self.local.current.as_ref() == Some(&task.to);
                let how = if is_done { Ok(()) } else { Err("stopped".to_owned()) };
                self.local.other = None;
                self.local.ill = None;
                self.local.ended = Some((task.epoch, how));
                self.local.stage = Stage::Idle;
            }
            _ => {}
        }
    }

    /// The deploy hears that it is to flip.
    pub(super) fn ordered(&mut self, work: u32, at: u64, agenda: &mut Agenda) {
        let Stage::Holding(task) = self.local.stage.clone() else { return };
        if work != self.work || !self.is_up || !self.pending {
            return;
        }
        self.pending = false;
        let at = at.max(self.clock(agenda.now) + 100);
        self.armed += 1;
        let after = at - self.clock(agenda.now);
        self.local.stage = Stage::Armed(task, at);
        agenda.add(after, Event::Kernel(self.nth, self.armed));
    }

    /// The kernel's instant has come; whether it flips.
    pub(super) fn kernel(&mut self, armed: u32, now: u64) -> Option<(Task, u64)> {
        let Stage::Armed(task, at) = self.local.stage.clone() else { return None };
        if armed != self.armed {
            return None;
        }
        std::mem::swap(&mut self.local.current, &mut self.local.other);
        self.flips.push((task.epoch, task.to.clone()));
        self.local.stage = Stage::Baking(task.clone(), now);
        Some((task, at))
    }
}
