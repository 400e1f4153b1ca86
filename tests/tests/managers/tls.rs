//! Workers that speak TLS are warmed and asked for their version under TLS.

use anyhow::{Result, ensure};
use deployer_tests::{
    api::Api,
    daemon::Daemon,
    sandbox::Sandbox,
    tls::{self, Certificate},
};

use super::addresses::{config, wait};

const WARM: &str =
    "warm = { requests = [\"GET /\"], within = \"10s\" }\nversion = { request = \"GET /\", header = \"X-Version\" }";

/// A daemon of one worker of TLS, which has a certificate for 127.0.0.1 that ends in so many days; `tls`: a line of the
/// service, with CERT for the file.
fn play(label: &str, days: i32, line: &str, then: impl FnOnce(&Daemon<'_>, &Sandbox) -> Result<()>) -> Result<()> {
    let sandbox = Sandbox::new(label)?;
    let own = Certificate::new(sandbox.dir(), "own", "IP:127.0.0.1,DNS:web.internal", days)?;
    let other = Certificate::new(sandbox.dir(), "other", "IP:127.0.0.1", 2)?;
    let line = line.replace("OWN", &format!("{:?}", own.cert)).replace("OTHER", &format!("{:?}", other.cert));
    let manager = format!("command = {}", tls::worker(&sandbox, Some(&own))?);
    let text = config(&sandbox, "\"127.0.0.1:8000\"", &manager, &format!("{WARM}\n{line}"));
    let daemon = Daemon::start(&sandbox, &text)?;
    then(&daemon, &sandbox)
}

/// The worker is up, has said its version, and is rolled.
fn is_warmed_and_rolled(daemon: &Daemon<'_>, sandbox: &Sandbox) -> Result<()> {
    wait(daemon, sandbox, "the worker is up", |_, phase, _| phase == "up")?;
    let rolled = daemon.cli(&["roll", "web", "--to", "v1", "--force"])?;
    ensure!(rolled.status.success(), "{rolled:?}\n{}", daemon.log());
    let status = Api::of(sandbox).status()?;
    let version = &status["services"][0]["workers"][0]["version"];
    ensure!(version == "v1", "{status}");
    Ok(())
}

/// The worker is not up, for this reason.
fn is_refused(daemon: &Daemon<'_>, sandbox: &Sandbox, why: &str) -> Result<()> {
    wait(daemon, sandbox, why, |_, phase, reason| phase != "up" && reason.contains(why))
}

#[test]
fn with_a_certificate_that_is_not_checked() -> Result<()> {
    // Ended, as is that of many a worker of which nobody checks it.
    play("m_tls", -1, "tls = true\nspare = \"127.0.0.1:8001\"\nroll.surge = 1", is_warmed_and_rolled)
}

#[test]
fn with_a_certificate_that_is_checked() -> Result<()> {
    let line = "tls = { ca = OWN, server_name = \"web.internal\" }\nspare = \"127.0.0.1:8001\"\nroll.surge = 1";
    play("m_tlsca", 2, line, is_warmed_and_rolled)
}

#[test]
fn a_certificate_that_is_wrong_is_named() -> Result<()> {
    play("m_tlsend", -1, "tls = { ca = OWN }", |daemon, sandbox| {
        is_refused(daemon, sandbox, "its certificate has expired")
    })?;
    play("m_tlsno", 2, "tls = { ca = OTHER }", |daemon, sandbox| is_refused(daemon, sandbox, "write it into that file"))
}

#[test]
fn plain_requests_to_a_worker_of_tls_say_what_to_write() -> Result<()> {
    let why = "the worker speaks TLS; write tls = true in its service";
    play("m_tlsplain", 2, "", |daemon, sandbox| is_refused(daemon, sandbox, why))
}

#[test]
fn tls_to_a_plain_worker_says_what_to_leave_out() -> Result<()> {
    let sandbox = Sandbox::new("m_plain")?;
    let manager = format!("command = {}", tls::worker(&sandbox, None)?);
    let text = config(&sandbox, "\"127.0.0.1:8000\"", &manager, &format!("{WARM}\ntls = true"));
    let daemon = Daemon::start(&sandbox, &text)?;
    is_refused(&daemon, &sandbox, "if the worker speaks plain HTTP, leave `tls` out")
}
