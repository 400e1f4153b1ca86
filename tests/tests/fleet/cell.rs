//! One cell of the matrix: a fault in a phase of a fleet's deploy, under load.

use std::fmt;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use deployer_tests::dial::PYTHON;
use deployer_tests::fleet::Fleet;
use deployer_tests::fleet::orders::{active, result};
use deployer_tests::pace::is_full;
use deployer_tests::sandbox::{Place, Sandbox};
use deployer_tests::site::ended;

/// Who begins the deploy, and drives it.
const DRIVER: usize = 1;
/// Who else has a fault.
const OTHER: usize = 4;
/// Who is held where the phase is to last.
const HELD: usize = 5;
const LEAD: &str = "4s";

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The leader of three nodes of ZooKeeper is killed, and comes back.
    Leader,
    /// All of ZooKeeper is away for a while.
    ZooKeeper,
    /// The daemon that drives is killed, and another started.
    Driver,
    /// Another daemon is.
    Daemon,
    /// A host's plug is pulled, and put back.
    Host,
}

/// When.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    /// Nobody is ready.
    Prepare,
    /// All but one are ready.
    Ready,
    /// GO is out, and the instant is to come.
    Go,
    /// Both versions stand side by side.
    Flipped,
    /// The old one ends.
    Retire,
    /// Hosts return to the old one.
    Back,
}

impl Fault {
    pub(crate) const ALL: [Self; 5] = [Self::Leader, Self::ZooKeeper, Self::Driver, Self::Daemon, Self::Host];

    /// How long it lasts.
    fn lasts(self) -> Duration {
        match self {
            Self::ZooKeeper | Self::Host if is_full() => Duration::from_secs(20),
            // Three times a session's time.
            Self::ZooKeeper | Self::Host => Duration::from_secs(6),
            Self::Leader | Self::Driver | Self::Daemon => Duration::from_secs(3),
        }
    }

    /// How long the old version stays beside the new one: longer than any page lives, also one that waits for a host whose
    /// plug is pulled. The bake that ends in [`When::Retire`] is short: what a page of before waited for is over by then.
    fn bake(self, when: When) -> &'static str {
        match self {
            Self::Host if when == When::Retire => "8s",
            Self::Host if is_full() => "40s",
            Self::Host => "15s",
            _ => "8s",
        }
    }

    /// Hosts whose requests may fail.
    fn ill(self) -> &'static [&'static str] {
        match self {
            Self::Host => &["h4"],
            _ => &[],
        }
    }

    fn begin(self, fleet: &mut Fleet) -> Result<Option<usize>> {
        match self {
            Self::Leader => {
                let zookeeper = fleet.zookeeper()?;
                let leader = zookeeper.leader()?;
                return zookeeper.kill(leader).map(|()| Some(leader));
            }
            Self::ZooKeeper => fleet.zookeeper()?.kill_all()?,
            Self::Driver => fleet.host_mut(DRIVER).kill_daemon()?,
            Self::Daemon => fleet.host_mut(OTHER).kill_daemon()?,
            Self::Host => fleet.host(OTHER).cut()?,
        }
        Ok(None)
    }

    fn end(self, fleet: &mut Fleet, leader: Option<usize>) -> Result<()> {
        match self {
            Self::Leader => fleet.zookeeper()?.launch(leader.context("which was the leader")?),
            Self::ZooKeeper => {
                let zookeeper = fleet.zookeeper()?;
                (0..zookeeper.count()).try_for_each(|nth| zookeeper.launch(nth))
            }
            Self::Driver => fleet.host_mut(DRIVER).start_daemon(&[]),
            Self::Daemon => fleet.host_mut(OTHER).start_daemon(&[]),
            Self::Host => fleet.host(OTHER).plug(),
        }
    }
}

impl When {
    pub(crate) const ALL: [Self; 6] = [Self::Prepare, Self::Ready, Self::Go, Self::Flipped, Self::Retire, Self::Back];

    /// Sees to it that the phase lasts, before the deploy begins.
    fn arrange(self, fleet: &Fleet) -> Result<()> {
        match self {
            Self::Prepare => (1..=fleet.hosts.len()).try_for_each(|host| fleet.hold(host, true)),
            Self::Ready => fleet.hold(HELD, true),
            _ => Ok(()),
        }
    }

    /// Waits for it. What is returned ends by itself.
    fn reach(self, fleet: &Fleet, version: &str) -> Result<Option<Child>> {
        match self {
            Self::Prepare => fleet.wait_phase(version, "prepare").map(|_| sleep(Duration::from_secs(1)))?,
            Self::Ready => fleet.wait_marks(version, "ready", fleet.hosts.len() - 1).map(drop)?,
            Self::Go => fleet.wait_phase(version, "go").map(drop)?,
            Self::Flipped => fleet.wait_phase(version, "flipped").map(drop)?,
            Self::Retire => return retiring(fleet, version).map(Some),
            Self::Back => {
                fleet.wait_marks(version, "flipped", fleet.hosts.len())?;
                sleep(Duration::from_secs(1));
                let rollback = fleet.host(2).spawn(&["rollback", "web", "--fleet"])?;
                fleet.wait_phase(version, "back")?;
                return Ok(Some(rollback));
            }
        }
        Ok(None)
    }

    fn let_go(self, fleet: &Fleet) -> Result<()> {
        match self {
            Self::Prepare => (1..=fleet.hosts.len()).try_for_each(|host| fleet.hold(host, false)),
            Self::Ready => fleet.hold(HELD, false),
            _ => Ok(()),
        }
    }
}

/// Waits for the old version's retirement, which a host draws out for some seconds: a caller is in the middle of a request.
fn retiring(fleet: &Fleet, version: &str) -> Result<Child> {
    let web = fleet.wait_phase(version, "flipped")?;
    let lane = web["state"]["other"]["lane"].as_u64().context("the old version's lane")?;
    let caller = slow_caller(&fleet.host(HELD).sandbox, lane)?;
    fleet.wait_phase(version, "retire")?;
    Ok(caller)
}

/// Who asks at a lane twice for what takes 6 s: when the bake of 8 s is over, it is in the middle of the second.
fn slow_caller(sandbox: &Sandbox, lane: u64) -> Result<Child> {
    let code = format!(
        "import socket\nfor _ in range(2):\n s=socket.create_connection(('127.77.0.{lane}',9000),9)\n \
         s.sendall(b'GET /xhr?slow=6 HTTP/1.1\\r\\nHost: web\\r\\nConnection: close\\r\\n\\r\\n')\n while s.recv(9999): pass\n"
    );
    let mut command: Command = sandbox.command(Place::Callers, PYTHON);
    command.args(["-sE", "-c", &code]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().context("start a slow caller")
}

/// What has come of a cell.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// In which phase the fault began, and in which it was found before that ended.
    phases: (String, String),
    /// How the order ended.
    result: String,
    /// What all hosts serve.
    version: String,
    /// From the fault's end until all was settled.
    settled: Duration,
    failed: usize,
    pages: usize,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { phases: (began, ended), result, version, settled, failed, pages } = self;
        let seconds = settled.as_secs_f64();
        write!(f, "{result:<12} {version:<5} {began:>8} > {ended:<8} settled after {seconds:>5.1} s, {pages} pages, ")?;
        write!(f, "{failed} failed on the host itself, 0 mixed")
    }
}

/// Plays it: a deploy of `version`, with the fault in it. A fleet on which it fails is of no use any more.
pub(crate) fn play(fleet: &mut Fleet, fault: Fault, when: When, version: &str) -> Result<Outcome> {
    // It may be without a connection from the cell before.
    fleet.wait_joined()?;
    let old = active(&fleet.web()?).to_owned();
    let browsers = fleet.browse(version)?;
    when.arrange(fleet)?;
    let options = ["--quorum", "80%", "--lead", LEAD, "--wait", "120s", "--bake", fault.bake(when)];
    let mut deploy = fleet.deploying(DRIVER, version, &options)?;
    let other = match when.reach(fleet, version) {
        Err(error) if deploy.try_wait()?.is_some() => return Err(error.context(format!("{:?}", ended(deploy)?))),
        reached => reached?,
    };
    let phase = |fleet: &Fleet| fleet.web().map_or_else(|_| "?".to_owned(), |web| phase_of(&web));
    let began = phase(fleet);
    let leader = fault.begin(fleet)?;
    sleep(fault.lasts() / 2);
    when.let_go(fleet)?;
    sleep(fault.lasts() / 2);
    let over = phase(fleet);
    fault.end(fleet, leader)?;
    let begun = Instant::now();
    let web = fleet.settled(Duration::from_secs(150))?;
    let settled = begun.elapsed();
    let (exit, said) = ended(deploy)?;
    if let Some(mut other) = other {
        other.wait().context("wait for who had a part in it")?;
    }
    let seen = browsers.stop()?;
    let (result, serves) = (result(&web).to_owned(), active(&web).to_owned());
    let account = format!("{fault:?} in {when:?}: {result}, exit {exit}, {serves}: {said}\n{seen}");
    fleet.judge(version, &seen, fault.ill()).with_context(|| account.clone())?;
    match result.as_str() {
        "done" => ensure!(serves == version, "{account}"),
        // Nobody has met it.
        "aborted" => ensure!(serves == old && !seen.pages.contains_key(version), "{account}"),
        _ => ensure!(serves == old, "{account}"),
    }
    Ok(Outcome {
        phases: (began, over),
        result,
        version: serves,
        settled,
        failed: seen.failed,
        pages: seen.loaded.len(),
    })
}

fn phase_of(web: &serde_json::Value) -> String {
    web["state"]["phase"].as_str().unwrap_or("?").to_owned()
}
