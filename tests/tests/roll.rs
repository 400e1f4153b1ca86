//! The main job: a deploy under load loses nothing, with every way of naming the workers; and the twin, which does.

use std::{
    env,
    process::Stdio,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use deployer_tests::{
    app::App,
    daemon::{Daemon, ServiceConfig},
    journal::Journal,
    nginx::Upstream,
    pace::patient,
    rollout::{Figures, How, Rollout},
    sandbox::{Place, Sandbox},
    supervisor::{Options, Supervisor},
};

/// What every deploy through deployer must show, whatever the load balancer names.
fn lost_nothing(figures: &Figures, workers: usize) -> Result<()> {
    eprintln!("{figures}");
    let journal = &figures.journal;
    let tail = || format!("{figures}\n{:?}\n{}\n{}", figures.nginx_errors, figures.output, figures.log);
    ensure!(figures.exit == 0, "{}", tail());
    ensure!(figures.report.failed == 0, "{}", tail());
    ensure!(figures.report.cold == 0 && journal.cold().is_empty(), "{}", tail());
    ensure!(journal.doubled().is_empty() && journal.cut().is_empty(), "{}", tail());
    let contradictions = journal.contradictions(&figures.report);
    ensure!(contradictions.is_empty(), "{contradictions:?}");
    ensure!(figures.nginx_errors.is_empty(), "{:?}", figures.nginx_errors);
    ensure!(figures.nft_events.is_empty(), "firewall events: {}", figures.nft_events);
    ensure!(figures.phases() == [("up".to_owned(), workers)].into(), "{}", tail());
    ensure!(figures.sum("fallback_draining") + figures.sum("fallback_cold") == 0, "{}", tail());
    let last = figures.report.outcomes.iter().max_by_key(|outcome| outcome.start_ns).context("no requests")?;
    ensure!(last.version == "v2", "the last request was answered by {}", last.version);
    Ok(())
}

/// 40 workers, at least 20,000 requests during the roll, nginx as it comes.
#[test]
fn forty_workers_lose_nothing() -> Result<()> {
    let config = ServiceConfig { batch: "4".to_owned(), ..ServiceConfig::default() };
    let figures = Rollout { config, rate: 500.0, ..Rollout::new("forty", 40) }.run(|_| ())?;
    lost_nothing(&figures, 40)?;
    let during = figures.report.phase("during").context("no phase")?.requests;
    ensure!(during >= 20_000, "{during} requests during the roll");
    ensure!(figures.sum("steered") > 0, "{figures}");
    Ok(())
}

/// The same load, workers killed: requests are cut, sent twice, and served cold. So the harness sees what it must.
#[test]
fn without_steering_the_same_load_loses_requests() -> Result<()> {
    // nginx's own benching of killed workers would only add to the loss, by chance.
    let upstream = Upstream::workers(8000..=8007, "max_fails=0");
    let figures = Rollout { how: How::Kill, upstream, ..Rollout::new("twin", 8) }.run(|_| ())?;
    eprintln!("{figures}");
    ensure!(figures.report.failed > 0, "{figures}");
    ensure!(!figures.journal.cut().is_empty() && figures.report.cold > 0, "{figures}");
    ensure!(!figures.nginx_errors.is_empty(), "{figures}");
    Ok(())
}

fn refuse(label: &'static str, params: &str, batch: &str) -> Result<()> {
    let config = ServiceConfig { policy: "refuse", batch: batch.to_owned(), ..ServiceConfig::default() };
    let upstream = Upstream::workers(8000..=8007, params);
    let mut figures = Rollout { config, upstream, ..Rollout::new(label, 8) }.run(|_| ())?;
    ensure!(figures.sum("refused") > 0, "{figures}");
    // nginx says of each refused connection that it was refused; that is all it may say.
    let refused =
        ["failed (111: Connection refused) while connecting to upstream", "upstream server temporarily disabled"];
    figures.nginx_errors.retain(|line| !refused.iter().any(|said| line.contains(said)));
    lost_nothing(&figures, 8)
}

#[test]
fn refused_connections_go_to_the_next_upstream() -> Result<()> {
    refuse("refuse", "max_fails=0", "4")
}

/// The line of the article that the customer handed over. It benches a worker that has refused for the rest of the second:
/// with half of the workers in a batch the next batch may begin in it, and nobody is left to nginx.
#[test]
fn refused_as_the_article_has_it() -> Result<()> {
    refuse("article", "max_fails=1 fail_timeout=0s", "2")
}

#[test]
fn one_server_line_is_enough() -> Result<()> {
    let address = "127.0.0.1:9000";
    let config = ServiceConfig { address: Some(address.to_owned()), batch: "4".to_owned(), ..ServiceConfig::default() };
    let upstream = Upstream::ServiceAddress(address.parse()?);
    let figures = Rollout { config, upstream, ..Rollout::new("address", 8) }.run(|_| ())?;
    lost_nothing(&figures, 8)?;
    ensure!(figures.sum("picked") as usize >= figures.report.requests, "{figures}");
    Ok(())
}

/// The monitor that must stay silent in all of the above does hear a rule.
#[test]
fn the_firewall_monitor_hears_a_rule() -> Result<()> {
    let sandbox = Sandbox::new("nft")?;
    let mut command = sandbox.command(Place::Outside, "timeout");
    let monitor = command.args(["2", "nft", "monitor"]).stdout(Stdio::piped()).spawn()?;
    sleep(Duration::from_millis(500));
    ensure!(sandbox.command(Place::Outside, "nft").args(["add", "table", "ip", "x"]).status()?.success());
    let heard = String::from_utf8_lossy(&monitor.wait_with_output()?.stdout).into_owned();
    ensure!(heard.contains("add table ip x"), "{heard:?}");
    Ok(())
}

/// Seconds that each worker was draining, from the events of a roll.
fn drains(events: &str) -> Vec<f64> {
    let mut begun = std::collections::BTreeMap::new();
    let mut seconds = Vec::new();
    for event in events.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()) {
        let (Some(worker), Some(time)) = (event["worker"].as_str(), event["time_ms"].as_f64()) else { continue };
        match event["phase"].as_str() {
            Some("draining") => drop(begun.insert(worker.to_owned(), time)),
            Some("drained") => seconds.extend(begun.remove(worker).map(|begun| (time - begun) / 1000.0)),
            _ => {}
        }
    }
    seconds
}

/// Requests of 5 ms: a drain is two grace periods and about one request, where the old way slept 5 s.
#[test]
fn a_drain_takes_about_one_request() -> Result<()> {
    let sandbox = Sandbox::new("brief")?;
    let app = App::new(&sandbox, &["v1", "v2"])?;
    let supervisor = Supervisor::start(&sandbox, &app, Options::ports(8000..=8003))?;
    supervisor.wait_up()?;
    supervisor.warm()?;
    let nginx = deployer_tests::nginx::Nginx::start(&sandbox, &Upstream::workers(8000..=8003, ""))?;
    let daemon = Daemon::start(&sandbox, &ServiceConfig::default().text(&sandbox, &app, &supervisor))?;
    let load = deployer_tests::load::Load { slow_one_in: 0, rate: 200.0, ..deployer_tests::load::Load::new("brief") };
    let load = load.start(&sandbox)?;
    sleep(Duration::from_secs(1));
    let roll = daemon.cli(&["roll", "web", "--to", "v2", "--json"])?;
    let report = load.stop()?;
    let mut seconds = drains(&String::from_utf8_lossy(&roll.stdout));
    seconds.sort_by(f64::total_cmp);
    eprintln!("{report}\ndrains, s: {seconds:.3?}");
    let errors = nginx.error_lines()?;
    ensure!(seconds.len() == 4 && report.failed == 0 && errors.is_empty(), "{report}\nnginx: {errors:#?}");
    // Generous: machines are shared. 40 ms is usual.
    ensure!(seconds[1] < patient(Duration::from_secs(1)).as_secs_f64(), "{seconds:?}");
    Ok(())
}

/// A stalled worker behind a backlog of 1, and 50 callers whose SYNs the kernel goes on sending. They are waited for:
/// otherwise they would arrive at the restarted, cold worker.
#[test]
fn callers_behind_a_full_accept_queue_are_waited_for() -> Result<()> {
    let sandbox = Sandbox::new("syn")?;
    let app = App::new(&sandbox, &["v1", "v2"])?;
    let options = Options { backlog: 1, ..Options::ports(8000..=8001) };
    let supervisor = Supervisor::start(&sandbox, &app, options)?;
    supervisor.wait_up()?;
    supervisor.warm()?;
    let daemon = Daemon::start(&sandbox, &ServiceConfig::default().text(&sandbox, &app, &supervisor))?;
    let pid = supervisor.pid_of(8000)?.context("no worker")?;
    deployer_tests::process::send(pid, rustix::process::Signal::STOP)?;
    let mut callers = sandbox.command(Place::Callers, "/usr/bin/python3");
    let callers = callers.args(["-c", FIFTY_CALLERS]).stdout(Stdio::piped()).spawn()?;
    sleep(Duration::from_secs(2));
    let roll = daemon.cli_spawn(&["roll", "web", "--to", "v2", "--json"])?;
    let begun = Instant::now();
    sleep(Duration::from_secs(4));
    deployer_tests::process::send(pid, rustix::process::Signal::CONT)?;
    let roll = roll.wait_with_output()?;
    let answers = String::from_utf8_lossy(&callers.wait_with_output()?.stdout).into_owned();
    let events = String::from_utf8_lossy(&roll.stdout).into_owned();
    let held = events.lines().filter(|line| line.contains("syn-sent")).count();
    eprintln!("roll {:?} in {:.1?}; {held} events name a SYN; answers {answers}", roll.status.code(), begun.elapsed());
    ensure!(roll.status.code() == Some(0), "{events}\n{}", daemon.log());
    ensure!(answers.trim() == "200 v1 0: 50", "{answers}");
    ensure!(held > 0, "{events}");
    let journal = Journal::read(&app.journal_dir())?;
    ensure!(journal.cold().is_empty() && journal.cut().is_empty(), "{} cold", journal.cold().len());
    Ok(())
}

/// Fifty at once to 8000: status, version and cold mark of each answer, counted.
const FIFTY_CALLERS: &str = "
import collections, socket, threading, time
seen = collections.Counter()
def call(n):
    # Apart from each other: retransmissions in step would all meet the same two free places.
    time.sleep(n * 0.03)
    s = socket.create_connection(('127.0.0.1', 8000), timeout=60)
    s.sendall(b'GET /pin/1 HTTP/1.0\\r\\nX-Request-Id: syn-%d\\r\\n\\r\\n' % n)
    answer = b''
    while chunk := s.recv(65536):
        answer += chunk
    head = answer.split(b'\\r\\n\\r\\n')[0].decode().split('\\r\\n')
    fields = dict(line.split(': ', 1) for line in head[1:])
    seen[head[0].split()[1], fields['X-Version'], fields['X-Cold']] += 1
threads = [threading.Thread(target=call, args=(n,)) for n in range(50)]
[t.start() for t in threads]
[t.join() for t in threads]
print(', '.join(' '.join(key) + ': ' + str(count) for key, count in sorted(seen.items())))
";

/// `--full`: the demo's own shape, several times over.
#[test]
fn again_and_again() -> Result<()> {
    if env::var_os("DEPLOYER_FULL").is_none() {
        eprintln!("one run of this is forty_workers_lose_nothing; --full repeats it");
        return Ok(());
    }
    for _ in 0..5 {
        lost_nothing(&Rollout { rate: 500.0, ..Rollout::new("again", 40) }.run(|_| ())?, 40)?;
    }
    Ok(())
}
