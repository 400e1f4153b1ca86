//! What the daemon that runs has seen of its own steering.

use super::Finding;
use crate::api::{Status, TestResult};

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

#[cfg(test)]
mod tests {
    use super::{super::Level, *};
    use crate::api::SelfTest;

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
