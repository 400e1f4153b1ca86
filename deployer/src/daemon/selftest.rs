//! The self-test, at start and every minute: noted for who asks, and said aloud when it changes.

use std::{sync::Arc, time::Duration};

use tracing::{error, info, warn};

use super::{Daemon, lock};
use crate::{
    api::{SelfTest, TestResult},
    roll::record::unix_ms,
    service::selftest,
};

/// Before a test that failed is believed: a reload may have come between.
const AGAIN: Duration = Duration::from_millis(300);

type Verdict = (TestResult, String);

impl Daemon {
    /// Tests for ever.
    pub(super) async fn test_itself(self: Arc<Self>) {
        loop {
            let mut verdict = self.test().await;
            if matches!(verdict.0, TestResult::Failed | TestResult::Untested) {
                tokio::time::sleep(AGAIN).await;
                verdict = self.test().await;
            }
            self.noted(verdict);
            let every = lock(&self.config).kernel.self_test;
            tokio::time::sleep(every).await;
        }
    }

    async fn test(self: &Arc<Self>) -> Verdict {
        if let Some(verdict) = self.idle() {
            return verdict;
        }
        let mut verdict = selftest::run(&self.registry, &self.tables, &self.attachment.callers).await;
        // The hooks work; are the rules of the services those of what runs?
        if verdict.0 == TestResult::Ok
            && let Some(left_out) = self.left_out().await
        {
            verdict = (TestResult::Failed, left_out);
        }
        // What was asked for meanwhile is no fault.
        self.idle().unwrap_or(verdict)
    }

    /// Where nothing is to be steered, there is nothing to test.
    fn idle(&self) -> Option<Verdict> {
        if !self.attached() {
            return Some((TestResult::Detached, String::new()));
        }
        self.tables.bypassed().then(|| (TestResult::Bypassed, String::new()))
    }

    fn noted(&self, (result, detail): Verdict) {
        let mut noted = lock(&self.self_test);
        let (was, runs, failures) = noted
            .as_ref()
            .map_or((None, 0, 0), |test| (Some((test.result, test.detail.clone())), test.runs, test.failures));
        if was.as_ref().is_none_or(|(former, said)| *former != result || *said != detail) {
            match result {
                TestResult::Failed => {
                    error!(detail, "SELF-TEST FAILED: connections may not be steered as the tables say")
                }
                TestResult::Untested => warn!(detail, "self-test: the steering cannot be tested"),
                TestResult::Ok | TestResult::Bypassed | TestResult::Detached => info!(?result, "self-test"),
            }
        }
        self.history.self_test(result, &detail);
        let failures = failures + u64::from(result == TestResult::Failed);
        *noted = Some(SelfTest { result, detail, time_ms: unix_ms(), runs: runs + 1, failures });
    }
}
