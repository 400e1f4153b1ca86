//! Starts a worker: makes the plan, runs the launcher with it, and hears whether the command runs.

use std::{collections::BTreeMap, io, net::SocketAddr, path::Path, process::Stdio};

use tokio::{process::Child, sync::watch};

use super::{process::Process, trouble::Trouble};
use crate::{
    config,
    launch::{
        AskError, Output, Plan, Report, Streams,
        account::{Accounts, Identity, User},
        ask,
    },
    service::pools,
    workers::filled,
};

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
    let identity = identity(config, &accounts, &user)?;
    let mut environment = user.environment();
    environment.extend(
        [
            ("DEPLOYER_SERVICE", service.to_owned()),
            ("DEPLOYER_ADDRESS", at.ip().to_string()),
            ("DEPLOYER_PORT", at.port().to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    );
    let told = told(config, at)?;
    let filled = |text: &str| of_pool(filled(text, service, at), &told);
    let argv = config.command.argv.iter().map(|word| filled(word)).collect();
    let directory = filled(&config.directory.to_string_lossy()).into();
    let own: Vec<_> = config.environment.iter().map(|(name, value)| (name.clone(), filled(value))).collect();
    environment.extend(told);
    environment.extend(own);
    Ok(Plan {
        cgroup: Some(cgroup.to_owned()),
        identity,
        directory,
        argv,
        environment,
        output: Output::Log(log.to_owned()),
    })
}

/// As which the worker runs; `None`: as the daemon does.
fn identity(config: &config::Builtin, accounts: &Accounts, user: &User) -> Result<Option<Identity>, Trouble> {
    if config.user.is_none() && config.group.is_none() {
        return Ok(None);
    }
    let identity = accounts.identity(user, config.group.as_deref());
    identity.map(Some).map_err(|why| Trouble::new("manager.group", io::Error::other(why), "Write a group that exists"))
}

/// As which the workers of a configuration run; `None`: as the daemon does.
pub(super) fn identity_of(config: &config::Builtin) -> Result<Option<Identity>, Trouble> {
    let accounts = Accounts::read().map_err(|error| Trouble::new("reading the accounts", error, ""))?;
    let user = user(config, &accounts)?;
    identity(config, &accounts, &user)
}

/// What the worker's pool is told, of a service that has two.
fn told(config: &config::Builtin, at: SocketAddr) -> Result<BTreeMap<String, String>, Trouble> {
    let Some(file) = config.told.get(&at) else { return Ok(BTreeMap::new()) };
    pools::told(file).map_err(|error| Trouble::new(format!("reading {}", file.display()), error, ""))
}

/// A text with what the pool is told in its places.
fn of_pool(text: String, told: &BTreeMap<String, String>) -> String {
    let places = [("{pool}", "DEPLOYER_POOL"), ("{lane}", "DEPLOYER_LANE"), ("{version}", "DEPLOYER_VERSION")];
    if told.is_empty() {
        return text;
    }
    places.iter().fold(text, |text, (place, name)| text.replace(place, told.get(*name).map_or("", String::as_str)))
}

/// Whose the worker is.
fn user(config: &config::Builtin, accounts: &Accounts) -> Result<User, Trouble> {
    let hint = "Write a user that exists, or add it: useradd --system NAME";
    accounts.user_or_own(config.user.as_deref()).map_err(|none| Trouble::new("manager.user", none, hint))
}

/// Whether the accounts that a configuration names are there.
pub(super) fn check_accounts(config: &config::Builtin) -> Result<(), Trouble> {
    let at = SocketAddr::from(([127, 0, 0, 1], 0));
    plan(config, "", at, Path::new(""), Path::new("")).map(drop)
}

/// Runs the launcher until it has become the worker.
pub(super) async fn spawn(launcher: &Path, plan: &Plan) -> Result<Process, Trouble> {
    let streams = Streams { output: Stdio::null(), errors: Stdio::null(), kill_on_drop: false };
    let child = ask(launcher, plan, streams).await.map_err(|error| match error {
        AskError::NotRun(error) => Trouble::new(format!("running {} launch", launcher.display()), error, ""),
        AskError::Failed(report) => reported(&report),
    })?;
    // It has not been waited for, so that the number is its own.
    let process = child.id().ok_or_else(|| io::Error::other("it has no process id")).and_then(Process::open);
    let process = process.map_err(|error| Trouble::new("watching the process of the worker", error, ""))?;
    Ok(process.with_exit(reaped(child)))
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

fn reported(report: &Report) -> Trouble {
    if report.tried.is_empty() {
        return Trouble::new("launching", report.error(), "");
    }
    Trouble::new(format!("trying to {}", report.tried), report.error(), hint(&report.tried))
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
    use crate::launch::account::PATH;

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
            "command = [\"a{}\", \"{service}:{port}@{address}\"], environment = { HOME = \"/h/{port}\", X = \"\" }, \
             directory = \"/srv/{service}/{port}\"",
        );
        let at = "[fd00::1]:8003".parse().unwrap();
        let plan = plan(&config, "web", at, Path::new("/c"), Path::new("/l")).unwrap();
        assert_eq!(plan.argv, ["a{}", "web:8003@fd00::1"]);
        assert_eq!(plan.directory, Path::new("/srv/web/8003"));
        assert!(plan.identity.is_none());
        let of = |name: &str| plan.environment.get(name).map(String::as_str);
        assert_eq!([of("HOME"), of("X"), of("PATH")], [Some("/h/8003"), Some(""), Some(PATH)]);
        let told = ["SERVICE", "ADDRESS", "PORT"].map(|name| of(&format!("DEPLOYER_{name}")).unwrap());
        assert_eq!(told, ["web", "fd00::1", "8003"]);
    }

    #[test]
    fn what_the_launcher_says_is_told() {
        let of = |tried: &str, errno| reported(&Report { tried: tried.to_owned(), errno, said: "no".to_owned() });
        let trouble = of("run /x", Some(2));
        assert_eq!(trouble.source.raw_os_error(), Some(2));
        assert_eq!(trouble.doing, "trying to run /x");
        assert_eq!(trouble.hint, "See to `manager.command`");
        assert_eq!(of("x", None).to_string(), "trying to x: no");
        assert_eq!(of("", None).to_string(), "launching: no");
    }
}
