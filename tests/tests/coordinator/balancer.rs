//! `deployer lb varnish --from-serverset`: hosts come and go without a hand edit, and a fault takes nobody away.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use deployer::fleet::coordinator::{Coordinator, Kind};
use deployer::fleet::serverset::{self, Endpoint, Member};
use deployer::fleet::zookeeper::ZooKeeper;
use deployer_tests::daemon::DeployerBin;
use deployer_tests::pace::patient;
use deployer_tests::process::{Process, run as must};
use deployer_tests::sandbox::{Place, Sandbox};
use deployer_tests::zookeeper::ZooKeeper as Servers;

use crate::scene::{SOON, client, create, insist, run, settings, until};

const FLEET: &str = "/deployer/shop";
const SET: &str = "/deployer/shop/serversets/web/active";
/// What does not happen within this time does not happen.
const QUIET: Duration = Duration::from_secs(1);

fn member(nth: u8) -> Member {
    let endpoint = Endpoint { host: format!("10.0.0.{nth}"), port: 8080 };
    Member::serving(endpoint, BTreeMap::from([("host".to_owned(), format!("app{nth}"))]))
}

async fn enrol(zk: &ZooKeeper, nth: u8, state: &str) -> Result<()> {
    zk.ensure(&format!("{FLEET}/roster")).await?;
    let text = format!(r#"{{"state":"{state}","by":"me","at_ms":1}}"#);
    insist(zk, &format!("{FLEET}/roster/app{nth}"), &text).await
}

/// A follower, its file, and a file with a line for each reload.
struct Follower {
    process: Process,
    out: PathBuf,
    reloads: PathBuf,
}

impl Follower {
    fn start(sandbox: &Sandbox, servers: &Servers<'_>) -> Result<Self> {
        let (out, reloads) = (sandbox.dir().join("web.vcl"), sandbox.dir().join("reloads"));
        let script = sandbox.dir().join("reload.sh");
        fs::write(&script, format!("echo \"$1\" >> {}\n", reloads.display()))?;
        let mut command = DeployerBin::find()?.command(sandbox);
        command.args(["lb", "varnish", "web", "--from-serverset", &format!("{}{FLEET}", servers.connect())]);
        command.arg("--out").arg(&out).args(["--follow", "--reload", &format!("sh {} now", script.display())]);
        let process = Process::start("deployer lb", command, &sandbox.dir().join("follower.log"))?;
        Ok(Self { process, out, reloads })
    }

    /// The hosts in the file.
    fn hosts(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.out).unwrap_or_default();
        let host = |line: &str| Some(line.trim().strip_prefix(".host = \"10.0.0.")?.strip_suffix("\";")?.to_owned());
        text.lines().filter_map(host).collect()
    }

    fn reloads(&self) -> usize {
        fs::read_to_string(&self.reloads).unwrap_or_default().lines().filter(|line| *line == "now").count()
    }

    async fn has(&self, wanted: &[&str]) -> Result<()> {
        let deadline = Instant::now() + patient(SOON);
        while self.hosts() != wanted {
            ensure!(Instant::now() < deadline, "{:?}, not {wanted:?}: {}", self.hosts(), self.process.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    async fn says(&self, word: &str) -> Result<()> {
        let deadline = Instant::now() + patient(SOON);
        while !self.process.log().contains(word) {
            ensure!(Instant::now() < deadline, "it does not say {word:?}: {}", self.process.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

/// Varnish takes the text.
fn compiles(sandbox: &Sandbox, file: &Path) -> Result<()> {
    let mut command: Command = sandbox.command(Place::Outside, "/usr/sbin/varnishd");
    command.args(["-C", "-n"]).arg(sandbox.dir().join("vcc")).arg("-f").arg(file);
    must(&mut command).map(drop)
}

#[test]
fn hosts_come_and_go_and_a_fault_takes_nobody_away() -> Result<()> {
    let sandbox = Sandbox::new("zklb")?;
    let mut servers = Servers::start(&sandbox, 1)?;
    run(&sandbox, || async {
        let zk = client(settings(&servers)).await?;
        for nth in 1..=5 {
            enrol(&zk, nth, "enabled").await?;
            serverset::publish(&zk, SET, &member(nth), None).await?;
        }
        let mut follower = Follower::start(&sandbox, &servers)?;
        follower.has(&["1", "2", "3", "4", "5"]).await?;
        compiles(&sandbox, &follower.out)?;
        tokio::time::sleep(QUIET).await;
        let first = follower.reloads();
        ensure!(first == 1, "{first} reloads");

        // Another version, another node: the same backends.
        serverset::publish(&zk, SET, &member(3), None).await?;
        tokio::time::sleep(QUIET).await;
        ensure!(follower.reloads() == first, "nothing has changed for Varnish");
        // Two of five by a fault: that is believed. A third is not, though it is half of those that are left.
        serverset::withdraw(&zk, SET, "app1").await?;
        serverset::withdraw(&zk, SET, "app2").await?;
        follower.has(&["3", "4", "5"]).await?;
        serverset::withdraw(&zk, SET, "app3").await?;
        follower.says("accept-shrink web").await?;
        ensure!(follower.hosts() == ["3", "4", "5"]);
        // Who is drained goes without a word.
        enrol(&zk, 1, "drained").await?;
        enrol(&zk, 2, "drained").await?;
        follower.has(&["4", "5"]).await?;
        follower.says("followed again").await?;

        // ZooKeeper away, and the follower begins anew meanwhile: nothing changes.
        servers.kill(0)?;
        follower.says("stay as they are").await?;
        ensure!(follower.hosts() == ["4", "5"]);
        drop(follower);
        follower = Follower::start(&sandbox, &servers)?;
        tokio::time::sleep(QUIET).await;
        ensure!(follower.hosts() == ["4", "5"]);
        let reloads = follower.reloads();
        servers.launch(0)?;
        servers.wait_ready()?;
        until(&zk, |link| link.is_connected).await?;
        for nth in [4, 5] {
            // The sessions of those who published may have ended.
            serverset::publish(&zk, SET, &member(nth), None).await?;
        }
        follower.has(&["4", "5"]).await?;
        serverset::withdraw(&zk, SET, "app4").await?;
        serverset::withdraw(&zk, SET, "app5").await?;
        follower.says("nobody of").await?;
        ensure!(!follower.hosts().is_empty(), "an empty set is no order");
        ensure!(follower.reloads() <= reloads + 1, "{} reloads", follower.reloads());

        // With an operator's word it is one.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the time")?.as_millis();
        zk.ensure(&format!("{FLEET}/services/web")).await?;
        let word = format!(r#"{{"at_ms":{now},"by":"me"}}"#);
        zk.transact(vec![create(&format!("{FLEET}/services/web/shrink"), &word, Kind::Persistent)]).await?;
        follower.has(&[]).await?;
        compiles(&sandbox, &follower.out)
    })
}

#[test]
fn once_it_prints_or_says_why_not() -> Result<()> {
    let sandbox = Sandbox::new("zkonce")?;
    let servers = Servers::start(&sandbox, 1)?;
    run(&sandbox, || async {
        let zk = client(settings(&servers)).await?;
        let once = |more: &[&str]| {
            let mut command = DeployerBin::find()?.command(&sandbox);
            let from = format!("{}{FLEET}", servers.connect());
            command.args(["lb", "varnish", "web", "--from-serverset", &from]).args(more);
            let output = command.output()?;
            let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            anyhow::Ok((output.status.code(), text))
        };
        let (exit, text) = once(&[])?;
        ensure!(exit == Some(1) && text.contains("nobody is in the server set"), "{exit:?}: {text}");
        serverset::publish(&zk, SET, &member(7), None).await?;
        let (exit, text) = once(&[])?;
        ensure!(exit == Some(0) && text.contains(".host = \"10.0.0.7\";"), "{exit:?}: {text}");
        let out = sandbox.dir().join("once.vcl");
        let (exit, text) = once(&["--out", &out.to_string_lossy()])?;
        ensure!(exit == Some(0) && text.is_empty(), "{exit:?}: {text}");
        compiles(&sandbox, &out)?;
        serverset::withdraw(&zk, SET, "app7").await?;
        let (exit, text) = once(&["--out", &out.to_string_lossy()])?;
        ensure!(exit == Some(1) && text.contains("app7") && text.contains("accept-shrink"), "{exit:?}: {text}");
        let (exit, text) = once(&["--out", &out.to_string_lossy(), "--force"])?;
        ensure!(exit == Some(0), "{exit:?}: {text}");
        compiles(&sandbox, &out)?;
        let (exit, text) = once(&["--follow"])?;
        ensure!(exit == Some(2) && text.contains("--out"), "{exit:?}: {text}");
        Ok(())
    })
}
