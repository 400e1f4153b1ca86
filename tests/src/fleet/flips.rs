//! When each host of a fleet has flipped, by who dials its service address all the while. All hosts of the bench share
//! `CLOCK_MONOTONIC`, whatever their wall clocks say.

use std::fmt;

use anyhow::{Context, Result, ensure};

use super::Host;
use crate::probe::{Probe, Probed};
use crate::site;

/// A dial begins so long after the one before has ended: by so much, and what a dial takes, a flip is known.
const PAUSE_MS: u32 = 5;

/// A probe on each host.
#[derive(Debug)]
pub struct Probes(Vec<(String, Probe)>);

/// What the probes have seen, by host.
#[derive(Clone, Debug)]
pub struct Probings(pub Vec<(String, Probed)>);

/// When one host has flipped, ns of `CLOCK_MONOTONIC`.
#[derive(Clone, Debug)]
pub struct Flip {
    /// The host.
    pub host: String,
    /// When the last connection to the former version began.
    pub after_ns: u64,
    /// When the first to the new one was there.
    pub before_ns: u64,
}

/// When all hosts have flipped.
#[derive(Clone, Debug)]
pub struct Spread(pub Vec<Flip>);

impl Probes {
    /// Begins on these hosts, in [`crate::sandbox::Place::Callers`].
    pub fn start(hosts: &[Host]) -> Result<Self> {
        let of =
            |host: &Host| Ok((host.name.clone(), Probe::start(&host.sandbox, &site::ADDRESS.to_string(), PAUSE_MS)?));
        hosts.iter().map(of).collect::<Result<_>>().map(Self)
    }

    /// Ends all of them.
    pub fn stop(self) -> Result<Probings> {
        self.0.into_iter().map(|(host, probe)| Ok((host, probe.stop()?))).collect::<Result<_>>().map(Probings)
    }
}

impl Probings {
    /// When each host first had this version after another, and had it from then on until another came.
    pub fn flips_to(&self, version: &str) -> Result<Spread> {
        self.0.iter().map(|(host, probed)| flip_to(host, probed, version)).collect::<Result<_>>().map(Spread)
    }

    /// Every dial was answered.
    pub fn must_be_whole(&self) -> Result<()> {
        for (host, probed) in &self.0 {
            ensure!(probed.failed.is_empty(), "{host}: {:?}", &probed.failed[..probed.failed.len().min(5)]);
        }
        Ok(())
    }
}

fn flip_to(host: &str, probed: &Probed, version: &str) -> Result<Flip> {
    let dialled = &probed.dialled;
    let flips = dialled.windows(2).filter(|pair| pair[0].version != version && pair[1].version == version);
    let flips: Vec<_> = flips.collect();
    ensure!(flips.len() == 1, "{host}: flipped to {version} {} times, of {} dials", flips.len(), dialled.len());
    let pair = flips.first().context("it has not flipped")?;
    Ok(Flip { host: host.to_owned(), after_ns: pair[0].begun_ns, before_ns: pair[1].done_ns })
}

impl Flip {
    /// The middle of what is known.
    #[must_use]
    pub fn at_ns(&self) -> u64 {
        self.after_ns.midpoint(self.before_ns)
    }
}

impl Spread {
    /// From the first host's flip to the last one's, ms.
    #[must_use]
    pub fn ms(&self) -> f64 {
        let at = || self.0.iter().map(Flip::at_ns);
        (at().max().unwrap_or(0) - at().min().unwrap_or(0)) as f64 / 1e6
    }

    /// So many ms it is at least, whatever the probes have missed.
    #[must_use]
    pub fn least_ms(&self) -> f64 {
        let last = self.0.iter().map(|flip| flip.after_ns).max().unwrap_or(0);
        let first = self.0.iter().map(|flip| flip.before_ns).min().unwrap_or(0);
        last.saturating_sub(first) as f64 / 1e6
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spread {:.1} ms, at least {:.1} ms:", self.ms(), self.least_ms())?;
        let first = self.0.iter().map(Flip::at_ns).min().unwrap_or(0);
        for flip in &self.0 {
            let known = (flip.before_ns - flip.after_ns) as f64 / 2e6;
            write!(f, " {} +{:.1} (±{known:.1})", flip.host, (flip.at_ns() - first) as f64 / 1e6)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::Dialled;

    fn probed(versions: &[(u64, &str)]) -> Probed {
        let dial = |(at, version): &(u64, &str)| {
            let ms = 1_000_000;
            Dialled { begun_ns: at * ms, done_ns: (at + 1) * ms, version: (*version).to_owned() }
        };
        Probed { dialled: versions.iter().map(dial).collect(), failed: Vec::new() }
    }

    #[test]
    fn the_spread_is_from_first_to_last() {
        let probings = Probings(vec![
            ("h1".to_owned(), probed(&[(0, "v1"), (10, "v1"), (20, "v2"), (30, "v2")])),
            ("h2".to_owned(), probed(&[(0, "v1"), (40, "v1"), (50, "v2")])),
        ]);
        let spread = probings.flips_to("v2").unwrap();
        assert_eq!((spread.ms(), spread.least_ms()), (30.0, 19.0), "{spread}");
        assert!(probings.flips_to("v3").is_err());
    }

    #[test]
    fn to_and_fro_is_no_flip() {
        let probings = Probings(vec![("h1".to_owned(), probed(&[(0, "v1"), (1, "v2"), (2, "v1"), (3, "v2")]))]);
        assert!(probings.flips_to("v2").is_err());
    }
}
