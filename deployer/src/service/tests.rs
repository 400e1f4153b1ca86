//! What a worker notes of its phases.

use std::time::Duration;

use super::{Control, Worker};
use crate::api::Phase;

#[test]
fn drains_and_passed_warm_ups_add_up() {
    let worker = Worker::new(0, ([127, 0, 0, 1], 8000).into(), "web", 0);
    let spend = |phase| {
        worker.enter(phase, "");
        std::thread::sleep(Duration::from_millis(2));
    };
    [Phase::Up, Phase::Draining, Phase::Drained, Phase::Warming, Phase::Failed].into_iter().for_each(spend);
    let Control { drained, warmed, .. } = worker.control().clone();
    assert!(drained >= Duration::from_millis(2) && warmed.is_zero(), "a warm-up that failed is none: {warmed:?}");
    [Phase::Warming, Phase::Up, Phase::Draining, Phase::Up].into_iter().for_each(spend);
    let control = worker.control();
    assert!(control.drained > drained && control.warmed >= Duration::from_millis(2), "{control:?}");
}
