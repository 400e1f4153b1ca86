//! With `protect`, a user cannot even bind a worker's address.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use deployer_tests::daemon::Daemon;
use deployer_tests::pace::patient;
use deployer_tests::process::{run, send};
use deployer_tests::sandbox::{Place, Sandbox};
use rustix::process::Signal;
use serde_json::{Value, json};

/// The workers' user.
const USER: &str = "daemon";
const USER_ID: u32 = 1;
const SPARE: u16 = 8040;
const EPERM: i64 = 1;

/// What is refused. A worker's address is in use, which is another error where nothing is protected.
fn refused() -> Vec<Value> {
    let mut all = vec![
        json!(["127.0.0.1", 8000]),
        json!(["127.0.0.1", 8100]),
        json!(["0.0.0.0", 8001]),
        // The service address, and lane addresses.
        json!(["127.0.0.1", 9000]),
        json!(["0.0.0.0", 9000]),
        json!(["::", 9000]),
        json!(["127.77.0.1", 9000]),
        json!(["127.77.255.16", 9000]),
        json!(["::ffff:127.77.3.2", 9000]),
        // The kernel chooses the port.
        json!(["127.0.0.1", 0, "port=8040"]),
        json!(["0.0.0.0", 0, "port=8040"]),
        json!(["::", 0, "port=8040"]),
        json!(["127.0.0.1", 0, "mptcp", "port=8040"]),
    ];
    for host in ["127.0.0.1", "0.0.0.0", "::", "::1", "::ffff:127.0.0.1", "::ffff:0.0.0.0"] {
        for words in [&[][..], &["mptcp"], &["reuseport"]] {
            all.push([vec![json!(host), json!(SPARE)], words.iter().map(|word| json!(word)).collect()].concat().into());
        }
    }
    all.push(json!(["::", SPARE, "v6only"]));
    all
}

/// What is not: other ports, other addresses, UDP.
fn admitted() -> Vec<Value> {
    vec![
        json!(["127.0.0.1", 8041]),
        json!(["127.0.0.9", SPARE]),
        // The kernel chooses, but for once none of those that are protected.
        json!(["127.0.0.1", 0, "port=40001"]),
        json!(["0.0.0.0", 0, "mptcp", "port=40002"]),
        json!(["::", 0, "port=40003"]),
        json!(["127.0.0.1", SPARE, "udp"]),
        json!(["127.78.0.1", 9000]),
    ]
}

struct Scene<'a> {
    sandbox: &'a Sandbox,
    daemon: Daemon<'a>,
}

fn config(sandbox: &Sandbox, protect: bool) -> String {
    let (root, dir) = (sandbox.root_cgroup().display(), sandbox.dir().display());
    let protect = if protect { "protect = true\n" } else { "" };
    let manager = format!(
        "manager = {{ command = [\"/usr/bin/python3\", \"-s\", \"-S\", \"{dir}/dial.py\", \"serve\", \"127.0.0.1\", \
         \"{{port}}\", \"{{port}}\"], user = \"{USER}\", cgroup = {:?}, log = \"{dir}/log/{{port}}.log\", \
         restart = {{ first = \"200ms\", most = \"1s\" }} }}\n",
        sandbox.cgroup(Place::Workers),
    );
    format!(
        "[daemon]\nsocket = {:?}\nstate = {:?}\n[kernel]\ncallers = \"{root}\"\nworkers = \"{root}\"\npins = {:?}\n\
         [metrics]\nlisten = \"127.0.0.1:9394\"\n\
         [service.web]\n{protect}address = \"127.0.0.1:9000\"\nworkers = \"127.0.0.1:8000-8001\"\n\
         deploy = {{ second = \"127.0.0.1:8100-8101\", bake = \"1s\" }}\n{manager}\
         [service.with_spare]\n{protect}workers = \"127.0.0.1:8200\"\nspare = \"127.0.0.1:{SPARE}\"\n{manager}",
        Daemon::socket_of(sandbox),
        sandbox.state(),
        sandbox.pins(),
    )
}

impl<'a> Scene<'a> {
    fn start(sandbox: &'a Sandbox) -> Result<Self> {
        let open = |mode, path: &std::path::Path| fs::set_permissions(path, Permissions::from_mode(mode));
        open(0o755, sandbox.dir()).context("open the sandbox's directory")?;
        fs::create_dir(sandbox.dir().join("log")).context("make the logs' directory")?;
        open(0o777, &sandbox.dir().join("log")).context("open the logs' directory")?;
        let scripts = [
            ("dial.py", include_str!("../../app/dial.py")),
            ("uring.py", include_str!("../../app/uring.py")),
            ("binder.py", include_str!("../../app/binder.py")),
        ];
        for (name, text) in scripts {
            fs::write(sandbox.dir().join(name), text).with_context(|| format!("write {name}"))?;
        }
        // The kernel may choose the spare's port where it is asked to.
        fs::write(sandbox.dir().join("range"), "8030 60999\n").context("write the range")?;
        let script = "cat \"$0\" > /proc/sys/net/ipv4/ip_local_port_range";
        run(sandbox.command(Place::Outside, "sh").args(["-c", script]).arg(sandbox.dir().join("range")))?;
        let daemon = Daemon::start(sandbox, &config(sandbox, true))?;
        let scene = Self { sandbox, daemon };
        scene.until("the workers are up", || {
            Ok(scene.service()?["workers"]
                .as_array()
                .is_some_and(|all| all.len() == 2 && all.iter().all(|worker| worker["phase"] == "up")))
        })?;
        // Who may bind what is looked up beside that, once a second.
        for who in ["nobody", "workers"] {
            let is_refused = || Ok(scene.tries(&[json!(["127.0.0.1", SPARE])], who)? == [EPERM]);
            scene.until("the spare is protected", is_refused)?;
        }
        Ok(scene)
    }

    fn service(&self) -> Result<Value> {
        Ok(self.daemon.api().status()?["services"][0].clone())
    }

    /// How many calls were refused.
    fn refused(&self) -> Result<u64> {
        let status = self.daemon.api().status()?;
        let services = status["services"].as_array().context("services")?;
        services.iter().map(|service| service["binds_refused"].as_u64()).sum::<Option<u64>>().context("binds_refused")
    }

    fn until(&self, what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
        let until = Instant::now() + patient(Duration::from_secs(15));
        while !holds()? {
            ensure!(
                Instant::now() < until,
                "{what}: not after a long time: {}\n{}",
                self.service()?,
                self.daemon.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// A command that binds: as `nobody`, as the `workers`' user outside their cgroup, as `root`, or as root of a user
    /// namespace of `nobody`'s own.
    fn binder(&self, who: &str, mode: &str, tries: &[Value]) -> Result<Command> {
        let python = "/usr/bin/python3";
        let mut command = match who {
            "nobody" => self.sandbox.command_as_nobody(Place::Outside, python),
            "namespace" => {
                let mut command = self.sandbox.command_as_nobody(Place::Outside, "unshare");
                command.args(["--user", "--map-root-user", python]);
                command
            }
            "workers" => {
                let mut command = self.sandbox.command(Place::Outside, "setpriv");
                command.args([&format!("--reuid={USER_ID}"), "--clear-groups", python]);
                command
            }
            "root" => self.sandbox.command(Place::Outside, python),
            who => bail!("no {who}"),
        };
        command.args(["-s", "-S"]).arg(self.sandbox.dir().join("binder.py")).arg(mode).arg(json!(tries).to_string());
        Ok(command)
    }

    /// What each came to: 0, or an errno.
    fn tries(&self, tries: &[Value], who: &str) -> Result<Vec<i64>> {
        let said = run(&mut self.binder(who, "once", tries)?)?;
        serde_json::from_str(&said).with_context(|| format!("binder.py said {said:?}"))
    }

    /// All that must be refused is, all that must not be is not.
    fn is_protected(&self, who: &str) -> Result<()> {
        for (tries, expected) in [(refused(), EPERM), (admitted(), 0)] {
            let came = self.tries(&tries, who)?;
            let wrong: Vec<_> = tries.iter().zip(came).filter(|(_, came)| *came != expected).collect();
            ensure!(wrong.is_empty(), "{who}: not {expected}: {wrong:?}");
        }
        Ok(())
    }
}

#[test]
fn strangers_cannot_bind() -> Result<()> {
    let sandbox = Sandbox::new("protect")?;
    let mut scene = Scene::start(&sandbox)?;
    let before = scene.refused()?;
    scene.is_protected("nobody")?;
    let refused = refused().len() as u64;
    ensure!(scene.refused()? == before + refused, "{} - {before} of {refused}", scene.refused()?);
    scene.is_protected("workers")?;
    match run(sandbox.command_as_nobody(Place::Outside, "unshare").args(["--user", "--map-root-user", "true"])) {
        Ok(_) => scene.is_protected("namespace")?,
        Err(error) => eprintln!("no user namespaces here: {error:#}"),
    }
    ensure!(scene.tries(&[json!(["127.0.0.1", SPARE]), json!(["::", SPARE])], "root")? == [0, 0]);
    // It is told, with what to do.
    scene.until("the refusals are told", || {
        Ok(scene.daemon.api().status()?["trouble"].to_string().contains("bind() call"))
    })?;
    let mut curl = sandbox.command(Place::Outside, "curl");
    let page = run(curl.args(["-s", "-m", "10", "http://127.0.0.1:9394/metrics"]))?;
    let counts = page.lines().filter_map(|line| line.strip_prefix("deployer_service_binds_refused_total{"));
    let counted: u64 = counts.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum();
    ensure!(counted == scene.refused()? && counted >= 2 * refused, "{counted}: {page}");
    // Also while no daemon runs, and under the next.
    scene.daemon.process().kill()?;
    scene.is_protected("nobody")?;
    scene.daemon = Daemon::start(&sandbox, &config(&sandbox, true))?;
    scene.is_protected("nobody")?;
    // Taken out of the configuration, it is over.
    Daemon::write_config(&sandbox, &config(&sandbox, false))?;
    scene.daemon.process().signal(Signal::HUP)?;
    scene.until("a stranger may bind", || Ok(scene.tries(&[json!(["127.0.0.1", SPARE])], "nobody")? == [0]))?;
    ensure!(!scene.daemon.log().contains("panicked"), "{}", scene.daemon.log());
    Ok(())
}

/// A stranger who tries all the while never gets a worker's address, and the workers always do: when one is killed, and
/// when all are replaced.
#[test]
fn workers_get_their_addresses_back() -> Result<()> {
    let sandbox = Sandbox::new("protrace")?;
    let scene = Scene::start(&sandbox)?;
    let tries: Vec<_> = [8000, 8001, 8100, 8101].map(|port| json!(["127.0.0.1", port])).into();
    let mut binder = scene.binder("nobody", "always", &tries)?;
    let binder = binder.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("start binder.py")?;
    let ended = (|| {
        for port in [8000, 8001] {
            let file = sandbox.cgroup(Place::Workers).join(format!("web/{port}/cgroup.procs"));
            let pids = fs::read_to_string(&file).context("processes of the worker")?;
            send(pids.lines().next().context("no worker")?.parse()?, Signal::KILL)?;
            scene.until("the killed worker is down", || Ok(!is_up(&scene.service()?, port)))?;
            scene.until("the killed worker is back", || Ok(is_up(&scene.service()?, port)))?;
        }
        let roll = scene.daemon.cli(&["roll", "web"])?;
        ensure!(roll.status.success(), "{roll:?}");
        Ok(())
    })();
    let said = binder.wait_with_output().context("wait for binder.py")?.stdout;
    ended?;
    let seen: BTreeMap<String, u64> = serde_json::from_slice(&said).context("what binder.py says")?;
    eprintln!("errors by number: {seen:?}");
    ensure!(seen.len() == 1 && seen.get("1").is_some_and(|times| *times > 100), "{seen:?}");
    Ok(())
}

fn is_up(service: &Value, port: u16) -> bool {
    let at = format!("127.0.0.1:{port}");
    service["workers"].as_array().is_some_and(|all| all.iter().any(|one| one["at"] == at && one["phase"] == "up"))
}
