//! Starts a worker: makes the plan, runs the launcher with it, and hears whether the command runs.

use std::{collections::BTreeMap, io, net::SocketAddr, path::Path, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
    sync::watch,
};

use super::{
    account::{Accounts, User},
    launch::{Plan, Report},
    process::Process,
    trouble::Trouble,
};
use crate::{config, service::pools, workers::filled};

/// Longest wait for the launcher, which only makes a few system calls; its directory may be a remote one.
const LAUNCHED: Duration = Duration::from_secs(10);
/// Where programs are found; the daemon's own `PATH` depends on who started it.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What to start.
pub(super) fn plan(
    config: &config::Builtin,
    service: &str,
    at: SocketAddr,
    cgroup: &Path,
    log: &Path,
) -> Result<Plan, Trouble> {
    let accounts = Accounts::read().map_err(|error| Trouble::new("reading the accounts", error, ""))?;
    let user = user(config, &accounts)?;
    let other = config.user.is_some() || config.group.is_some();
    let identity = other.then(|| accounts.identity(&user, config.group.as_deref())).transpose();
    let identity =
        identity.map_err(|why| Trouble::new("manager.group", io::Error::other(why), "Write a group that exists"))?;
    let mut environment = BTreeMap::from(
        [
            ("PATH", PATH.to_owned()),
            ("HOME", user.home.clone()),
            ("USER", user.name.clone()),
            ("LOGNAME", user.name),
            ("DEPLOYER_SERVICE", service.to_owned()),
            ("DEPLOYER_ADDRESS", at.ip().to_string()),
            ("DEPLOYER_PORT", at.port().to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    );
    let told = told(config, at)?;
    let command = |word: &String| of_pool(filled(word, service, at), &told);
    let argv = config.command.argv.iter().map(command).collect();
    environment.extend(told);
    environment.extend(config.environment.iter().map(|(name, value)| (name.clone(), filled(value, service, at))));
    Ok(Plan {
        cgroup: cgroup.to_owned(),
        identity,
        directory: config.directory.clone(),
        argv,
        environment,
        log: log.to_owned(),
    })
}

/// What the worker's pool is told, of a service that has two.
fn told(config: &config::Builtin, at: SocketAddr) -> Result<BTreeMap<String, String>, Trouble> {
    let Some(file) = config.told.get(&at) else { return Ok(BTreeMap::new()) };
    pools::told(file).map_err(|error| Trouble::new(format!("reading {}", file.display()), error, ""))
}

/// A word of the command with what the pool is told in its places.
fn of_pool(word: String, told: &BTreeMap<String, String>) -> String {
    let places = [("{pool}", "DEPLOYER_POOL"), ("{lane}", "DEPLOYER_LANE"), ("{version}", "DEPLOYER_VERSION")];
    if told.is_empty() {
        return word;
    }
    places.iter().fold(word, |word, (place, name)| word.replace(place, told.get(*name).map_or("", String::as_str)))
}

/// Whose the worker is.
fn user(config: &config::Builtin, accounts: &Accounts) -> Result<User, Trouble> {
    let name = config.user.clone().unwrap_or_else(|| rustix::process::geteuid().as_raw().to_string());
    accounts.user(&name).ok_or_else(|| {
        let none = io::Error::new(io::ErrorKind::NotFound, format!("there is no user `{name}` in /etc/passwd"));
        Trouble::new("manager.user", none, "Write a user that exists, or add it: useradd --system NAME")
    })
}

/// Whether the accounts that a configuration names are there.
pub(super) fn check_accounts(config: &config::Builtin) -> Result<(), Trouble> {
    let at = SocketAddr::from(([127, 0, 0, 1], 0));
    plan(config, "", at, Path::new(""), Path::new("")).map(drop)
}

/// Runs the launcher until it has become the worker.
pub(super) async fn spawn(launcher: &Path, plan: &Plan) -> Result<Process, Trouble> {
    let mut command = Command::new(launcher);
    command.arg("launch").env_clear().current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    crate::kernel::descriptors::restore(command.as_std_mut());
    let shown = launcher.display().to_string();
    let failed = |error: io::Error| Trouble::new(format!("running {shown} launch"), error, "");
    let mut child = command.spawn().map_err(failed)?;
    let pid = child.id().ok_or_else(|| failed(io::Error::other("it has no process id")))?;
    // Opened while it cannot be reaped: the number is its own.
    let process = Process::open(pid).map_err(|error| Trouble::new(format!("watching process {pid}"), error, ""))?;
    match tokio::time::timeout(LAUNCHED, report(&mut child, plan)).await {
        Ok(Ok(text)) if text.is_empty() => Ok(process.with_exit(reaped(child))),
        Ok(Ok(text)) => Err(reported(&text)),
        Ok(Err(error)) => Err(failed(error)),
        Err(_) => {
            // It may yet become the worker, and nobody would know.
            let _ = child.start_kill();
            drop(reaped(child));
            let said = format!("nothing came of it within {} s", LAUNCHED.as_secs());
            Err(failed(io::Error::new(io::ErrorKind::TimedOut, said)))
        }
    }
}

/// Tells the launcher what to do, and returns what it says.
async fn report(child: &mut Child, plan: &Plan) -> io::Result<Vec<u8>> {
    let text = serde_json::to_vec(plan)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(&text).await?;
    }
    let mut said = Vec::new();
    if let Some(stdout) = child.stdout.as_mut() {
        stdout.read_to_end(&mut said).await?;
    }
    if !said.is_empty() {
        // While it ends it is still in the worker's cgroup, and could be taken for the worker.
        child.wait().await?;
    }
    Ok(said)
}

/// Waits for the child, whatever becomes of those who want to know.
fn reaped(mut child: Child) -> watch::Receiver<Option<std::process::ExitStatus>> {
    let (send, receive) = watch::channel(None);
    tokio::spawn(async move {
        if let Ok(status) = child.wait().await {
            send.send_replace(Some(status));
        }
    });
    receive
}

fn reported(text: &[u8]) -> Trouble {
    let Ok(Report { tried, errno, said }) = serde_json::from_slice(text) else {
        let said = String::from_utf8_lossy(text).into_owned();
        return Trouble::new("launching", io::Error::other(said), "");
    };
    let error = errno.map_or_else(|| io::Error::other(said), io::Error::from_raw_os_error);
    Trouble::new(format!("trying to {tried}"), error, hint(&tried))
}

fn hint(tried: &str) -> &'static str {
    match tried.split(' ').next() {
        Some("run") => "See to `manager.command`",
        Some("enter") => "Run the daemon as root, or give `manager.cgroup` to its user (see cgroups(7), delegation)",
        Some("open") => "See to `manager.log`",
        Some("become") => "Run the daemon as root, or leave `manager.user` and `manager.group` out",
        Some("go") => "See to `manager.directory`",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(toml: &str) -> config::Builtin {
        let text = format!("[service.web]\nworkers = \"[fd00::1]:8003\"\nmanager = {{ {toml} }}\n");
        let config = config::Config::parse(Path::new("test.toml"), &text).unwrap();
        let config::Manager::Builtin(config) = config.services["web"].manager.clone() else {
            panic!("another manager")
        };
        *config
    }

    #[test]
    fn a_plan_is_of_one_worker() {
        let config = config(
            "command = [\"a{}\", \"{service}:{port}@{address}\"], environment = { HOME = \"/h/{port}\", X = \"\" }",
        );
        let at = "[fd00::1]:8003".parse().unwrap();
        let plan = plan(&config, "web", at, Path::new("/c"), Path::new("/l")).unwrap();
        assert_eq!(plan.argv, ["a{}", "web:8003@fd00::1"]);
        assert!(plan.identity.is_none());
        let of = |name: &str| plan.environment.get(name).map(String::as_str);
        assert_eq!([of("HOME"), of("X"), of("PATH")], [Some("/h/8003"), Some(""), Some(PATH)]);
        let told = ["SERVICE", "ADDRESS", "PORT"].map(|name| of(&format!("DEPLOYER_{name}")).unwrap());
        assert_eq!(told, ["web", "fd00::1", "8003"]);
    }

    #[test]
    fn what_the_launcher_says_is_understood() {
        let trouble = reported(br#"{"tried":"run /x","errno":2,"said":"no"}"#);
        assert_eq!(trouble.source.raw_os_error(), Some(2));
        assert_eq!(trouble.doing, "trying to run /x");
        assert_eq!(trouble.hint, "See to `manager.command`");
        assert_eq!(reported(br#"{"tried":"x","errno":null,"said":"no"}"#).to_string(), "trying to x: no");
        for garbage in [&b"\xff"[..], b"{}", b"Segmentation fault"] {
            assert!(reported(garbage).to_string().starts_with("launching: "));
        }
    }
}
