//! What the fleet asks of this host: how a service stands, deploys and rolls that are the fleet's, and what is asked of them
//! meanwhile.

use std::sync::Arc;

use deployer_common::lanes::FlipWord;

use super::super::{Daemon, deploy::two_pools, error::Refusal};
use crate::{
    api::{DeployRequest, Phase, RollRequest},
    fleet::{
        member::{Local, Stage, Task},
        state::Release,
    },
    journal::{FleetMemory, RollState},
    kernel::host,
    roll::{
        Record,
        machine::{FleetPart, Machine},
        orders::Order,
    },
    service::{Service, Worker},
    version::Version,
};

/// What is asked of a fleet's deploy that is under way. Asked for twice, it is done once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::daemon) enum FleetOrder {
    /// Flip; it holds.
    Flip {
        /// Milliseconds since 1970; at once, if that is past.
        at_ms: u64,
    },
    /// Take a flip back that is ordered or armed; it holds again. Where it is too late for that, it flips.
    Disarm,
    /// Stop before the flip, and take it back where it is armed. Where it is too late for that, it flips. A roll stops after
    /// the batch in hand.
    Stop {
        /// Why.
        why: String,
    },
    /// While it bakes: have the old pool current at once. Both stand.
    Return {
        /// Why.
        why: String,
    },
    /// Retire the pool that is not current: the bake is over, or the time of what was turned back.
    End,
}

impl Daemon {
    /// How a service stands here; `None`: there is no such service.
    pub(in crate::daemon) fn fleet_local(&self, name: &str) -> Option<Local> {
        let service = self.registry.service(name)?;
        // Before the journal: one that ends meanwhile is seen as under way, and not as if it had never been.
        let running = self.running(name);
        let (memory, roll) = self.journal.read(|state| {
            let memory = state.services.get(name).and_then(|known| known.fleet.clone());
            (memory.unwrap_or_default(), state.rolls.iter().find(|roll| roll.service == name).cloned())
        });
        let (word, now) = (self.world.flip(&service), host::now_ms());
        let pool = word.current(now);
        let stage = match &roll {
            Some(roll) => stage(&service, roll, word, now),
            // It is about to be written down.
            None => running.as_ref().map_or(Stage::Idle, |running| Stage::Busy(running.id.clone())),
        };
        let stage = match (stage, &running) {
            // The order is on its way: it may be armed at any moment.
            (Stage::Holding(task), Some(running)) if running.orders().is_to_flip() => Stage::Armed(task, 0),
            (stage, _) => stage,
        };
        let ill = running.filter(|_| matches!(stage, Stage::Baking(..))).and_then(|running| running.ill());
        Some(Local {
            epoch: memory.epoch,
            current: release(service.pool(pool), word.lane(pool)),
            other: service.config.deploy.as_ref().and_then(|_| release(service.pool(1 - pool), word.lane(1 - pool))),
            stage,
            ended: memory.ended.map(|end| (end.epoch, end.error.map_or(Ok(()), Err))),
            ill,
        })
    }

    /// Begins a deploy that is the fleet's, and names it: it holds when it is ready, both lanes open; it bakes until it is
    /// told, and says that it is ill in place of turning back by itself. Asked for once more, it is the same.
    ///
    /// # Errors
    /// When something else is under way; when the epoch is one of the past, or the service, the lane or the version is none
    /// for it. No worker was touched.
    pub(in crate::daemon) async fn fleet_deploy(
        self: &Arc<Self>,
        name: &str,
        task: &Task,
        by: &str,
    ) -> Result<String, Refusal> {
        let service = self.service(name)?;
        let lanes = two_pools(&service)?.lanes;
        let Task { epoch, to: Release { version, lane } } = task.clone();
        if !(1..=lanes).contains(&lane) {
            return Err(Refusal::usage(format!(
                "lane {lane} is none of {name} on this host, which has 1 to {lanes}: give deploy.lanes the same value on every \
                 host of the fleet"
            )));
        }
        if let Some((running, roll)) = self.of_the_fleet(name)
            && roll.machine.fleet() == Some(FleetPart { epoch, lane })
            && roll.to.as_ref() == Some(&version)
        {
            return Ok(running.id.clone());
        }
        self.is_of_now(name, epoch).await?;
        let request = DeployRequest { hold: true, ..DeployRequest::new(version) };
        let started = self.deploy_for(name, request, Some(FleetPart { epoch, lane }), by.to_owned()).await?;
        Ok(started.id)
    }

    /// Begins a roll that is the fleet's, as configured here, and names it. Asked for once more, it is the same.
    ///
    /// # Errors
    /// When something else is under way; when the epoch is one of the past, or the roll is refused as the service is now.
    pub(in crate::daemon) async fn fleet_roll(
        self: &Arc<Self>,
        name: &str,
        epoch: u64,
        (to, force): (Option<Version>, bool),
        by: &str,
    ) -> Result<String, Refusal> {
        let service = self.service(name)?;
        if let Some((running, roll)) = self.of_the_fleet(name)
            && roll.machine.plan().fleet == Some(epoch)
        {
            return Ok(running.id.clone());
        }
        self.is_of_now(name, epoch).await?;
        let request = RollRequest { to, force, ..RollRequest::default() };
        Ok(self.roll_for(service, request, Some(epoch), by.to_owned()).await?.id)
    }

    /// Asks something of the fleet's deploy, or roll, that is under way.
    ///
    /// # Errors
    /// When none is under way, or it is not so far, or too far; nothing is kept for later.
    pub(in crate::daemon) fn fleet_order(&self, name: &str, order: FleetOrder) -> Result<(), Refusal> {
        let service = self.service(name)?;
        let Some((running, roll)) = self.of_the_fleet(name) else {
            return Err(Refusal::failed(format!("nothing of the fleet's is under way for {name} on this host")));
        };
        let machine = &roll.machine;
        match wish(machine, order).map_err(|why| Refusal::failed(format!("{} of {name} {why}", roll.id)))? {
            Wish::Done => {}
            Wish::Stop(why) => running.ask_stop(&why),
            Wish::Disarm => running.orders().disarm(machine.is_flipping()),
            Wish::Order(order @ Order::Return { .. }, what) => {
                let is_up = |worker: &Arc<Worker>| worker.control().phase == Phase::Up;
                if !service.pool(1 - service.current()).iter().any(is_up) {
                    return Err(Refusal::failed(format!(
                        "nobody of the former version of {name} is up on this host, so that it cannot serve"
                    )));
                }
                running.order(order, what, &running.by);
            }
            Wish::Order(order, what) => running.order(order, what, &running.by),
        }
        Ok(())
    }

    /// Writes down that an epoch is acted upon, before anything of it is done: those before it are refused from then on.
    ///
    /// # Errors
    /// When a later epoch has been acted upon, there is no such service, or it cannot be written down.
    pub(in crate::daemon) async fn fleet_fence(&self, name: &str, epoch: u64) -> Result<(), String> {
        if self.registry.service(name).is_none() {
            return Err(format!("there is no service `{name}` on this host"));
        }
        let known = self.journal.read(|state| state.services.get(name)?.fleet.as_ref().map(|fleet| fleet.epoch));
        let known = known.unwrap_or_default();
        if epoch < known {
            return Err(format!("epoch {epoch} of {name} is over: this host has acted upon epoch {known}"));
        }
        if epoch == known {
            // It may be on its way to the disk still.
            return self.journal.flush().await;
        }
        let written = self.journal.commit(|state| {
            let service = state.services.entry(name.to_owned()).or_default();
            let fleet: &mut FleetMemory = service.fleet.get_or_insert_default();
            fleet.epoch = fleet.epoch.max(epoch);
        });
        written.await
    }

    async fn is_of_now(&self, name: &str, epoch: u64) -> Result<(), Refusal> {
        let fenced = self.fleet_fence(name, epoch).await;
        fenced.map_err(|why| Refusal::failed(format!("{why}; no worker was touched")))
    }

    /// What is under way for the fleet.
    fn of_the_fleet(&self, name: &str) -> Option<(Arc<Record>, RollState)> {
        let running = self.running(name)?;
        let roll = self.journal.read(|state| state.rolls.iter().find(|roll| roll.id == running.id).cloned())?;
        roll.machine.plan().epoch()?;
        Some((running, roll))
    }
}

/// What is to be done about an order.
#[derive(Debug, PartialEq, Eq)]
enum Wish {
    /// Nothing: it is done.
    Done,
    /// To be stopped.
    Stop(String),
    /// Not to flip.
    Disarm,
    /// To be given on; with a word for it.
    Order(Order, &'static str),
}

/// What an order comes to as things stand. `Err`: it is not so far, or too far.
fn wish(machine: &Machine, order: FleetOrder) -> Result<Wish, String> {
    let (bakes, is_back, ends) = (machine.is_baking(), machine.is_turned_back(), machine.is_ending());
    let is_deploy = machine.fleet().is_some();
    match order {
        FleetOrder::Flip { at_ms } if machine.is_holding() => {
            Ok(Wish::Order(Order::Flip { at_ms: Some(at_ms) }, "flip"))
        }
        FleetOrder::Flip { .. } if machine.is_flipping() || bakes => Ok(Wish::Done),
        FleetOrder::Flip { .. } if is_deploy => Err("does not hold its flip: it is not ready, or ends".to_owned()),
        FleetOrder::Disarm if machine.is_holding() || machine.is_flipping() => Ok(Wish::Disarm),
        FleetOrder::Disarm => Ok(Wish::Done),
        FleetOrder::Stop { .. } if ends => Ok(Wish::Done),
        FleetOrder::Stop { .. } if machine.has_flipped() => Err("has flipped, and is not stopped any more".to_owned()),
        FleetOrder::Stop { why } => Ok(Wish::Stop(why)),
        FleetOrder::Return { why } if bakes => Ok(Wish::Order(Order::Return { why }, "rollback")),
        FleetOrder::Return { .. } if is_back => Ok(Wish::Done),
        FleetOrder::Return { .. } if is_deploy => {
            Err("does not bake: it has not flipped, or retires the other pool".to_owned())
        }
        FleetOrder::End if bakes || is_back => Ok(Wish::Order(Order::End, "end")),
        FleetOrder::End if ends => Ok(Wish::Done),
        FleetOrder::End if is_deploy => Err("has not flipped: there is no bake to end".to_owned()),
        FleetOrder::Flip { .. } | FleetOrder::Return { .. } | FleetOrder::End => Err("is a roll".to_owned()),
    }
}

/// How far a roll is, as last written down, and as the kernel has it.
fn stage(service: &Service, roll: &RollState, word: FlipWord, now: u64) -> Stage {
    let machine = &roll.machine;
    let Some(fleet) = machine.fleet() else {
        return machine.plan().epoch().map_or_else(|| Stage::Busy(roll.id.clone()), Stage::Rolling);
    };
    // Without one, what was written down of it is not valid: it is in the way, and nothing of the fleet's.
    let Some(version) = roll.to.clone() else { return Stage::Busy(roll.id.clone()) };
    let task = Task { epoch: fleet.epoch, to: Release { version, lane: fleet.lane } };
    let first = machine.plan().surge.first();
    let pool = u32::from(first.is_some_and(|nth| service.numbers(1).contains(nth)));
    let at_ms = machine.flip_at_ms();
    let (has_flipped, is_armed) = (word.current(now) == pool, word.is_armed(now));
    match () {
        () if machine.is_ending() => Stage::Ending(task),
        () if machine.is_turned_back() => Stage::Lingering(task),
        () if machine.is_baking() => Stage::Baking(task, at_ms.unwrap_or_default()),
        () if machine.is_flipping() && has_flipped => Stage::Baking(task, at_ms.unwrap_or_default()),
        () if machine.is_flipping() && is_armed => Stage::Armed(task, at_ms.unwrap_or_default()),
        () if (machine.is_holding() || machine.is_flipping()) && is_ready(service, pool, word, now) => {
            Stage::Holding(task)
        }
        () => Stage::Starting(task),
    }
}

/// Whether a pool could flip now: its lane may be dialled, and no more of it are out than may crash.
fn is_ready(service: &Service, pool: u32, word: FlipWord, now: u64) -> bool {
    let most = service.config.deploy.as_ref().map_or(0, |deploy| deploy.max_crashes);
    let out = service.pool(pool).iter().filter(|worker| worker.control().phase != Phase::Up).count();
    word.is_open(pool, now) && out as u64 <= most
}

/// What a pool runs, if some of it are up, and all of those say the same.
fn release(pool: &[Arc<Worker>], lane: u8) -> Option<Release> {
    let mut said = pool.iter().filter_map(|worker| {
        let control = worker.control();
        (control.phase == Phase::Up).then(|| control.version.clone())
    });
    let version = said.next()??;
    said.all(|other| other.as_ref() == Some(&version)).then_some(Release { version, lane })
}

#[cfg(test)]
mod tests;
