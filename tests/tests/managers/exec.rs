//! The operator's own commands: here a script that keeps process ids in files.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use anyhow::{Context, Result, ensure};
use deployer::{
    config::{self, Command},
    workers::{Exec, ProcessManager},
};
use deployer_tests::sandbox::{Place, Sandbox};

use super::scene::{Fixture, STOP_WITHIN, at, play};

/// The commands.
pub(crate) struct Scripts(config::Exec);

impl Fixture for Scripts {
    const RESTARTS: bool = false;
    const KILLS: bool = false;

    fn new(sandbox: &Sandbox, worker: &[String], directory: &Path) -> Result<Self> {
        let (shown, words, cgroup) = (directory.display(), worker.join(" "), sandbox.cgroup(Place::Workers));
        let text = format!(
            "#!/bin/sh\npid=$(cat {shown}/$2.pid 2> /dev/null)\n\
             runs() {{ test -n \"$pid\" && grep -q '^State:[[:space:]][^ZX]' /proc/$pid/status 2> /dev/null; }}\n\
             case $1 in\n\
             start) echo $$ > {}/cgroup.procs; setsid {words} $2 {shown} > {shown}/$2.log 2>&1 &\n\
             echo $! > {shown}/$2.pid ;;\n\
             stop) kill $pid ;;\n\
             status) runs && echo pid $pid || exit 3 ;;\n\
             esac\n",
            cgroup.display()
        );
        let script = directory.join("ctl");
        fs::write(&script, text).context("write ctl")?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        let command =
            |verb: &str| Command { argv: vec![script.display().to_string(), verb.to_owned(), "{port}".to_owned()] };
        Ok(Self(config::Exec {
            user: None,
            start: command("start"),
            stop: command("stop"),
            status: command("status"),
            within: STOP_WITHIN,
        }))
    }

    fn manager(&self) -> Result<Box<dyn ProcessManager>> {
        Ok(Box::new(Exec::new("web", self.0.clone())))
    }
}

super::cases::suite!(Scripts);

#[test]
fn a_missing_command() -> Result<()> {
    play::<Scripts>(async |scene| {
        let mut config = scene.fixture.0.clone();
        config.status.argv[0] = "/nonexistent/ctl".to_owned();
        let Err(error) = Exec::new("web", config).check(&[at(8000)]).await else { anyhow::bail!("run") };
        ensure!(error.to_string().contains("/nonexistent/ctl") && !error.may_come_yet(), "{error}");
        Ok(())
    })
}
