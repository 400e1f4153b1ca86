//! The reaper in a storm: every connection of a busy nginx is struck at, every other millisecond, whenever it is quiet and
//! answered. Far harsher than a drain.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use deployer::kernel::reaper::{Answer, Ground};
use deployer::kernel::{Pair, diag};
use deployer_tests::app::App;
use deployer_tests::load::Load;
use deployer_tests::nginx::Nginx;
use deployer_tests::sandbox::Sandbox;
use deployer_tests::supervisor::{Options, Supervisor};

use crate::ends::Scythe;

const UPSTREAM: &str = "upstream web {
  server 127.0.0.1:8000 max_fails=0;
  server 127.0.0.1:8001 max_fails=0;
  keepalive 32;
}";
const KEPT_ALIVE: &str = "proxy_http_version 1.1; proxy_set_header Connection \"\";";
const PERIOD: Duration = Duration::from_millis(2);

fn lasts() -> Duration {
    Duration::from_secs(if std::env::var_os("DEPLOYER_FULL").is_some() { 300 } else { 20 })
}

/// What was seen of the strikes.
#[derive(Debug, Default)]
struct Tally {
    strikes: u64,
    closed: u64,
    spared: u64,
}

/// Strikes at all connections to the workers, until told to stop.
fn strike(scythe: &Scythe<'_>, workers: &[SocketAddr], stop: &AtomicBool) -> Result<Tally> {
    let mut tally = Tally::default();
    while !stop.load(Ordering::Relaxed) {
        let next = Instant::now() + PERIOD;
        for worker in workers {
            for socket in diag::holders(*worker, false)?.iter().filter(|socket| socket.peer == *worker) {
                let pair = Pair { caller: socket.local, worker: socket.peer };
                scythe.reaper.aim(pair, Ground::Quiet { for_ms: 0, answered: true })?;
            }
        }
        for (_, answer) in scythe.reaper.strike()? {
            match answer {
                Answer::Closed => tally.closed += 1,
                _ => tally.spared += 1,
            }
        }
        tally.strikes += 1;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(tally)
}

#[test]
fn posts_through_nginx() -> Result<()> {
    let sandbox = Sandbox::new("storm")?;
    let app = App::new(&sandbox, &["v1"])?;
    let supervisor = Supervisor::start(&sandbox, &app, Options::ports(8000..=8001))?;
    supervisor.wait_up()?;
    supervisor.warm()?;
    let nginx = Nginx::start_text(&sandbox, UPSTREAM, KEPT_ALIVE)?;
    let load = Load { rate: 500.0, post_share: 1.0, slow_one_in: 0, ..Load::new("storm") }.start(&sandbox)?;
    let scythe = Scythe::new(&sandbox)?;
    let workers = [8000, 8001].map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let stop = AtomicBool::new(false);
    let tally = std::thread::scope(|scope| {
        let striking = scope.spawn(|| sandbox.in_netns(|| strike(&scythe, &workers, &stop)));
        std::thread::sleep(lasts());
        stop.store(true, Ordering::Relaxed);
        striking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })??;
    let report = load.stop()?;
    eprintln!("{tally:?}; {report}");
    ensure!(report.failed == 0, "{tally:?}; {report}\n{:?}", nginx.error_lines()?);
    ensure!(tally.closed > 100, "{tally:?}");
    Ok(())
}
