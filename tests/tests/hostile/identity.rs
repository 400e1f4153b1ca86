//! A user's process listens where a worker should.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use deployer_tests::api::Api;
use deployer_tests::app::App;
use deployer_tests::daemon::{Daemon, ServiceConfig};
use deployer_tests::dial::{Caller, Dial, Seen, Server, answers};
use deployer_tests::http::Request;
use deployer_tests::process::{Process, send};
use deployer_tests::rig::{Rig, Setup, wait};
use deployer_tests::sandbox::{Place, Sandbox};
use deployer_tests::stage::Stage;
use rustix::process::Signal;

const HOST: &str = "127.0.0.1";
/// What a stranger says to whoever connects.
const STRANGER: u16 = 666;
/// Takes an address as soon as it can, and answers. `line`: a number to whoever connects; `http`: 200 and a version to
/// whoever asks, as a worker would. `late`: 0.1 s after the address is free.
const SCRIPT: &str = r#"
import socket, sys, time
host, port, says, mode = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:]
while "late" in mode:
    try:
        socket.create_connection((host, port)).close()
        time.sleep(0.002)
    except OSError:
        time.sleep(0.1)
        break
while True:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if "reuseport" in mode:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if "v6only" in mode:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    try:
        sock.bind((host, port))
        sock.listen(64)
        break
    except OSError:
        sock.close()
        time.sleep(0.001)
print("listens", flush=True)
while True:
    caller, _ = sock.accept()
    try:
        if "http" in mode:
            asked = caller.recv(4096)
            print("asked", flush=True)
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(says)}\r\nConnection: close\r\n\r\n"
            caller.sendall((head + says).encode())
        else:
            print("dialled", flush=True)
            caller.sendall(says.encode() + b"\n")
            time.sleep(0.002)
    except OSError:
        pass
    caller.close()
"#;

/// A process of `nobody`'s that takes an address.
struct Stranger(Process);

impl Stranger {
    /// Begins to try, and does not wait.
    fn tries(sandbox: &Sandbox, host: &str, port: u16, mode: &[&str]) -> Result<Self> {
        let mut command = sandbox.command_as_nobody(Place::Outside, "/usr/bin/python3");
        let says = if mode.contains(&"http") { "v2".to_owned() } else { STRANGER.to_string() };
        command.args(["-s", "-S", "-c", SCRIPT, host, &port.to_string(), &says]).args(mode);
        let log: PathBuf = sandbox.dir().join(format!("stranger-{}-{port}.log", host.replace(':', "_")));
        Ok(Self(Process::start("a stranger", command, &log)?))
    }

    /// Waits until it has the address.
    fn takes(sandbox: &Sandbox, host: &str, port: u16, mode: &[&str]) -> Result<Self> {
        let stranger = Self::tries(sandbox, host, port, mode)?;
        wait("the stranger to listen", || Ok(stranger.listens()))?;
        Ok(stranger)
    }

    fn listens(&self) -> bool {
        self.0.log().contains("listens")
    }

    /// How often it was given a connection.
    fn met(&self) -> usize {
        self.0.log().lines().filter(|line| *line == "asked" || *line == "dialled").count()
    }

    fn ends(mut self) -> Result<()> {
        self.0.kill().map(drop)
    }
}

fn is_named(reason: &str, stranger: &Stranger) -> Result<()> {
    let pid = format!("(pid {}, user nobody)", stranger.0.pid());
    ensure!(reason.contains("python3") && reason.contains(&pid), "{reason:?} does not name {pid}");
    ensure!(reason.contains("Next: end that process"), "{reason:?} does not say what to do");
    Ok(())
}

fn never(seen: &[Seen], what: &str) -> Result<()> {
    let answers = answers(seen);
    eprintln!("{what}: {answers:?}");
    ensure!(!answers.contains_key(&STRANGER), "{what}: the stranger was given connections: {answers:?}");
    Ok(())
}

/// Whether the worker was ever up by the host's history, since a number of lines.
fn was_up(rig: &Rig<'_>, port: u16, since: usize) -> Result<bool> {
    let events = rig.must(&["events", "--json"])?;
    let is_up = |line: &&str| line.contains(&format!(":{port}\"")) && line.contains("\"phase\":\"up\"");
    Ok(events.lines().skip(since).any(|line| is_up(&line)))
}

#[test]
fn at_a_spare_s_address() -> Result<()> {
    let sandbox = Sandbox::new("hostspare")?;
    let extra = "address = \"127.0.0.1:9000\"\nspare = \"127.0.0.1:8040\"";
    let rig = Setup { extra, ..Setup::default() }.start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    let stranger = Stranger::takes(&sandbox, HOST, 8040, &[])?;
    // Also while nothing has been found out of it.
    never(&caller.once(Dial::to(HOST, 9000).times(50))?, "at once")?;
    rig.wait_phase(8040, "stranger")?;
    never(&caller.once(Dial::to(HOST, 9000).times(100))?, "after that")?;
    is_named(&rig.worker(8040)?.reason, &stranger)?;
    ensure!(!was_up(&rig, 8040, 0)?, "the stranger was up");
    // It is told of wherever an operator looks.
    for verb in [&["status"][..], &["events"]] {
        let text = rig.must(verb)?;
        ensure!(text.contains("stranger") && text.contains("user nobody"), "{verb:?}: {text}");
    }
    stranger.ends()?;
    wait("the spare to be down again", || Ok(!rig.service()?.workers.contains_key(&8040))).map(drop)
}

/// After `kill -9` of a worker; of a service of one, too, where there is no sibling to go to.
#[test]
fn in_the_place_of_a_worker_that_was_killed() -> Result<()> {
    for (name, ports) in [("hostkill", 8000..=8003), ("hostkillone", 8000..=8000)] {
        let sandbox = Sandbox::new(name)?;
        let setup = Setup { ports: ports.clone(), extra: "cold_limit = \"1s\"", ..Setup::default() };
        let mut rig = setup.start(&sandbox)?;
        let caller = Caller::at(&sandbox, Place::Callers);
        rig.stop_worker(8000)?;
        let before = rig.must(&["events", "--json"])?.lines().count();
        let stranger = Stranger::takes(&sandbox, HOST, 8000, &[])?;
        rig.wait_phase(8000, "stranger")?;
        let seen = caller.once(Dial::to(HOST, 8000).times(20))?;
        never(&seen, name)?;
        ensure!(ports.end() > ports.start() || seen.iter().all(Seen::is_refused), "with no sibling: {seen:?}");
        is_named(&rig.worker(8000)?.reason, &stranger)?;
        // Its quarantine would be over by now, if it were in one.
        sleep(Duration::from_millis(1500));
        never(&caller.once(Dial::to(HOST, 8000).times(20))?, "later")?;
        ensure!(!was_up(&rig, 8000, before)?, "the stranger was up");
        // The worker itself comes back by itself.
        stranger.ends()?;
        rig.start_worker(8000)?;
        rig.wait_phase(8000, "up")?;
        ensure!(answers(&caller.once(Dial::to(HOST, 8000).times(10))?) == [(8000, 10)].into());
    }
    Ok(())
}

/// Both on a wildcard address and at the workers' own: what they are given when the worker is not there.
#[test]
fn on_every_address() -> Result<()> {
    let sandbox = Sandbox::new("hostwild")?;
    let mut rig = Setup { ports: 8000..=8002, ..Setup::default() }.start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    for (port, host) in [(8000, "0.0.0.0"), (8001, "::")] {
        rig.stop_worker(port)?;
        let stranger = Stranger::takes(&sandbox, host, port, &[])?;
        rig.wait_phase(port, "stranger")?;
        never(&caller.once(Dial::to(HOST, port).times(20))?, host)?;
        is_named(&rig.worker(port)?.reason, &stranger)?;
        stranger.ends()?;
        rig.wait_phase(port, "down")?;
    }
    Ok(())
}

/// A stranger that waits for a worker's address in a roll, and answers as the new version would.
#[test]
fn in_a_roll() -> Result<()> {
    roll_at_a_stranger("hostroll", &["http"])
}

/// The same, which comes when the worker's start has been asked for.
#[test]
fn in_a_roll_a_moment_later() -> Result<()> {
    roll_at_a_stranger("hostrolllate", &["http", "late"])
}

fn roll_at_a_stranger(name: &str, mode: &[&str]) -> Result<()> {
    let sandbox = Sandbox::new(name)?;
    let stage = Stage::new(&sandbox)?;
    let daemon = stage.daemon(&ServiceConfig { batch: "1".to_owned(), ..ServiceConfig::default() })?;
    let stranger = Stranger::tries(&sandbox, HOST, 8001, mode)?;
    let ending = stage.roll(&daemon, &["--to", "v2"])?.end()?;
    eprintln!("{ending:?}");
    ensure!(stranger.listens(), "it did not get the address");
    let said = ending.must("failed", &["127.0.0.1:8001"]).map(|_| format!("{ending:?}"))?;
    is_named(&said, &stranger)?;
    let worker = stage.api().workers()?.remove(&8001).context("no worker 8001")?;
    ensure!(worker["phase"] == "stranger", "{worker}");
    is_named(worker["reason"].as_str().unwrap_or_default(), &stranger)?;
    stage.is_out(8001)?;
    ensure!(stranger.met() == 0, "the stranger was asked {} times", stranger.met());
    stranger.ends()?;
    stage.unharmed("a roll with a stranger").map(drop)
}

fn http_config(sandbox: &Sandbox, app: &App) -> String {
    let (cgroup, dir) = (sandbox.cgroup(Place::Workers), sandbox.dir().display());
    let manager = format!(
        "{{ command = [\"/usr/bin/python3\", \"-s\", \"-S\", \"-c\", {SCRIPT:?}, \"127.0.0.1\", \"{{port}}\", \"v1\", \
         \"http\", \"reuseport\"], user = \"nobody\", cgroup = {cgroup:?}, log = \"{dir}/log/{{port}}.log\" }}"
    );
    ServiceConfig::default().text_of(sandbox, app, "127.0.0.1:8000-8002", &manager)
}

/// Beside the worker at the same port (SO_REUSEPORT), as only the worker's own user can do it: the kernel would choose
/// among the two.
#[test]
fn beside_the_worker() -> Result<()> {
    let sandbox = Sandbox::new("hostbeside")?;
    let app = App::new(&sandbox, &["v1", "v2"])?;
    let daemon = Daemon::start(&sandbox, &http_config(&sandbox, &app))?;
    let api = Api::of(&sandbox);
    let is = |port: u16, phase: &str| Ok(api.phases()?.get(&port).is_some_and(|is| is == phase));
    wait("all to be up", || Ok(api.phases()?.values().all(|phase| phase == "up"))).with_context(|| daemon.log())?;
    let stranger = Stranger::takes(&sandbox, HOST, 8001, &["http", "reuseport"])?;
    wait("8001 to be a stranger's", || is(8001, "stranger"))?;
    let worker = api.workers()?.remove(&8001).context("no worker 8001")?;
    is_named(worker["reason"].as_str().unwrap_or_default(), &stranger)?;
    let met = stranger.met();
    let ask = || {
        let mut command = sandbox.command(Place::Callers, "curl");
        command.args(["-s", "http://127.0.0.1:8001/"]).output().context("curl")
    };
    for _ in 0..20 {
        let output = ask()?;
        ensure!(output.stdout == b"v1", "{output:?}");
    }
    ensure!(stranger.met() == met, "the stranger was asked");
    stranger.ends()?;
    wait("the worker to be up again", || is(8001, "up"))?;
    let direct =
        sandbox.in_netns(|| Request::get("/").send(([127, 0, 0, 1], 8001).into(), Duration::from_secs(5)))??;
    ensure!(direct.body == "v1", "{direct:?}");
    Ok(())
}

/// What a daemon finds when it begins: for the first time, and in the place of another that was killed.
#[test]
fn found_at_the_start_of_a_daemon() -> Result<()> {
    let sandbox = Sandbox::new("hoststart")?;
    let servers = Server::start_all(&sandbox, HOST, [8000, 8002, 8003])?;
    let first = Stranger::takes(&sandbox, HOST, 8001, &[])?;
    let mut rig = Setup { extra: "cold_limit = \"1s\"", ..Setup::default() }.attach(&sandbox, servers)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    never(&caller.once(Dial::to(HOST, 8001).times(20))?, "at the first start")?;
    rig.wait_phase(8001, "stranger")?;
    ensure!(!was_up(&rig, 8001, 0)?, "the stranger was up");
    rig.kill_daemon()?;
    let index = rig.servers.iter().position(|server| server.port == 8002).context("no 8002")?;
    rig.servers.remove(index).stop()?;
    let second = Stranger::takes(&sandbox, HOST, 8002, &[])?;
    // Nothing looks after it now, and its quarantine runs out.
    sleep(Duration::from_millis(1300));
    rig.succeed()?;
    for (port, stranger) in [(8001, &first), (8002, &second)] {
        rig.wait_phase(port, "stranger")?;
        never(&caller.once(Dial::to(HOST, port).times(20))?, "after a restart of the daemon")?;
        is_named(&rig.worker(port)?.reason, stranger)?;
    }
    let phases: BTreeMap<_, _> =
        rig.service()?.workers.into_iter().map(|(port, worker)| (port, worker.phase)).collect();
    ensure!(phases[&8000] == "up" && phases[&8003] == "up", "{phases:?}");
    Ok(())
}

/// A manager that cannot be asked takes no host down that serves. What is new waits for it.
#[test]
fn a_manager_that_cannot_be_asked() -> Result<()> {
    let sandbox = Sandbox::new("hostsilent")?;
    let manager = "{ supervisord = \"/nonexistent.sock\", program = \"web:web_{port}\" }";
    let setup = Setup { manager, extra: "cold_limit = \"1s\"", ..Setup::default() };
    let mut rig = setup.start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    let all_up = |rig: &Rig<'_>| Ok(rig.service()?.workers.values().all(|worker| worker.phase == "up"));
    wait("all to be up", || all_up(&rig))?;
    let reason = rig.worker(8000)?.reason;
    ensure!(reason.contains("found serving") && reason.contains("/nonexistent.sock"), "{reason}");
    rig.kill_daemon()?;
    rig.succeed()?;
    ensure!(all_up(&rig)?, "after a restart: {:?}", rig.service()?.workers);
    // Of the workers' own user: in quarantine, which does not run out.
    rig.stop_worker(8000)?;
    rig.start_worker(8000)?;
    rig.wait_phase(8000, "listening")?;
    rig.wait_worker(8000, "the manager is named", |worker| worker.reason.contains("/nonexistent.sock"))?;
    sleep(Duration::from_millis(1500));
    let seen = caller.once(Dial::to(HOST, 8000).times(20))?;
    ensure!(!answers(&seen).contains_key(&8000) && rig.worker(8000)?.phase == "listening", "{:?}", answers(&seen));
    // Of another: a stranger, whatever the manager would say.
    rig.stop_worker(8001)?;
    let stranger = Stranger::takes(&sandbox, HOST, 8001, &[])?;
    rig.wait_phase(8001, "stranger")?;
    never(&caller.once(Dial::to(HOST, 8001).times(20))?, "another user's")?;
    is_named(&rig.worker(8001)?.reason, &stranger)
}

/// In the place of a worker that an operator has drained, and that ended then.
#[test]
fn in_the_place_of_a_worker_that_is_drained_by_hand() -> Result<()> {
    let sandbox = Sandbox::new("hosthand")?;
    let mut rig = Setup { ports: 8000..=8001, extra: "cold_limit = \"1s\"", ..Setup::default() }.start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    rig.drain(8000)?;
    rig.servers.remove(0).stop()?;
    rig.wait_worker(8000, "its end is noticed", |worker| worker.reason.contains("has ended"))?;
    let stranger = Stranger::takes(&sandbox, HOST, 8000, &[])?;
    // Nothing else is left, so that whatever counts as the last resort would be taken.
    rig.stop_worker(8001)?;
    sleep(Duration::from_millis(1500));
    let seen = caller.once(Dial::to(HOST, 8000).times(20))?;
    never(&seen, "drained")?;
    ensure!(seen.iter().all(Seen::is_refused), "{seen:?}");
    let (_, text) = rig.verb(&["enable", "web", "8000"])?;
    eprintln!("{text}");
    rig.wait_phase(8000, "stranger")?;
    never(&caller.once(Dial::to(HOST, 8000).times(20))?, "enabled")?;
    is_named(&rig.worker(8000)?.reason, &stranger)?;
    let (exit, text) = rig.verb(&["enable", "web", "8000"])?;
    ensure!(exit == 1, "exit {exit}: {text}");
    is_named(&text, &stranger)
}

/// One that comes and goes fills neither the log nor the history.
#[test]
fn that_comes_and_goes() -> Result<()> {
    let sandbox = Sandbox::new("hostflap")?;
    let mut rig =
        Setup { ports: 8000..=8001, extra: "address = \"127.0.0.1:9000\"", ..Setup::default() }.start(&sandbox)?;
    rig.stop_worker(8000)?;
    let lines = || anyhow::Ok((rig.must(&["events", "--json"])?.lines().count(), rig.daemon.log().lines().count()));
    let before = lines()?;
    let script = "import socket, time\nwhile True:\n  all = []\n  for host, port in [('127.0.0.1', 8000)] + 40 * [('127.0.0.1', 9000)]:\n    \
                  sock = socket.socket(); sock.setsockopt(1, 15, 1); sock.bind((host, port)); sock.listen(); all.append(sock)\n  \
                  time.sleep(0.12)\n  [sock.close() for sock in all]\n  time.sleep(0.12)\n";
    let mut command = sandbox.command_as_nobody(Place::Outside, "/usr/bin/python3");
    command.args(["-s", "-S", "-c", script]);
    let _flaps = Process::start("a stranger", command, &sandbox.dir().join("flaps.log"))?;
    rig.wait_phase(8000, "stranger")?;
    sleep(Duration::from_secs(5));
    let after = lines()?;
    let (events, logged) = (after.0 - before.0, after.1 - before.1);
    eprintln!("{events} events, {logged} lines; {:?}", rig.status()?.trouble.len());
    ensure!(events < 25 && logged < 40, "{events} events, {logged} lines");
    ensure!(rig.status()?.trouble.len() <= 9, "{:?}", rig.status()?.trouble);
    Ok(())
}

/// Where nothing should listen at all: a service's address, a lane's, and `localhost` in its other spelling.
#[test]
fn at_other_addresses() -> Result<()> {
    let sandbox = Sandbox::new("hostsquat")?;
    let extra = "address = \"127.0.0.1:9000\"\ndeploy = { second = \"next\" }";
    let rig = Setup { ports: 8000..=8001, extra, ..Setup::default() }.start(&sandbox)?;
    ensure!(rig.status()?.trouble.is_empty(), "{:?}", rig.status()?.trouble);
    let check = || rig.verb(&["check", "--config", &rig.config().display().to_string()]);
    let (service, lane) = ("the service address 127.0.0.1:9000", "the lane address 127.77.1.3:9000");
    type Squats<'a> = [(&'a str, u16, &'a [&'a str], &'a [&'a str])];
    let rounds: [&Squats<'_>; 2] = [
        &[
            (HOST, 9000, &[], &[service]),
            ("127.77.1.3", 9000, &[], &[lane]),
            ("::1", 8000, &[], &["the port of worker 127.0.0.1:8000"]),
        ],
        &[
            ("0.0.0.0", 9000, &[], &[service, "the lane addresses 127.77.*.*:9000"]),
            ("::", 8001, &["v6only"], &["the port of worker 127.0.0.1:8001"]),
        ],
    ];
    for round in rounds {
        let mut strangers = Vec::new();
        for (host, port, mode, what) in round {
            let stranger = Stranger::takes(&sandbox, host, *port, mode)?;
            for what in *what {
                let told = || anyhow::Ok(rig.status()?.trouble.into_iter().find(|text| text.contains(what)));
                wait(&format!("{host} {port} to be told of"), || Ok(told()?.is_some()))?;
                is_named(&told()?.context("told of a moment ago")?, &stranger)?;
                wait("the events to tell of it", || Ok(rig.must(&["events"])?.contains(what)))?;
            }
            strangers.push(stranger);
        }
        ensure!(rig.service()?.workers.values().all(|worker| worker.phase == "up"), "{:?}", rig.service()?.workers);
        let (exit, text) = check()?;
        let failed: Vec<_> = text.lines().filter(|line| line.starts_with("FAIL") && line.contains(":9000")).collect();
        ensure!(exit == 1 && failed.len() == 2, "exit {exit}: {text}");
        strangers.into_iter().try_for_each(Stranger::ends)?;
        wait("the end to be noticed", || Ok(rig.status()?.trouble.is_empty()))?;
    }
    // Root's own, as a load balancer may have it for other addresses of the host: no alert.
    let _nginx = Server::start_saying(&sandbox, &Caller::at(&sandbox, Place::Outside), "0.0.0.0", 9000, 1)?;
    sleep(Duration::from_millis(500));
    ensure!(rig.status()?.trouble.is_empty(), "{:?}", rig.status()?.trouble);
    let (_, text) = check()?;
    ensure!(text.lines().any(|line| line.starts_with("warn") && line.contains("127.0.0.1:9000")), "{text}");
    Ok(())
}

/// Own commands that name a process: what descends from it is the worker, whatever user it has become.
#[test]
fn what_descends_from_the_process_that_a_command_names() -> Result<()> {
    let sandbox = Sandbox::new("hostpid")?;
    let pids = sandbox.dir().join("pids");
    fs::create_dir(&pids).context("make a directory")?;
    let status = format!("pid=$(cat {}/$0) && kill -0 $pid && echo pid $pid || exit 3", pids.display());
    let manager = format!(
        "{{ start = [\"/bin/true\", \"{{port}}\"], stop = [\"/bin/true\", \"{{port}}\"], status = [\"/bin/sh\", \"-c\", \
         {status:?}, \"{{port}}\"] }}"
    );
    let rig = Setup { ports: 8000..=8000, manager: manager.leak(), ..Setup::default() }.attach(&sandbox, Vec::new())?;
    // A shell of root's, whose child becomes nobody and listens.
    let mut command = sandbox.command(Place::Workers, "/bin/sh");
    let child = "setpriv --reuid=65534 --regid=65534 --clear-groups /usr/bin/python3 -s -S -c \"$0\" 127.0.0.1 8000 8000 & wait";
    command.args(["-c", child, SCRIPT]);
    let shell = Process::start("a worker", command, &sandbox.dir().join("worker.log"))?;
    fs::write(pids.join("8000"), shell.pid().to_string()).context("write its pid")?;
    rig.wait_phase(8000, "up")?;
    let seen = Caller::at(&sandbox, Place::Callers).once(Dial::to(HOST, 8000).times(5))?;
    ensure!(answers(&seen) == [(8000, 5)].into(), "{seen:?}");
    // The twin: another of nobody's.
    sandbox.kill_place(Place::Workers)?;
    rig.wait_phase(8000, "down")?;
    let other = Stranger::takes(&sandbox, HOST, 8000, &[])?;
    rig.wait_phase(8000, "stranger")?;
    is_named(&rig.worker(8000)?.reason, &other)?;
    send(other.0.pid(), Signal::KILL)?;
    rig.wait_phase(8000, "down")
}
