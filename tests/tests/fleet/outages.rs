//! Faults in every phase of a fleet's deploy: what is served goes on elsewhere, and there is one version in the end.

use anyhow::{Result, ensure};
use deployer_tests::fleet::{Fleet, Plan};
use deployer_tests::pace::is_full;

use crate::cell::{Fault, When, play};

/// What the quick set samples.
const SAMPLE: &[(Fault, When)] = &[
    (Fault::Leader, When::Ready),
    (Fault::Daemon, When::Back),
    (Fault::Host, When::Flipped),
    (Fault::ZooKeeper, When::Go),
];

fn cells() -> Vec<(Fault, When)> {
    match is_full() {
        true => Fault::ALL.into_iter().flat_map(|fault| When::ALL.map(|when| (fault, when))).collect(),
        false => SAMPLE.to_vec(),
    }
}

fn fleet() -> Result<Fleet> {
    Fleet::joined(Plan { zookeepers: 3, is_gated: true, bake: "8s", ..Plan::default() })
}

#[test]
fn every_fault_in_every_phase() -> Result<()> {
    let (mut rows, mut wrong, mut standing) = (Vec::new(), Vec::new(), None);
    for (nth, (fault, when)) in cells().into_iter().enumerate() {
        let mut bench = match standing.take() {
            Some(bench) => bench,
            None => fleet()?,
        };
        let outcome = play(&mut bench, fault, when, &format!("c{nth}"));
        let name = (format!("{fault:?}"), format!("{when:?}"));
        let row = match &outcome {
            Ok(outcome) => outcome.to_string(),
            Err(error) => format!("WRONG  {}", error.to_string().lines().next().unwrap_or_default()),
        };
        eprintln!("{:<10} {:<8} {row}", name.0, name.1);
        rows.push(format!("{:<10} {:<8} {row}", name.0, name.1));
        match outcome {
            Ok(_) => standing = Some(bench),
            // The next cell gets a fleet that nothing has happened to.
            Err(error) => wrong.push(format!("{name:?}: {error:#}")),
        }
    }
    eprintln!("\n{:<10} {:<8} outcome\n{}", "fault", "in", rows.join("\n"));
    ensure!(wrong.is_empty(), "{} of {} cells are wrong:\n{}", wrong.len(), rows.len(), wrong.join("\n\n"));
    Ok(())
}
