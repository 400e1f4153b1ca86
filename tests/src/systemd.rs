//! A real systemd as PID 1 of a pid namespace, with a real dbus-daemon and the workers of the test app as units of a
//! template.
//!
//! It sees the sandbox's network, its own `/run`, `/var` and `/dev`, and no unit but those written here; it lives below the
//! workers' cgroup, which it takes for its own as in any container. `/etc` and `/proc/sys` are read-only to it, as it
//! would else set up the machine.

use std::ffi::OsStr;
use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::app::App;
use crate::http::Request;
use crate::pace::{SOON, patient};
use crate::process::{self, Process};
use crate::sandbox::{Place, Sandbox};

/// Debian's systemd; it is on no PATH.
const SYSTEMD: &str = "/lib/systemd/systemd";

/// The template's name.
pub const TEMPLATE: &str = "web@{port}.service";

/// What the template says beyond how a worker is started.
const USUAL: &str =
    "TimeoutStopSec=10\nRestart=always\nRestartSec=100ms\nStartLimitIntervalSec=10\nStartLimitBurst=5\n";

/// A running systemd. Dropping it kills it and all its units.
#[derive(Debug)]
pub struct Systemd<'a> {
    sandbox: &'a Sandbox,
    ports: RangeInclusive<u16>,
    _process: Process,
}

impl<'a> Systemd<'a> {
    /// Starts systemd with one unit a port, which it starts, and waits until it answers on the bus.
    pub fn start(sandbox: &'a Sandbox, app: &App, ports: RangeInclusive<u16>) -> Result<Self> {
        let wanted: String = ports.clone().map(|port| format!("Wants={}\n", unit(port))).collect();
        let process = launch(sandbox, system(sandbox), &template(sandbox, app, USUAL), &wanted)?;
        Ok(Self { sandbox, ports, _process: process })
    }

    fn units_dir(sandbox: &Sandbox) -> PathBuf {
        root(sandbox).join("units")
    }

    fn bus_path(sandbox: &Sandbox) -> PathBuf {
        root(sandbox).join("run/dbus/system_bus_socket")
    }

    /// Where daemons that it runs can pin: in a bpf file system that is mounted for all its units.
    pub fn pins(&self) -> PathBuf {
        root(self.sandbox).join("bpf/deployer")
    }

    /// The address of its bus, for `manager.bus`.
    pub fn bus(&self) -> String {
        format!("unix:path={}", Self::bus_path(self.sandbox).display())
    }

    /// The value of `manager`, as TOML.
    pub fn manager(&self) -> String {
        format!("{{ kind = \"systemd\", unit = {TEMPLATE:?}, bus = {:?} }}", self.bus())
    }

    /// Waits until every worker answers `GET /health` itself.
    pub fn wait_up(&self) -> Result<()> {
        let deadline = Instant::now() + patient(Duration::from_secs(60));
        for port in self.ports.clone() {
            while !self.is_up(port)? {
                if Instant::now() >= deadline {
                    bail!("worker {port} is not up: {:?}", self.property(&unit(port), "Unit", "SubState"));
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(())
    }

    fn is_up(&self, port: u16) -> Result<bool> {
        let at = std::net::SocketAddr::from(([127, 0, 0, 1], port));
        let answer = self.sandbox.in_netns(|| Request::get("/health").send(at, Duration::from_secs(10)))?;
        Ok(answer.is_ok_and(|a| a.status == 200 && a.header("X-Port") == Some(&port.to_string())))
    }

    /// Replaces a unit's settings by a drop-in, `[Service]` and what follows, and has systemd read it.
    pub fn drop_in(&self, unit: &str, text: &str) -> Result<()> {
        let dir = Self::units_dir(self.sandbox).join(format!("{unit}.d"));
        fs::create_dir_all(&dir).context("make a directory for a drop-in")?;
        fs::write(dir.join("test.conf"), text).context("write a drop-in")?;
        self.call("Reload", &[]).map(drop)
    }

    /// Writes, or with `None` removes, a unit file, and has systemd read it.
    pub fn unit_file(&self, name: &str, text: Option<&str>) -> Result<()> {
        let path = Self::units_dir(self.sandbox).join(name);
        match text {
            Some(text) => fs::write(path, text),
            None => fs::remove_file(path),
        }
        .with_context(|| format!("change {name}"))?;
        self.call("Reload", &[]).map(drop)
    }

    /// Masks a unit.
    pub fn mask(&self, name: &str) -> Result<()> {
        let path = Self::units_dir(self.sandbox).join(name);
        std::os::unix::fs::symlink("/dev/null", path).with_context(|| format!("mask {name}"))?;
        self.call("Reload", &[]).map(drop)
    }

    /// Stops the bus and its socket, so that it does not come back.
    pub fn stop_bus(&self) -> Result<()> {
        // The answer is lost with the bus.
        self.call("StopUnit", &["ss", "dbus.socket", "replace"]).ok();
        let deadline = Instant::now() + patient(Duration::from_secs(20));
        while std::os::unix::net::UnixStream::connect(Self::bus_path(self.sandbox)).is_ok() {
            if Instant::now() >= deadline {
                bail!("the bus does not stop");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Kills the bus, and waits until another one answers (started by its socket).
    pub fn restart_bus(&self) -> Result<()> {
        let pid = self.pid_of("dbus.service")?.context("the bus has no process")?;
        process::send(pid, rustix::process::Signal::KILL)?;
        let deadline = Instant::now() + patient(Duration::from_secs(20));
        while self.call("ListJobs", &[]).is_err() {
            if Instant::now() >= deadline {
                bail!("the bus does not come back");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// A call of systemd's manager: `call("StopUnit", &["ss", "web@8000.service", "replace"])`.
    pub fn call(&self, method: &str, arguments: &[&str]) -> Result<String> {
        let mut command = busctl(&Self::bus_path(self.sandbox), ["--timeout=10", "call"]);
        process::run(command.args(CALL).arg(method).args(arguments))
    }

    /// A property as busctl shows it: `s "active"`, `u 0`.
    pub fn property(&self, unit: &str, interface: &str, name: &str) -> Result<String> {
        let object: String = unit
            .bytes()
            .map(
                |byte| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("_{byte:02x}") },
            )
            .collect();
        let object = format!("/org/freedesktop/systemd1/unit/{object}");
        let interface = format!("org.freedesktop.systemd1.{interface}");
        let mut command = busctl(&Self::bus_path(self.sandbox), ["--timeout=10", "get-property"]);
        let text = process::run(command.args(["org.freedesktop.systemd1", &object, &interface, name]))?;
        Ok(text.trim().to_owned())
    }

    /// The process of a unit, as the machine numbers it.
    pub fn pid_of(&self, unit: &str) -> Result<Option<u32>> {
        Ok(self.pids_of(unit)?.into_iter().min())
    }

    fn pids_of(&self, unit: &str) -> Result<Vec<u32>> {
        let group = self.property(unit, "Service", "ControlGroup")?;
        let group = group.trim_start_matches("s ").trim_matches('"').trim_start_matches('/');
        if group.is_empty() {
            return Ok(Vec::new());
        }
        let file = crate::sandbox::cgroup2_mount()?.join(group).join("cgroup.procs");
        let text = fs::read_to_string(&file).with_context(|| format!("processes of {}", file.display()))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// systemd's own process id, as the machine numbers it.
    pub fn pid(&self) -> Result<u32> {
        let file = self.sandbox.cgroup(Place::Workers).join("init.scope/cgroup.procs");
        let text = fs::read_to_string(&file).with_context(|| format!("{}", file.display()))?;
        text.lines().next().and_then(|line| line.parse().ok()).context("systemd has no process")
    }
}

impl Drop for Systemd<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.sandbox.kill_place(Place::Workers) {
            eprintln!("systemd: {error:#}");
        }
    }
}

/// Starts a user's systemd, which is no PID 1 and needs no pid namespace: process ids are those that everybody sees. It
/// has this template, and starts none of it. With it comes its bus's address.
pub fn of_user(sandbox: &Sandbox, template: &str) -> Result<(Process, String)> {
    let process = launch(sandbox, user(sandbox), template, "")?;
    Ok((process, format!("unix:path={}", Systemd::bus_path(sandbox).display())))
}

/// Starts a systemd and waits until it answers on its bus.
fn launch(sandbox: &Sandbox, command: Command, template: &str, wanted: &str) -> Result<Process> {
    // By `/run/systemd/system` a user's systemd sees that the host is run by one (sd_booted(3)).
    for dir in ["units", "run/dbus", "run/systemd/system", "dev", "none", "bpf", "var/lib", "var/log", "var/tmp"] {
        let dir = root(sandbox).join(dir);
        fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    }
    let units = Systemd::units_dir(sandbox);
    let file = |name: &str, text: &str| fs::write(units.join(name), text).with_context(|| format!("write {name}"));
    fs::write(root(sandbox).join("bus.conf"), bus_conf(sandbox)).context("write bus.conf")?;
    file("dbus.socket", "[Unit]\nDefaultDependencies=no\n[Socket]\nListenStream=/run/dbus/system_bus_socket\n")?;
    file("dbus.service", &dbus_service(sandbox))?;
    let target = "[Unit]\nDefaultDependencies=no\nRequires=dbus.service\nAfter=dbus.service\n";
    file("test.target", &format!("{target}{wanted}"))?;
    file("web@.service", template)?;
    let mut process = Process::start("systemd", command, &sandbox.dir().join("systemd.log"))?;
    let bus = Systemd::bus_path(sandbox);
    let answers = || is_fine(busctl(&bus, ["--timeout=1", "call"]).args(CALL).args(["ListJobs"]));
    process.wait_ready(SOON, answers)?;
    Ok(process)
}

/// The unit of a worker.
pub fn unit(port: u16) -> String {
    TEMPLATE.replace("{port}", &port.to_string())
}

/// What makes a call a call of systemd's manager.
const CALL: [&str; 3] = ["org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"];

fn busctl<A: AsRef<OsStr>>(bus: &Path, arguments: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new("busctl");
    command.arg(format!("--address=unix:path={}", bus.display())).args(arguments);
    command
}

fn is_fine(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

fn root(sandbox: &Sandbox) -> PathBuf {
    sandbox.dir().join("systemd")
}

/// Everything but systemd itself is of the sandbox: its directory, its network, its cgroup.
fn system(sandbox: &Sandbox) -> Command {
    const INNER: &str = r#"set -e
        mount --make-rprivate /
        for ro in /etc /proc/sys; do mount --bind $ro $ro; mount -o remount,bind,ro $ro; done
        mount --bind "$1/run" /run
        mount --bind "$1/var" /var
        mount -t bpf bpf "$1/bpf"
        mount -t tmpfs -o mode=755 dev "$1/dev"
        for node in null zero full random urandom; do : > "$1/dev/$node"; mount --bind "/dev/$node" "$1/dev/$node"; done
        mount --move "$1/dev" /dev
        umount -R -l /sys/fs/cgroup
        mount -t cgroup2 cgroup2 /sys/fs/cgroup
        exec env -i PATH="$PATH" container=deployer-test SYSTEMD_UNIT_PATH="$1/units" SYSTEMD_GENERATOR_PATH="$1/none" \
            "$0" --system --unit=test.target --log-target=null --show-status=0"#;
    let mut command = sandbox.command(Place::Workers, "unshare");
    // A pid namespace has its own /proc; the host's name is not ours to set.
    command.args(["--fork", "--pid", "--mount-proc", "--uts", "--ipc", "--kill-child", "sh", "-c", INNER, SYSTEMD]);
    command.arg(root(sandbox));
    command
}

/// A user's systemd sets up nothing of the machine; it wants to see the one hierarchy of cgroups where systemd has it.
fn user(sandbox: &Sandbox) -> Command {
    const INNER: &str = r#"set -e
        mount --make-rprivate /
        mount --bind "$1/run" /run
        umount -R -l /sys/fs/cgroup
        mount -t cgroup2 cgroup2 /sys/fs/cgroup
        exec env -i PATH="$PATH" HOME="$1" XDG_RUNTIME_DIR=/run SYSTEMD_UNIT_PATH="$1/units" \
            SYSTEMD_USER_ENVIRONMENT_GENERATOR_PATH="$1/none" SYSTEMD_GENERATOR_PATH="$1/none" \
            DBUS_SESSION_BUS_ADDRESS=unix:path=/run/dbus/system_bus_socket \
            "$0" --user --unit=test.target --log-target=null"#;
    let mut command = sandbox.command(Place::Workers, "unshare");
    command.args(["--mount", "sh", "-c", INNER, SYSTEMD]).arg(root(sandbox));
    command
}

fn bus_conf(sandbox: &Sandbox) -> String {
    format!(
        r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
  </policy>
</busconfig>
"#,
        Systemd::bus_path(sandbox).display()
    )
}

fn dbus_service(sandbox: &Sandbox) -> String {
    format!(
        "[Unit]\nDefaultDependencies=no\nRequires=dbus.socket\nAfter=dbus.socket\n[Service]\nType=notify\n\
         NotifyAccess=main\nExecStart=/usr/bin/dbus-daemon --config-file={}/bus.conf --address=systemd: --nofork \
         --nopidfile --systemd-activation\n",
        root(sandbox).display()
    )
}

/// The template of the workers, with more lines of `[Service]`.
fn template(sandbox: &Sandbox, app: &App, more: &str) -> String {
    let (service, limits): (Vec<_>, Vec<_>) = more.lines().partition(|line| !line.starts_with("StartLimit"));
    format!(
        "[Unit]\nDefaultDependencies=no\n{}\n[Service]\n\
         ExecStart=/usr/bin/python3 -s -E {} --port=%i\n\
         Environment=APP_DIR={} WORKER_HOST=127.0.0.1 WORKER_BACKLOG=128 IMPORT_SECONDS=0.3 COLD_SECONDS=0.05\n\
         StandardOutput=append:{}/web_%i.out\nStandardError=inherit\n{}\n",
        limits.join("\n"),
        app.worker().display(),
        app.dir().display(),
        sandbox.dir().display(),
        service.join("\n"),
    )
}
