//! The emergency exits: bypass and detach. They work at any time by force, and say what becomes of a roll or deploy.

use std::sync::Arc;

use super::{Daemon, error::Refusal, lock};
use crate::{
    api::{BypassRequest, Change, DetachRequest, Done},
    journal::history::{About, By},
    roll::{
        Record,
        machine::{FleetPart, Machine},
    },
    service::{Service, uses::RECENT},
};

/// What becomes of a roll or deploy whose service is no longer steered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It stops after the batch in hand.
    Stops,
    /// It is ending: what it has not retired yet stays up.
    Ends,
    /// Both pools stay up until connections are steered again.
    Kept,
    /// It waits for the fleet, which is to say what becomes of it.
    Fleets {
        /// The fleet's epoch.
        epoch: u64,
    },
}

impl Fate {
    fn of(machine: Option<&Machine>) -> Self {
        let Some(machine) = machine else { return Self::Stops };
        match machine.fleet() {
            _ if machine.has_flipped() => Self::Kept,
            _ if machine.is_ending() => Self::Ends,
            Some(FleetPart { epoch, .. }) => Self::Fleets { epoch },
            None => Self::Stops,
        }
    }

    /// Whether requests may be lost: workers are being stopped, or about to be.
    fn loses(self) -> bool {
        matches!(self, Self::Stops | Self::Ends)
    }

    /// After "deploy web-1 ".
    fn told(self, service: &str) -> String {
        match self {
            Self::Stops => "stops after the batch in hand".to_owned(),
            Self::Ends => "is ending, and workers that it cannot retire stay up".to_owned(),
            Self::Kept => "is kept: both pools stay up, and it goes on when connections are steered again".to_owned(),
            Self::Fleets { epoch } => {
                format!("is the fleet's (epoch {epoch}) and goes on; to end it: deployer fleet abort {service}")
            }
        }
    }
}

impl Daemon {
    /// "deploy web-1" or "roll web-1", and what it waits for, if it does.
    pub(super) fn shown(&self, roll: &Record) -> String {
        let machine = self.machine_of(&roll.id);
        let is_deploy = machine.as_ref().is_some_and(|machine| machine.plan().deploy.is_some());
        let kind = if is_deploy { "deploy" } else { "roll" };
        let stage = match machine {
            Some(machine) if machine.is_baking() => " (it bakes)",
            Some(machine) if machine.is_turned_back() => " (it was turned back)",
            Some(machine) if machine.is_holding() => " (it holds its flip)",
            _ => "",
        };
        format!("{kind} {}{stage}", roll.id)
    }

    fn fate(&self, roll: &Record) -> Fate {
        Fate::of(self.machine_of(&roll.id).as_ref())
    }

    /// Bypasses, or goes back to steering: one write each.
    pub(super) fn bypass(&self, request: &BypassRequest, by: &str) -> Result<Done, Refusal> {
        let _gate = lock(&self.gate);
        let named = match &request.service {
            Some(name) => vec![self.service(name)?],
            None => self.registry.services().into_values().collect(),
        };
        let verb = request.service.as_ref().map_or_else(|| "bypass".to_owned(), |name| format!("bypass {name}"));
        if request.on {
            self.may_let_go(&named, request.force, &verb)?;
        }
        match &request.service {
            Some(_) => named.iter().for_each(|service| self.registry.bypass(service, request.on)),
            None => self.tables.bypass(request.on),
        }
        self.journal.update(|state| match &request.service {
            Some(name) => state.services.entry(name.clone()).or_default().bypassed = request.on,
            None => state.bypassed = request.on,
        });
        let what = request.service.as_deref().unwrap_or("every service");
        tracing::warn!(service = what, on = request.on, by, "bypass");
        let about = About { service: request.service.as_deref(), ..About::default() };
        self.history.bypass(By::Somebody(by), about, request.on);
        let done = if request.on {
            let fates = self.let_go_of(&named, &verb, by);
            format!("{what} is bypassed: every connection goes where it is dialled{fates}")
        } else {
            let running = named.iter().filter_map(|service| self.running(&service.config.name));
            running.for_each(|roll| roll.note("bypass --off", by));
            format!("{what} is steered again")
        };
        Ok(Done { done })
    }

    /// Takes everything out of the kernel.
    pub(super) fn detach(&self, request: &DetachRequest, by: &str) -> Result<Done, Refusal> {
        let _gate = lock(&self.gate);
        let services: Vec<_> = self.registry.services().into_values().collect();
        if !self.attached() {
            return Ok(Done { done: "nothing was attached".to_owned() });
        }
        self.may_let_go(&services, request.force, "detach")?;
        let mut programs = lock(&self.programs);
        let Some(attached) = programs.as_mut() else {
            return Ok(Done { done: "nothing was attached".to_owned() });
        };
        attached.detach().map_err(|error| Refusal::failed(format!("{error:#}")))?;
        *programs = None;
        drop(programs);
        tracing::warn!(by, "detached");
        self.history.tell(By::Somebody(by), About::default(), Change::Detached);
        let fates = self.let_go_of(&services, "detach", by);
        let done = format!(
            "every program is out of the kernel; connections go where they are dialled. Restart the daemon to attach \
             again{fates}"
        );
        Ok(Done { done })
    }

    /// Stops what cannot go on unsteered, and has all that runs know; what becomes of it, for the answer.
    fn let_go_of(&self, services: &[Arc<Service>], verb: &str, by: &str) -> String {
        let mut told = String::new();
        for service in services {
            let name = &service.config.name;
            let Some(roll) = self.running(name) else { continue };
            let (fate, shown) = (self.fate(&roll), self.shown(&roll));
            let what = format!("{shown} of {name} {}", fate.told(name));
            tracing::warn!(by, "{verb}: {what}");
            if fate == Fate::Stops {
                roll.note(verb, by);
                roll.ask_stop_for(by, format!("connections are not steered any more ({verb} by {by})"));
            } else {
                roll.note(&format!("{verb}: it {}", fate.told(name)), by);
            }
            told.push_str("; ");
            told.push_str(&what);
        }
        told
    }

    /// Whether connections of services may go where they are dialled. By force they always may.
    fn may_let_go(&self, services: &[Arc<Service>], force: bool, verb: &str) -> Result<(), Refusal> {
        if force {
            return Ok(());
        }
        for service in services {
            self.is_free(service, verb)?;
        }
        Ok(())
    }

    /// Whether no connection of a service needs to be steered: not while a roll or drain keeps some from workers that are
    /// going down, and not while an address is in use at which no process listens.
    fn is_free(&self, service: &Service, verb: &str) -> Result<(), Refusal> {
        let name = &service.config.name;
        if let Some(roll) = self.running(name)
            && let fate = self.fate(&roll)
            && fate.loses()
        {
            return Err(Refusal::busy(format!(
                "{} of {name} is under way; without steering, requests may be lost. Next: wait for its end, or stop it first; \
                 or accept the loss: deployer {verb} --force. Then it {}",
                self.shown(&roll),
                fate.told(name)
            )));
        }
        let uses = self.uses(service);
        if service.current() == 1 && uses.moved.is_in_use(RECENT) {
            return Err(Refusal::failed(uses.moved.refuse_pool(&format!(" of {name}"), RECENT, verb)));
        }
        match service.config.address {
            Some(address) if uses.address.is_in_use(RECENT) => {
                Err(Refusal::failed(uses.address.refuse_address(&format!("{address} of {name}"), RECENT, verb)))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roll::machine::{Baked, Deploy, Plan};

    fn machine(fleet: Option<FleetPart>) -> Machine {
        let deploy = Deploy { old: vec![0], batch: 1, hold: true, bake_ms: 1000, fleet, ..Deploy::default() };
        Machine::new(Plan { deploy: Some(deploy), surge: vec![1], max_failures: 1, ..Plan::default() })
    }

    #[test]
    fn a_deploy_is_kept_once_it_has_flipped() {
        let mut machine = machine(None);
        assert_eq!(Fate::of(Some(&machine)), Fate::Stops);
        machine.batch_done(vec![(1, crate::roll::machine::Outcome::Changed)]);
        assert!(machine.is_holding() && machine.is_waiting());
        assert_eq!(Fate::of(Some(&machine)), Fate::Stops);
        machine.released(None);
        machine.arming(1);
        machine.flipped();
        assert!(machine.is_waiting() && !Fate::of(Some(&machine)).loses());
        machine.baked(Baked::Done);
        assert_eq!(Fate::of(Some(&machine)), Fate::Ends);
    }

    #[test]
    fn what_is_the_fleets_is_left_to_it() {
        let fate = Fate::of(Some(&machine(Some(FleetPart { epoch: 7, lane: 2 }))));
        assert_eq!(fate, Fate::Fleets { epoch: 7 });
        assert!(fate.told("web").contains("(epoch 7)") && fate.told("web").contains("deployer fleet abort web"));
        assert_eq!(Fate::of(None), Fate::Stops);
        assert_eq!(Fate::of(Some(&Machine::new(Plan { batches: vec![vec![0]], ..Plan::default() }))), Fate::Stops);
    }
}
