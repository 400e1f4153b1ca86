//! How a roll ends.

use super::{End, Exit, Machine, Next, Outcome, Stage};

impl Machine {
    pub(super) fn end_forward(&mut self) {
        if !self.behind.is_empty() {
            self.stage = Stage::Again { back: false };
        } else if self.failed.is_empty() {
            self.over(Exit::Done, format!("{} workers restarted", self.changed.len()));
        } else {
            let text = format!("{}; all others are restarted", self.failures());
            self.over(Exit::Failed, text);
        }
    }

    /// Who is still left then stays as it is.
    pub(super) fn end_again(&mut self, back: bool) {
        if self.behind.is_empty() {
            if back { self.end_back() } else { self.end_forward() }
        } else if back {
            let failures = if self.failed.is_empty() { String::new() } else { format!(", {}", self.failures()) };
            self.over(Exit::Failed, format!("{}; rolling back{failures}", self.cause));
        } else if self.stop.is_some() {
            self.over(Exit::Stopped, format!("{}; {}", self.why(), self.so_far()));
        } else {
            let result = if self.failed.is_empty() { Exit::Incomplete } else { Exit::Failed };
            let failures = if self.failed.is_empty() { String::new() } else { format!("{}; ", self.failures()) };
            self.over(result, format!("{failures}{}", self.so_far()));
        }
    }

    pub(super) fn end_back(&mut self) {
        if !self.behind.is_empty() {
            self.stage = Stage::Again { back: true };
        } else if self.back.is_empty() {
            self.over(Exit::RolledBack, self.cause.clone());
        } else if self.failed.is_empty() {
            self.over(Exit::RolledBack, format!("{}; every worker that was changed has been rolled back", self.cause));
        } else {
            let text = format!("{}; rolling back, {}", self.cause, self.failures());
            self.over(Exit::Failed, text);
        }
    }

    /// The end, once no spare is left running. Nobody is taken again: who was left stays as it is.
    pub(super) fn over(&mut self, result: Exit, mut text: String) {
        let whys: Vec<_> = self.behind.drain(..).map(|(_, why)| why).collect();
        if !whys.is_empty() {
            text.push_str(&format!("; left as they were: {}", whys.join("; ")));
        }
        self.stage = Stage::Retire(Next::Over(End { result, text }));
    }

    /// The end of a roll some of whose spares could not be retired.
    pub(super) fn with_unretired(&self, End { result, text }: End) -> End {
        if self.unretired.is_empty() {
            return End { result, text };
        }
        let failed = self.unretired.iter().any(|outcome| matches!(outcome, Outcome::Failed(_)));
        let result = match result {
            Exit::Done if failed => Exit::Failed,
            Exit::Done => Exit::Stopped,
            Exit::RolledBack => Exit::Failed,
            other => other,
        };
        let whys: Vec<_> = self.unretired.iter().filter_map(Outcome::trouble).collect();
        End { result, text: format!("{text}; not retired: {}", whys.join("; ")) }
    }

    pub(super) fn why(&self) -> &str {
        self.stop.as_deref().unwrap_or_default()
    }

    pub(super) fn failures(&self) -> String {
        self.failed.iter().map(|(_, why)| why.as_str()).collect::<Vec<_>>().join("; ")
    }

    pub(super) fn so_far(&self) -> String {
        let total: usize = self.plan.batches.iter().map(Vec::len).sum();
        format!("{} of {total} workers are changed, {} failed and are out", self.changed.len(), self.failed.len())
    }
}
