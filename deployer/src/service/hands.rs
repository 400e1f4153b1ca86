//! In whose hands a worker is, in words.

use super::{Control, Owner, Worker};

impl Worker {
    /// Which owner other than the watch it has, in words.
    pub(super) fn owned(&self, owner: &Owner) -> Option<String> {
        match owner {
            Owner::Watch => None,
            Owner::Roll(id) => Some(format!("{} is in the hands of roll {id}", self.at)),
            Owner::Enabling(by) => Some(format!("{} is being enabled, {by} has asked for that", self.at)),
            Owner::Hand { .. } => Some(format!(
                "{} is drained by hand; put it back first: deployer enable {} {}",
                self.at, self.service, self.at
            )),
        }
    }

    /// What keeps a client from waiting until the worker is up, in words: an owner other than the watch, or than a client
    /// that has it enabled.
    #[must_use]
    pub fn in_other_hands(&self) -> Option<String> {
        let control = self.control();
        if control.is_being_enabled() { None } else { self.owned(&control.owner) }
    }
}

impl Control {
    /// Whether a client has it started and warmed. That ends within the limit of its warm-up.
    #[must_use]
    pub fn is_being_enabled(&self) -> bool {
        matches!(self.owner, Owner::Enabling(_))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_client_may_wait_for_another_that_enables() {
        let worker = Arc::new(Worker::new(0, "127.0.0.1:8000".parse().unwrap(), "web", 0));
        assert_eq!(worker.in_other_hands(), None);
        let claim = worker.claim(Owner::Enabling("uid 0".to_owned())).unwrap();
        assert!(worker.in_other_hands().is_none() && worker.control().is_being_enabled());
        assert!(worker.claim(Owner::Roll("web-1".to_owned())).is_err_and(|why| why.contains("is being enabled")));
        drop(claim);
        let _claim = worker.claim(Owner::Roll("web-1".to_owned())).unwrap();
        assert_eq!(worker.in_other_hands().unwrap(), "127.0.0.1:8000 is in the hands of roll web-1");
    }
}
