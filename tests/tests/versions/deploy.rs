//! A deploy by itself: pools, lanes, and what an operator is told.

use anyhow::{Result, ensure};
use deployer_tests::process;
use deployer_tests::sandbox::{Place, Sandbox};
use deployer_tests::site::{Plan, Site};

/// Who answers at an address, to a steered caller.
fn version_at(sandbox: &Sandbox, host: &str) -> Result<String> {
    let program = format!(
        "import urllib.request; print(urllib.request.urlopen('http://{host}/version', timeout=10).read().decode())"
    );
    let said = process::run(sandbox.command(Place::Callers, "/usr/bin/python3").args(["-c", &program]))?;
    Ok(said.trim().to_owned())
}

#[test]
fn a_deploy_to_the_other_pool_and_back() -> Result<()> {
    let sandbox = Sandbox::new("deploy")?;
    let site = Site::start(&sandbox, Plan { bake: "2s", ..Plan::default() })?;
    let meets = |host: &str, version: &str| -> Result<()> {
        let got = version_at(&sandbox, host)?;
        ensure!(got == version, "{host} is {got}, not {version}\n{}", site.daemon.log());
        Ok(())
    };
    for host in ["127.0.0.1:9000", "127.77.0.0:9000", "127.77.0.1:9000", "127.77.9.2:9000"] {
        meets(host, "v1")?;
    }
    let (exit, said) = site.deploy("v2", &[])?;
    ensure!(exit == 0, "{said}\n{}", site.daemon.log());
    // The former pool is gone: whoever names it, by worker or by lane, gets what is current.
    for host in ["127.0.0.1:9000", "127.0.0.1:8000", "127.77.0.1:9000", "127.77.0.2:9000"] {
        meets(host, "v2")?;
    }
    let status = site.must(&["status"])?;
    eprintln!("{status}");
    ensure!(status.contains("pool a  no lane  -  retired  0 of 4 up"), "{status}");
    ensure!(status.contains("pool b  lane 2  v2  current  4 of 4 up"), "{status}");
    let (exit, said) = site.deploy("v3", &[])?;
    ensure!(exit == 0, "{said}\n{}", site.daemon.log());
    for host in ["127.0.0.1:9000", "127.0.0.1:8000", "127.0.0.1:8103", "127.77.0.2:9000", "127.77.0.3:9000"] {
        meets(host, "v3")?;
    }
    let history = site.must(&["history", "web"])?;
    eprintln!("{history}");
    ensure!(
        history.contains("deploy  v1 -> v2  flipped ") && history.contains("deploy  v2 -> v3  flipped "),
        "{history}"
    );
    let report = site.must(&["report"])?;
    eprintln!("{report}");
    ensure!(report.contains("v2") && report.contains("v3"), "{report}");
    eprintln!("{}", site.must(&["events", "-n", "40"])?);
    Ok(())
}
