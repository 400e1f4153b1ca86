//! temporary thin slice
use anyhow::Result;
use deployer_tests::{
    app::App,
    daemon::{Daemon, ServiceConfig},
    journal::Journal,
    load::Load,
    nginx::{Nginx, Upstream},
    sandbox::Sandbox,
    supervisor::{Options, Supervisor},
};
use std::{process::Command, time::Duration};
#[test]
fn thin() -> Result<()> {
    let sandbox = Sandbox::new("thin")?;
    let app = App::new(&sandbox, &["v1", "v2"])?;
    let supervisor = Supervisor::start(&sandbox, &app, Options::ports(8000..=8007))?;
    supervisor.wait_up()?;
    supervisor.warm()?;
    let nginx = Nginx::start(&sandbox, &Upstream::workers(8000..=8007, ""))?;
    let load = Load { rate: 300.0, ..Load::new("run1") }.start(&sandbox)?;
    std::thread::sleep(Duration::from_secs(3));
    let daemon = Daemon::start(&sandbox, &ServiceConfig::default().text(&sandbox, &app, &supervisor))?;
    load.mark("during");
    let socket = Daemon::socket_of(&sandbox);
    let out = Command::new("curl")
        .args(["-s", "--unix-socket"])
        .arg(&socket)
        .args(["-d", "{\"to\":\"v2\"}", "http://x/v1/services/web/roll"])
        .output()?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    eprintln!("{text}");
    let id = text.split("\"id\":\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    let out = Command::new("curl")
        .args(["-s", "--unix-socket"])
        .arg(&socket)
        .arg(format!("http://x/v1/rolls/{id}/events"))
        .output()?;
    eprintln!("{}", String::from_utf8_lossy(&out.stdout));
    load.mark("after");
    std::thread::sleep(Duration::from_secs(2));
    let out = Command::new("curl").args(["-s", "--unix-socket"]).arg(&socket).arg("http://x/v1/status").output()?;
    eprintln!("{}", String::from_utf8_lossy(&out.stdout));
    let report = load.stop()?;
    let journal = Journal::read(&app.journal_dir())?;
    eprintln!(
        "{report}\ndoubled {:?} cut {} cold {}\nnginx {:?}\n{}",
        journal.doubled(),
        journal.cut().len(),
        journal.cold().len(),
        nginx.error_lines()?,
        daemon.log()
    );
    Ok(())
}
