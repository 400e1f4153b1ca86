//! The reaper in a storm: every connection of a busy nginx is struck at as soon as the watch says that all is answered, every
//! other millisecond, as if both workers drained without end while nginx goes on with them.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use deployer::framing::{Framing, FramingWatch};
use deployer::kernel::reaper::{Answer, Ground, Reaper};
use deployer_tests::app::App;
use deployer_tests::journal::Journal;
use deployer_tests::load::Load;
use deployer_tests::nginx::Nginx;
use deployer_tests::sandbox::Sandbox;
use deployer_tests::supervisor::{Options, Supervisor};

const UPSTREAM: &str = "upstream web {
  server 127.0.0.1:8000 max_fails=0;
  server 127.0.0.1:8001 max_fails=0;
  keepalive 32;
}";
const KEPT_ALIVE: &str = "proxy_http_version 1.1; proxy_set_header Connection \"\";";
const PERIOD: Duration = Duration::from_millis(2);

/// The closings to see, and how long they may take: a busy machine has fewer in its time.
fn wanted() -> (u64, Duration) {
    if std::env::var_os("DEPLOYER_FULL").is_some() {
        return (100_000, Duration::from_secs(3600));
    }
    (1_000, Duration::from_secs(60))
}

/// What was seen of the strikes.
#[derive(Debug, Default)]
struct Tally {
    strikes: u64,
    closed: u64,
    spared: u64,
}

/// Watches the workers' connections as the daemon does while they drain, and strikes until it has closed enough.
fn strike(workers: &[SocketAddr]) -> Result<Tally> {
    let reaper = Arc::new(Reaper::load()?);
    let aiming = Arc::clone(&reaper);
    let watch = FramingWatch::start(workers, move |pair, framing| match framing {
        Framing::Complete { asked, answered } => drop(aiming.aim(pair, Ground::Complete { asked, answered })),
        _ => aiming.spare(&pair),
    })?;
    workers.iter().for_each(|worker| watch.set_draining(*worker, true));
    let (mut tally, (many, limit), begun) = (Tally::default(), wanted(), Instant::now());
    while tally.closed < many && begun.elapsed() < limit {
        let next = Instant::now() + PERIOD;
        for (_, answer) in reaper.strike()? {
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
    let load = Load { rate: 400.0, post_share: 1.0, slow_one_in: 0, ..Load::new("storm") }.start(&sandbox)?;
    let workers = [8000, 8001].map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let tally = sandbox.in_netns(|| strike(&workers))??;
    let report = load.stop()?;
    // A worker writes an answer's end down just after it has sent it.
    std::thread::sleep(Duration::from_millis(100));
    let journal = Journal::read(&app.journal_dir())?;
    let (doubled, cut) = (journal.doubled().len(), journal.cut().len());
    eprintln!("{tally:?}; doubled {doubled}, cut {cut}; {report}");
    ensure!(report.failed == 0 && doubled + cut == 0, "{tally:?}; {report}\n{:?}", nginx.error_lines()?);
    let few = if std::env::var_os("DEPLOYER_FULL").is_some() { wanted().0 } else { 100 };
    ensure!(tally.closed >= few, "{tally:?}");
    Ok(())
}
