//! Answers that pause in the middle: nothing passes on their connections meanwhile, and they are not over.

use std::time::Duration;

use anyhow::{Result, ensure};
use deployer_tests::load::Load;

use crate::scene::{Balancer, Scene};

/// Chunked, and with a Content-Length; begun before the watch and after it, since each roll begins one.
#[test]
fn a_pause_is_no_end() -> Result<()> {
    let scene = Scene::new("kept_pauses", Balancer::Nginx);
    let load = Load { paused: true, rate: 40.0, ..scene.load.clone() };
    let figures = Scene { load, ..scene }.run()?;
    figures.lost_nothing(Duration::from_secs(55))?;
    for kind in ["/paused/chunked", "/paused/length"] {
        let answers = figures.report.outcomes.iter().filter(|outcome| outcome.path.starts_with(kind)).count();
        ensure!(answers > 50, "{answers} of {kind}");
    }
    Ok(())
}
