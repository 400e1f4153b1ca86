//! A load balancer in another network namespace, which nothing steers: a roll is refused, and by force it is counted.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use deployer_tests::daemon::ServiceConfig;
use deployer_tests::link::{FAR, NEAR, join};
use deployer_tests::process::run;
use deployer_tests::sandbox::{Place, Sandbox};

use super::figures::Scene;

/// What the callers saw.
#[derive(Default)]
struct Seen {
    over: AtomicBool,
    answered: AtomicU64,
    refused: AtomicU64,
    broken: AtomicU64,
}

/// Asks all workers, one after the other, until it is over.
fn load(seen: &Seen) {
    for port in (8000..8004).cycle() {
        if seen.over.load(SeqCst) {
            return;
        }
        let asked = TcpStream::connect((NEAR, port)).map(|mut stream| {
            let mut text = Vec::new();
            let asked = stream.write_all(b"GET / HTTP/1.0\r\n\r\n").and_then(|()| stream.read_to_end(&mut text));
            asked.is_ok() && text.starts_with(b"HTTP/1.")
        });
        let counter = match asked {
            Ok(true) => &seen.answered,
            Ok(false) => &seen.broken,
            Err(_) => &seen.refused,
        };
        counter.fetch_add(1, SeqCst);
        sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_roll_past_callers_elsewhere() -> Result<()> {
    let (sandbox, far) = (Sandbox::new("lbfar")?, Sandbox::new("far4")?);
    join(&sandbox, &far)?;
    // The workers listen at 127.0.0.1.
    run(sandbox.command(Place::Outside, "sh").args(["-c", "echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet"]))?;
    let rules = "add table ip n; add chain ip n p { type nat hook prerouting priority -100; }; \
                 add rule ip n p iif wire tcp dport 8000-8003 dnat to 127.0.0.1";
    run(sandbox.command(Place::Outside, "nft").arg(rules))?;
    let config = ServiceConfig { batch: "2".to_owned(), ..ServiceConfig::default() };
    let scene = Scene::new(&sandbox, 4, &config)?;
    let seen = Arc::new(Seen::default());
    let theirs = Arc::clone(&seen);
    let caller = far.spawn_in_netns(move || load(&theirs));
    let result = rolled(&scene, &seen);
    seen.over.store(true, SeqCst);
    caller.join().map_err(|_| anyhow::anyhow!("the load has panicked"))??;
    result
}

fn rolled(scene: &Scene<'_>, seen: &Seen) -> Result<()> {
    super::figures::wait(Duration::from_secs(30), || Ok(seen.answered.load(SeqCst) >= 200)).context("no answers")?;
    let (exit, text) = scene.said(&["roll", "web", "--to", "v2"])?;
    eprintln!("{exit:?} {text}");
    ensure!(exit == Some(1) && text.contains("not steered") && text.contains(FAR), "{exit:?} {text}");
    ensure!(text.contains("--force") && text.contains("No worker was touched"), "{text}");
    let workers = scene.api().workers()?;
    ensure!(workers.values().all(|worker| worker["version"] == "v1"), "{workers:?}");

    let (exit, text) = scene.said(&["roll", "web", "--to", "v2", "--force", "--json"])?;
    ensure!(exit == Some(0) && text.contains("forced although most connections"), "{exit:?} {text}");
    let first: serde_json::Value = serde_json::from_str(text.lines().next().context("no events")?)?;
    let report = scene.report(first["roll"].as_str().context("no id")?)?;
    let (refused, broken) = (seen.refused.load(SeqCst), seen.broken.load(SeqCst));
    let (cold, late, closed) = (report.during("to_cold"), report.during("late"), report.during("closed_port"));
    eprintln!(
        "refused {refused}, broken {broken}; cold {cold}, late {late}, closed port {closed}, reset {}",
        report.during("reset")
    );
    // What they lost is what is told.
    ensure!(refused > 0 && closed == refused, "refused {refused}, and told are {closed}");
    ensure!(cold > 0, "none met a cold worker? {:?}", report.0["during"]);
    let text = scene.said(&["report"])?.1;
    ensure!(text.contains("\nclosed port: ") && text.contains("\nto cold: "), "{text}");
    let connections: u64 = report.by_version(&["before", "during"], "connections").values().sum();
    ensure!(connections >= seen.answered.load(SeqCst).saturating_sub(50), "{connections}");
    Ok(())
}
