//! What a fleet says of itself, what it is told, and what its hosts serve in the end.

use std::collections::BTreeMap;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Fleet, Host};
use crate::api::Api;
use crate::http::Request;
use crate::pace::patient;

/// A host's answer to a plain request takes no longer.
const ANSWER: Duration = Duration::from_secs(5);
/// Phases are looked for so often.
const LOOK: Duration = Duration::from_millis(20);

impl Host {
    /// `GET /v1/fleet`, of this host's daemon.
    pub fn fleet(&self) -> Result<Value> {
        Api::of(&self.sandbox).ask("GET", "/v1/fleet", "")
    }

    /// Service web of the fleet, as this host's daemon knows it.
    pub fn web(&self) -> Result<Value> {
        Api::of(&self.sandbox).ask("GET", "/v1/fleet/services/web", "")
    }
}

impl Fleet {
    /// Service web of the fleet, as the first daemon knows it that answers.
    pub fn web(&self) -> Result<Value> {
        let mut running = self.hosts.iter().filter(|host| host.has_daemon());
        running.find_map(|host| host.web().ok()).context("no daemon says how the fleet stands")
    }

    /// Waits until something holds for service web of the fleet, by whatever daemon answers first.
    pub fn wait_web(&self, what: &str, limit: Duration, holds: impl Fn(&Value) -> bool) -> Result<Value> {
        let until = Instant::now() + patient(limit);
        loop {
            let seen = self.web();
            if let Ok(web) = &seen
                && holds(web)
            {
                return seen;
            }
            ensure!(Instant::now() < until, "{what}: not after {limit:?}: {seen:?}\n{}", self.log());
            std::thread::sleep(LOOK);
        }
    }

    /// Waits until the deploy of a version is in a phase: `prepare`, `go`, `cancel`, `flipped`, `back`, `retire`, `roll`, `idle`.
    pub fn wait_phase(&self, version: &str, phase: &str) -> Result<Value> {
        let is_it = |web: &Value| is_of(web, version) && web["state"]["phase"] == phase;
        self.wait_web(&format!("{version} in {phase}"), Duration::from_secs(60), is_it)
    }

    /// Waits until so many hosts say something of the deploy of a version: `ready`, `confirmed`, `flipped`, ...
    pub fn wait_marks(&self, version: &str, mark: &str, count: usize) -> Result<Value> {
        let what = format!("{count} hosts say {mark} of {version}");
        let say = |web: &Value| is_of(web, version) && marks(web, mark).len() >= count;
        self.wait_web(&what, Duration::from_secs(60), say)
    }

    /// Waits until all hosts are members that are there, and in the server set if it is followed.
    pub fn wait_joined(&self) -> Result<()> {
        let until = Instant::now() + patient(Duration::from_secs(60));
        loop {
            let seen = self.host(1).fleet();
            let alive = |fleet: &Value| {
                let hosts = fleet["hosts"].as_array().map_or(&[][..], Vec::as_slice);
                hosts.iter().filter(|host| host["alive"] == true && host["roster"] == "enabled").count()
            };
            if seen.as_ref().is_ok_and(|fleet| alive(fleet) == self.hosts.len()) {
                return Ok(());
            }
            ensure!(Instant::now() < until, "not all have joined: {seen:?}\n{}", self.log());
            std::thread::sleep(LOOK);
        }
    }

    /// `deployer deploy web --to VERSION --fleet --json`, by an operator on a host; to its end by [`crate::site::ended`].
    pub fn deploying(&self, host: usize, version: &str, more: &[&str]) -> Result<Child> {
        self.host(host).spawn(&[&["deploy", "web", "--to", version, "--fleet", "--json"], more].concat())
    }

    /// The same, to its end: its exit code, and all that it printed.
    pub fn deploy(&self, host: usize, version: &str, more: &[&str]) -> Result<(i32, String)> {
        self.host(host).verb(&[&["deploy", "web", "--to", version, "--fleet", "--json"], more].concat())
    }

    /// Keeps a host from becoming ready, if the plan has it (`gated`), or does so no more.
    pub fn hold(&self, host: usize, is_held: bool) -> Result<()> {
        let file = self.host(host).sandbox.dir().join("hold");
        match is_held {
            true => std::fs::write(file, "").context("hold a host"),
            false => std::fs::remove_file(file).context("let a host go"),
        }
    }

    /// What each host's nginx serves to who names no lane; empty: nothing.
    pub fn served(&self) -> Result<BTreeMap<String, String>> {
        let ask = |host: &Host| {
            let answer = self.front.sandbox.in_netns(|| Request::get("/version").send(host.published(), ANSWER))?;
            let version = answer.ok().filter(|answer| answer.status == 200).map(|answer| answer.body.trim().to_owned());
            Ok((host.name.clone(), version.unwrap_or_default()))
        };
        self.hosts.iter().map(ask).collect()
    }

    /// Waits until nothing is under way, every host serves what the fleet agrees on, at one lane, and has no other pool.
    /// Returns service web of the fleet.
    pub fn settled(&self, limit: Duration) -> Result<Value> {
        let until = Instant::now() + patient(limit);
        loop {
            let look = self.look();
            if let Ok((web, None)) = look {
                return Ok(web);
            }
            ensure!(Instant::now() < until, "not settled after {limit:?}: {look:?}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// The fleet, and what is not as it is to be in the end.
    fn look(&self) -> Result<(Value, Option<String>)> {
        let web = self.web()?;
        let state = &web["state"];
        if state["phase"] != "idle" {
            return Ok((web.clone(), Some(format!("phase {}", state["phase"]))));
        }
        let (version, lane) = (&state["active"]["version"], &state["active"]["lane"]);
        for host in &self.hosts {
            let service = host.service()?;
            let pools = service["pools"].as_array().context("no pools")?;
            let is_it = |pool: &Value| pool["version"] == *version && pool["lane"] == *lane;
            let is_whole = |pool: &Value| pool["up"] == self.plan.workers;
            let fits = pools.iter().all(|pool| match pool["current"] == true {
                true => is_it(pool) && is_whole(pool),
                false => pool["up"] == 0,
            });
            if !fits || !service["roll"].is_null() {
                return Ok((web.clone(), Some(format!("{}: {pools:?}", host.name))));
            }
        }
        let served = self.served()?;
        let differs = served.iter().find(|(_, served)| *version != served.as_str());
        let wrong = differs.map(|(host, served)| format!("{host} serves {served:?}, not {version}"));
        Ok((web.clone(), wrong))
    }
}

/// Who says something of the epoch in hand.
#[must_use]
pub fn marks(web: &Value, mark: &str) -> Vec<String> {
    let all = web["marks"][mark].as_array().map_or(&[][..], Vec::as_slice);
    all.iter().filter_map(|host| host.as_str().map(str::to_owned)).collect()
}

/// Whether the order in hand, or the last one, is of a version.
fn is_of(web: &Value, version: &str) -> bool {
    web["state"]["order"]["to"] == version
}

/// The version that the fleet agrees on.
#[must_use]
pub fn active(web: &Value) -> &str {
    web["state"]["active"]["version"].as_str().unwrap_or_default()
}

/// How the last order ended: `done`, `aborted`, `turned-back`.
#[must_use]
pub fn result(web: &Value) -> &str {
    web["state"]["outcome"]["result"].as_str().unwrap_or_default()
}
