//! What the daemon that runs has seen of its own steering.

use super::Finding;
use crate::api::{CallerStatus, ServiceStatus, Status, TestResult, UnsteeredCaller};

/// The last self-test of a daemon that answers.
pub(super) fn finding(status: Option<&Status>) -> Finding {
    const WHAT: &str = "self-test";
    let Some(status) = status else {
        return Finding::ok(WHAT, "no daemon answers, so there is none to ask");
    };
    let Some(test) = &status.self_test else {
        return Finding::warn(WHAT, format!("the daemon (pid {}) has not ended its first one yet", status.pid))
            .fix("run", "deployer check again");
    };
    match test.result {
        TestResult::Ok => Finding::ok(WHAT, "a connection of the daemon's own was steered as the tables say"),
        TestResult::Bypassed => {
            Finding::warn(WHAT, "everything is bypassed: nothing is steered").fix("run", "deployer bypass --off")
        }
        TestResult::Detached => Finding::warn(WHAT, "detached: nothing is steered").fix("do", "restart the daemon"),
        TestResult::Failed => Finding::fail(WHAT, test.detail.clone()),
        TestResult::Untested => Finding::warn(WHAT, format!("the steering is not tested: {}", test.detail)),
    }
}

/// What the daemon has seen of the callers of its services: those that are not steered, and entries that fit no process.
pub(super) fn callers(status: Option<&Status>) -> Vec<Finding> {
    let services = status.into_iter().flat_map(|status| &status.services);
    services.flat_map(|service| entries(service).into_iter().chain(unsteered(service))).collect()
}

/// Entries of `callers` that fit no process, or not all that they mean.
fn entries(service: &ServiceStatus) -> Vec<Finding> {
    let odd = service.callers.iter().filter_map(|CallerStatus { caller, processes, left_out }| {
        let what = format!("service.{}.callers", service.name);
        if *left_out > 0 {
            let detail =
                format!("{caller}: no published rule fits {left_out} of its {processes} processes: not steered");
            Some(Finding::fail(what, detail).fix("see", "deployer status, which says why"))
        } else {
            let detail = format!("{caller}: no process is one just now, so no connection is steered by it");
            (*processes == 0).then(|| Finding::warn(what, detail))
        }
    });
    odd.collect()
}

/// Callers whose connections were not steered in the last minutes.
fn unsteered(service: &ServiceStatus) -> Option<Finding> {
    let named: Vec<_> = service.unsteered_callers.iter().map(one).collect();
    if named.is_empty() {
        return None;
    }
    let what = format!("service.{}: not steered", service.name);
    let detail = format!("in the last 5 minutes connections came from {}", named.join(", "));
    let fix = "their path in `callers`, if one of them is a load balancer; health checks and the like may stay out";
    Some(Finding::warn(what, detail).fix("write", fix))
}

fn one(caller: &UnsteeredCaller) -> String {
    format!("{} ({} connections)", caller.caller, caller.connections)
}

#[cfg(test)]
mod tests {
    use super::{super::Level, *};
    use crate::api::SelfTest;

    fn service(callers: Vec<CallerStatus>, unsteered_callers: Vec<UnsteeredCaller>) -> ServiceStatus {
        let text = serde_json::json!({
            "name": "web", "mode": "enforce", "policy": "steer", "address": null, "roll": null, "workers": [],
            "exhausted": 0, "unsteered": 0, "dialled": 0, "would_change": 0,
        });
        ServiceStatus { callers, unsteered_callers, ..serde_json::from_value(text).unwrap() }
    }

    #[test]
    fn callers_that_do_not_fit_are_told() {
        let entry = |processes, left_out| {
            let caller = "executable /usr/sbin/nginx".to_owned();
            vec![CallerStatus { caller, processes, left_out }]
        };
        assert!(entries(&service(entry(3, 0), Vec::new())).is_empty());
        let none = &entries(&service(entry(0, 0), Vec::new()))[0];
        assert!(none.level == Level::Warn && none.detail.contains("/usr/sbin/nginx: no process is one"), "{none}");
        let some = &entries(&service(entry(3, 1), Vec::new()))[0];
        assert!(some.level == Level::Fail && some.detail.contains("1 of its 3 processes"), "{some}");
    }

    #[test]
    fn callers_that_were_not_steered_are_named() {
        assert_eq!(unsteered(&service(Vec::new(), Vec::new())), None);
        let caller = UnsteeredCaller {
            caller: "/usr/local/bin/nginx".to_owned(),
            process: Some("nginx".to_owned()),
            pid: Some(7),
            peer: None,
            connections: 84,
            last_s: 0.5,
        };
        let found = unsteered(&service(Vec::new(), vec![caller])).unwrap();
        assert!(found.level == Level::Warn, "{found}");
        assert!(found.detail.ends_with("/usr/local/bin/nginx (84 connections)"), "{found}");
    }

    #[test]
    fn every_result_has_its_level() {
        assert_eq!(finding(None).level, Level::Ok);
        let cases = [
            (TestResult::Ok, Level::Ok),
            (TestResult::Bypassed, Level::Warn),
            (TestResult::Detached, Level::Warn),
            (TestResult::Failed, Level::Fail),
            (TestResult::Untested, Level::Warn),
        ];
        let mut status = Status {
            version: String::new(),
            pid: 1,
            attached: true,
            bypassed: false,
            callers: String::new(),
            trouble: Vec::new(),
            self_test: None,
            deferred: Vec::new(),
            services: Vec::new(),
        };
        assert_eq!(finding(Some(&status)).level, Level::Warn);
        for (result, level) in cases {
            let detail = "why".to_owned();
            status.self_test = Some(SelfTest { result, detail, time_ms: 0, runs: 1, failures: 0 });
            assert_eq!(finding(Some(&status)).level, level, "{result:?}");
        }
    }
}
