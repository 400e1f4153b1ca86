//! A deploy by itself: pools, lanes, gate, flip, rollback.

use anyhow::{Result, ensure};
use deployer_tests::sandbox::{Place, Sandbox};
use deployer_tests::site::{Plan, Site};

/// Who answers at an address, to a steered caller.
fn version_at(sandbox: &Sandbox, host: &str) -> Result<String> {
    let program = format!(
        "import urllib.request; print(urllib.request.urlopen('http://{host}/version', timeout=10).read().decode())"
    );
    let output = sandbox.command(Place::Callers, "/usr/bin/python3").args(["-c", &program]).output()?;
    ensure!(output.status.success(), "{host}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[test]
fn a_deploy_and_a_rollback() -> Result<()> {
    let sandbox = Sandbox::new("deploy")?;
    let site = Site::start(&sandbox, Plan::default())?;
    let lane = |lane: u8| version_at(&sandbox, &format!("127.77.0.{lane}:9000"));
    ensure!(version_at(&sandbox, "127.0.0.1:9000")? == "v1");
    ensure!(lane(0)? == "v1" && lane(1)? == "v1" && lane(2)? == "v1", "one version is all lanes");
    let (exit, said) = site.deploy("v2", &[])?;
    eprintln!("{said}");
    ensure!(exit == 0, "{said}\n{}", site.daemon.log());
    eprintln!("{}", site.must(&["status"])?);
    ensure!(version_at(&sandbox, "127.0.0.1:9000")? == "v2");
    ensure!(version_at(&sandbox, "127.0.0.1:8000")? == "v2", "a worker of the former pool stands for the current one");
    eprintln!("{}", site.must(&["history"])?);
    Ok(())
}
