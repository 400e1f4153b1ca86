//! What a roll is to do: a request, for a service as it is configured and as it is now.

use super::error::Refusal;
use crate::{
    api::{Phase, RollRequest},
    config::{Batch, OnDeadline, OnFailure},
    fleet::barrier::Wanted,
    roll::machine::Plan,
    service::Service,
};

/// What a request comes to for a service.
pub(super) fn plan(service: &Service, request: &RollRequest) -> Result<Plan, Refusal> {
    let (name, config) = (&service.config.name, &service.config.roll);
    let batch: Batch = match &request.batch {
        Some(text) => text.parse().map_err(|why| Refusal::usage(format!("--batch: {why}")))?,
        None => config.batch,
    };
    if request.to.is_some() {
        can_ask_versions(service)?;
    }
    let switch = config.switch.is_some() && request.to.is_some();
    let (total, surge) = (service.workers().len(), config.surge.min(service.spares.len()));
    if total == 1 && surge == 0 && service.config.drain.on_deadline != OnDeadline::Kill {
        return Err(Refusal::failed(format!(
            "{name} has one worker, and nobody would serve while it restarts; add a worker, or a spare and \
             roll.surge = 1, or accept that by on_deadline = \"kill\""
        )));
    }
    let at_a_time = if surge > 0 { batch.of_surge(total, surge) } else { batch.of(total) };
    let most = total + surge - service.config.limits.min_up.min(total + surge);
    if total > 1 && at_a_time > most {
        return Err(below_the_floor(service, request, at_a_time, most));
    }
    // At a stranger's there is nothing to retire.
    let is_left = |phase| !matches!(phase, Phase::Down | Phase::Stranger);
    let left = service.spares.iter().enumerate().filter(|(_, spare)| is_left(spare.control().phase));
    Ok(Plan {
        batches: Plan::batches_of(service.numbers(service.current()), at_a_time),
        max_failures: config.max_failures,
        rollback: config.on_failure == OnFailure::Rollback,
        switch,
        unswitch: switch && config.unswitch.is_some(),
        surge: (total..total + surge).collect(),
        leftover: left.map(|(nth, _)| total + nth).collect(),
        // Without spares.
        back: Batch::Count(at_a_time).of(total).min(total.saturating_sub(service.config.limits.min_up)).max(1),
        deploy: None,
        fleet: None,
        barriers: Wanted { plain: request.barrier.clone(), double: request.double_barrier.clone() },
    })
}

/// A batch that would wait for its deadline, and no other could ever be up.
fn below_the_floor(service: &Service, request: &RollRequest, at_a_time: usize, most: usize) -> Refusal {
    let (name, total, min_up) = (&service.config.name, service.workers().len(), service.config.limits.min_up);
    let told = format!(
        "a batch of {at_a_time} would leave {} of the {total} workers of {name} up, and min_up = {min_up}; the largest \
         batch that works is {most}",
        total - at_a_time
    );
    match request.batch {
        Some(_) => Refusal::usage(format!("--batch: {told}")),
        None => Refusal::failed(format!("{told}: set roll.batch, or --batch {most}")),
    }
}

/// Whether a version can be asked for.
pub(super) fn can_ask_versions(service: &Service) -> Result<(), Refusal> {
    if service.config.version.is_some() {
        return Ok(());
    }
    let name = &service.config.name;
    Err(Refusal::usage(format!(
        "--to needs a way to ask a worker what it runs: add `version` to [service.{name}], \
         for example version = {{ request = \"GET /version\" }}"
    )))
}

/// A roll would have to overrule an operator who has drained a worker.
pub(super) fn no_hands(service: &Service) -> Result<(), Refusal> {
    let held = service.members().find(|worker| worker.control().by_hand().is_some());
    match held {
        Some(worker) => Err(Refusal::busy(format!(
            "{} is drained by hand ({}); put it back first: deployer enable {} {}",
            worker.at,
            worker.control().reason,
            service.config.name,
            service.name_of(worker)
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc};

    use super::*;
    use crate::{
        config::Config,
        service::{Worker, manager},
    };

    fn service(workers: u16, spares: u16, more: &str) -> Service {
        let last = 7999 + workers;
        let spare = if spares > 0 { format!("spare = \"127.0.0.1:9000-{}\"\n", 8999 + spares) } else { String::new() };
        let text = format!(
            "[service.web]\nworkers = \"127.0.0.1:8000-{last}\"\n{spare}{more}\n\
             manager = {{ start = [\"a\", \"{{port}}\"], stop = [\"b\", \"{{port}}\"], status = [\"c\", \"{{port}}\"] }}\n"
        );
        let config = Config::parse(Path::new("f"), &text).unwrap().services.remove("web").unwrap();
        let members = config.members().enumerate();
        let mut workers: Vec<_> = members.map(|(nth, at)| Arc::new(Worker::new(nth as u32, at, "web", 0))).collect();
        let spares = workers.split_off(config.workers.len());
        let manager = manager(&config, &[]);
        Service { index: 0, config, pools: [workers, Vec::new()], current: Arc::default(), spares, manager }
    }

    fn planned(service: &Service, batch: Option<&str>) -> Plan {
        let request = RollRequest { batch: batch.map(str::to_owned), ..RollRequest::default() };
        plan(service, &request).map_err(|_| "refused").unwrap()
    }

    #[test]
    fn a_batch_is_no_larger_than_the_surge() {
        let service = service(4, 4, "roll.surge = 4");
        for (batch, sizes, back) in [
            (None, vec![4], 3),
            (Some("3"), vec![3, 1], 3),
            (Some("50%"), vec![2, 2], 2),
            (Some("100%"), vec![4], 3),
            (Some("9"), vec![4], 3),
        ] {
            let plan = planned(&service, batch);
            assert_eq!(plan.batches.iter().map(Vec::len).collect::<Vec<_>>(), sizes, "{batch:?}");
            assert_eq!((plan.surge, plan.back), (vec![4, 5, 6, 7], back), "{batch:?}");
        }
    }

    #[test]
    fn one_worker_can_be_rolled_with_a_spare() {
        let plan = planned(&service(1, 1, "roll.surge = 1"), None);
        assert_eq!((plan.batches, plan.surge), (vec![vec![0]], vec![1]));
        assert!(super::plan(&service(1, 1, ""), &RollRequest::default()).is_err(), "its spare is not used");
        assert!(super::plan(&service(1, 0, ""), &RollRequest::default()).is_err());
        let leave = service(1, 0, "drain.on_deadline = \"leave\"");
        assert!(super::plan(&leave, &RollRequest::default()).is_err(), "whom it is left to is nobody");
    }

    fn refusal(service: &Service, batch: Option<&str>) -> Option<String> {
        let request = RollRequest { batch: batch.map(str::to_owned), ..RollRequest::default() };
        plan(service, &request).err().map(|refusal| format!("{refusal:?}"))
    }

    #[test]
    fn a_batch_leaves_the_floor() {
        let three = service(4, 0, "min_up = 3");
        assert_eq!(planned(&three, Some("1")).batches.len(), 4);
        let why = refusal(&three, Some("2")).unwrap();
        assert!(why.contains("would leave 2 of the 4 workers of web up, and min_up = 3"), "{why}");
        assert!(why.contains("Usage") && why.contains("the largest batch that works is 1"), "{why}");
        let configured = service(40, 0, "min_up = \"75%\"\nroll.batch = \"50%\"");
        let why = refusal(&configured, None).unwrap();
        assert!(why.contains("Failed") && why.contains("set roll.batch, or --batch 10"), "{why}");
        assert_eq!(planned(&configured, Some("25%")).batches.len(), 4);
        // What a batch may be without a floor, it may be with the least one.
        assert!(refusal(&service(2, 0, ""), Some("2")).is_none());
        assert!(
            refusal(&service(1, 0, "drain.on_deadline = \"kill\""), None).is_none(),
            "one worker, by its own leave"
        );
    }

    #[test]
    fn with_a_surge_the_floor_may_be_all() {
        let service = service(4, 2, "min_up = 4\nroll.surge = 2");
        let plan = planned(&service, None);
        assert_eq!((plan.batches.len(), plan.back), (2, 1));
        let three = self::service(4, 4, "min_up = 2\nroll.surge = 4");
        let plan = planned(&three, None);
        assert_eq!((plan.batches.len(), plan.back), (1, 2), "a roll back has no spares");
    }

    #[test]
    fn spares_that_run_are_retired_first() {
        for more in ["roll.surge = 1", ""] {
            let service = service(4, 3, more);
            service.spares[2].enter(Phase::Up, "");
            service.spares[0].enter(Phase::Failed, "");
            let plan = planned(&service, None);
            assert_eq!(plan.leftover, [4, 6]);
            assert_eq!(plan.surge, if more.is_empty() { vec![] } else { vec![4] });
            // Without a surge, it is a roll like any other.
            assert_eq!(plan.batches.len(), 4);
        }
    }
}
