//! Kills at random: whom, when, and how.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use deployer_tests::crash::Kill;
use deployer_tests::load::splitmix;
use deployer_tests::process::suspend;

use crate::scene::{LARGE, OLDER, PORTS, Scene, exists};

/// How long a worker may stand still before it is killed, in ms: its accept queue fills.
const STALL: RangeInclusive<u64> = 60..=120;

/// Who kills, and whom he has killed.
pub(crate) struct Killer {
    seed: u64,
    drawn: u64,
    pub(crate) kills: Vec<Kill>,
}

impl Killer {
    /// One with the seed of `$CRASH_SEED`, or of now.
    pub(crate) fn new() -> Result<Self> {
        let seed = match std::env::var("CRASH_SEED") {
            Ok(seed) => seed.parse().with_context(|| format!("CRASH_SEED={seed}: not a number"))?,
            Err(_) => SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
        };
        eprintln!("kills at random; the seed is {seed}");
        Ok(Self { seed, drawn: 0, kills: Vec::new() })
    }

    fn draw(&mut self, range: RangeInclusive<u64>) -> u64 {
        self.drawn += 1;
        range.start() + splitmix(self.seed.wrapping_add(self.drawn << 32)) % (range.end() - range.start() + 1)
    }

    /// Kills so many, with pauses of so many ms; at least half of all workers stay up.
    pub(crate) fn run(&mut self, scene: &Scene<'_>, number: usize, pause: RangeInclusive<u64>) -> Result<()> {
        for _ in 0..number {
            std::thread::sleep(Duration::from_millis(self.draw(pause.clone())));
            let mut up = BTreeMap::new();
            scene.wait("enough workers to be up", || {
                up = scene.up(&self.kills)?;
                // Without a daemon a worker counts as up while it listens, and the kernel may still do that for the dead.
                up.retain(|port, _| {
                    self.kills.iter().rfind(|kill| kill.port == *port).is_none_or(|kill| !exists(kill.pids[0]))
                });
                Ok(up.len() > PORTS.count() / 2)
            })?;
            self.kill(scene, &up)?;
        }
        Ok(())
    }

    fn kill(&mut self, scene: &Scene<'_>, up: &BTreeMap<u16, u32>) -> Result<()> {
        let large: Vec<_> = up.iter().filter(|(port, _)| LARGE.contains(port)).collect();
        let any: Vec<_> = up.iter().collect();
        let among = if !large.is_empty() && self.draw(0..=2) == 0 { large } else { any };
        let chosen = usize::try_from(self.draw(0..=among.len() as u64 - 1))?;
        let (port, pid) = (*among[chosen].0, *among[chosen].1);
        let mut what = Vec::new();
        if LARGE.contains(&port) {
            what.push(format!("{} MB", scene.megabytes));
        }
        if scene.is_older(port, pid) {
            what.push(OLDER.to_owned());
        }
        if self.draw(0..=3) == 0 {
            suspend(pid)?;
            std::thread::sleep(Duration::from_millis(self.draw(STALL)));
            what.push("stood still".to_owned());
        }
        self.kills.push(Kill::strike(port, pid, &what.join(", "))?);
        Ok(())
    }
}
