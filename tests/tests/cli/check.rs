//! `deployer check` asks the process managers: names that they do not know, and commands that cannot be run.

use std::os::unix::fs::PermissionsExt;

use anyhow::{Result, ensure};
use deployer_tests::app::App;
use deployer_tests::daemon::{Daemon, DeployerBin, ServiceConfig};
use deployer_tests::sandbox::Sandbox;
use deployer_tests::supervisor::{Options, Supervisor};

/// The line of `check` about one key of the service's manager.
fn line(sandbox: &Sandbox, text: &str, key: &str) -> Result<String> {
    let file = Daemon::write_config(sandbox, text)?;
    let output = DeployerBin::find()?.command(sandbox).arg("check").arg("--config").arg(file).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let what = format!(" service.web.manager.{key}: ");
    Ok(text.lines().find(|line| line.contains(&what)).unwrap_or_default().to_owned())
}

#[test]
fn a_program_that_supervisord_does_not_know() -> Result<()> {
    let sandbox = Sandbox::new("checkname")?;
    let app = App::new(&sandbox, &["v1"])?;
    let supervisor = Supervisor::start(&sandbox, &app, Options { fast: true, ..Options::ports(8000..=8003) })?;
    let text = ServiceConfig::default().text(&sandbox, &app, &supervisor);
    let fine = line(&sandbox, &text, "program")?;
    ensure!(fine.starts_with("ok "), "{fine:?}");
    for wrong in ["web:wbe_{port}", "wbe:web_{port}", "web_{port}"] {
        let wrong = line(&sandbox, &text.replace("web:web_{port}", wrong), "program")?;
        eprintln!("{wrong}");
        ensure!(wrong.starts_with("FAIL ") && wrong.contains("it has no process named"), "{wrong:?}");
    }
    // One port too many.
    let more = line(&sandbox, &text.replace("8000-8003", "8000-8004"), "program")?;
    ensure!(more.contains("no process named web:web_8004; it has web:web_8000"), "{more:?}");
    Ok(())
}

#[test]
fn a_command_that_cannot_be_run() -> Result<()> {
    let sandbox = Sandbox::new("checkrun")?;
    let app = App::new(&sandbox, &["v1"])?;
    let text = ServiceConfig::default().text_built_in(&sandbox, &app);
    let fine = line(&sandbox, &text, "command")?;
    ensure!(fine.starts_with("ok "), "{fine:?}");
    let script = sandbox.dir().join("app-8000");
    for (mode, first, why) in [(0o644, "/bin/sh", "ermission denied"), (0o755, "/nonexistent/python", "not there")] {
        std::fs::write(&script, format!("#!{first}\n"))?;
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(mode))?;
        let named = script.display().to_string().replace("8000", "{port}");
        let wrong = line(&sandbox, &text.replace("/usr/bin/python3", &named), "command")?;
        eprintln!("{wrong}");
        ensure!(wrong.starts_with("warn ") && wrong.contains(why) && wrong.contains("cannot be run"), "{wrong:?}");
    }
    let directory = sandbox.dir().display().to_string();
    let wrong = line(&sandbox, &text.replace("/usr/bin/python3", &directory), "command")?;
    ensure!(wrong.starts_with("warn ") && wrong.contains("is a directory"), "{wrong:?}");
    Ok(())
}
