//! What the watch costs at 5,000 requests a second, by the CPU time of its thread.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use deployer::framing::{Framing, FramingWatch};
use deployer::kernel::Pair;
use deployer_tests::pace::SOON;
use deployer_tests::process::Process;
use deployer_tests::sandbox::{Place, Sandbox};

use crate::scene::WORKER;

const RATE: f64 = 5_000.0;
const CALLERS: usize = 8;
const SPAN: Duration = Duration::from_secs(4);
/// Of a debug build on a busy machine: 30 to 75 us were seen. A release build (`cargo xtask bench`) is to cost less than a
/// tenth of a core, and with answers of 64 KiB, 330 MB a second, not much more.
fn most(size: usize) -> Duration {
    let tenth = Duration::from_secs_f64(0.1 / RATE);
    match cfg!(debug_assertions) {
        true => 15 * tenth,
        false if size > 1024 => 2 * tenth,
        false => tenth,
    }
}

/// CPU time that the thread of the only watch has used.
fn spent() -> Result<Duration> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        if let Some(spent) = spent_by("framing")? {
            return Ok(spent);
        }
        // It gives itself its name.
        std::thread::sleep(Duration::from_millis(1));
    }
    anyhow::bail!("no thread is called framing")
}

fn spent_by(name: &str) -> Result<Option<Duration>> {
    for task in fs::read_dir("/proc/self/task").context("threads")? {
        let task = task?.path();
        if fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim() == name) {
            let times = fs::read_to_string(task.join("schedstat")).context("schedstat")?;
            let ns = times.split(' ').next().context("no time in schedstat")?;
            return Ok(Some(Duration::from_nanos(ns.parse()?)));
        }
    }
    Ok(None)
}

/// Sends requests when they are due, one after the other, until the time is over; how many were answered.
fn call(request: &[u8], answer: usize) -> Result<usize> {
    let mut stream = TcpStream::connect(WORKER)?;
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; answer];
    let (start, mut sent) = (Instant::now(), 0);
    while start.elapsed() < SPAN {
        let due = Duration::from_secs_f64(sent as f64 * CALLERS as f64 / RATE);
        std::thread::sleep(due.saturating_sub(start.elapsed()));
        stream.write_all(request)?;
        stream.read_exact(&mut buffer)?;
        sent += 1;
    }
    Ok(sent)
}

/// nginx with a file of so many bytes.
fn server(sandbox: &Sandbox, size: usize) -> Result<Process> {
    let dir = sandbox.dir();
    fs::write(dir.join("file"), vec![b'x'; size])?;
    let config = format!(
        "daemon off; user root; worker_processes 1; pid {0}/pid; error_log {0}/error.log;\n\
         events {{}} http {{ access_log off; keepalive_requests 10000000; client_body_temp_path {0}/body; \
         proxy_temp_path {0}/proxy; fastcgi_temp_path {0}/fastcgi; uwsgi_temp_path {0}/uwsgi; scgi_temp_path {0}/scgi;\n\
         server {{ listen {WORKER}; root {0}; error_page 405 =200 $uri; }} }}",
        dir.display()
    );
    fs::write(dir.join("nginx.conf"), config)?;
    let mut command = sandbox.command(Place::Workers, "/usr/sbin/nginx");
    command.arg("-p").arg(dir).arg("-c").arg(dir.join("nginx.conf")).arg("-e").arg(dir.join("error.log"));
    let mut server = Process::start("nginx", command, &dir.join("nginx.out"))?;
    server.wait_ready(SOON, || sandbox.in_netns(|| TcpStream::connect(WORKER).is_ok()).unwrap_or_default())?;
    Ok(server)
}

/// How long one answer to this request is.
fn length(request: &[u8]) -> Result<usize> {
    let mut stream = TcpStream::connect(WORKER)?;
    stream.write_all(request)?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer.len())
}

fn measure(label: &str, size: usize, is_draining: bool) -> Result<()> {
    let sandbox = Sandbox::new(label)?;
    let _server = server(&sandbox, size)?;
    let told = std::sync::Arc::new(AtomicUsize::new(0));
    sandbox.in_netns(|| {
        let counter = std::sync::Arc::clone(&told);
        let watch = FramingWatch::start(&[WORKER], move |_: Pair, framing| {
            if matches!(framing, Framing::Complete { .. }) {
                counter.fetch_add(1, Ordering::Relaxed);
            }
        })?;
        watch.set_draining(WORKER, is_draining);
        let requests = [
            "GET /file HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST /file HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nabcd",
        ];
        let (before, start) = (spent()?, Instant::now());
        let sent = std::thread::scope(|scope| {
            let call =
                |n: usize| scope.spawn(move || call(requests[n % 2].as_bytes(), length(requests[n % 2].as_bytes())?));
            let callers: Vec<_> = (0..CALLERS).map(call).collect();
            callers
                .into_iter()
                .map(|caller| caller.join().map_err(|_| anyhow::anyhow!("a caller panicked"))?)
                .sum::<Result<usize>>()
        })?;
        let (span, spent) = (start.elapsed(), spent()? - before);
        let rate = sent as f64 / span.as_secs_f64();
        let share = spent.as_secs_f64() / span.as_secs_f64() * 100.0;
        eprintln!(
            "{size} bytes, draining {is_draining}: {rate:.0} requests/s cost {share:.1} % of a core, {:.1} us each",
            spent.as_secs_f64() * 1e6 / sent as f64
        );
        ensure!(spent < most(size) * sent as u32, "{spent:?} for {sent} requests");
        Ok(())
    })??;
    let told = told.load(Ordering::Relaxed);
    ensure!(is_draining == (told > 0), "{told} were told");
    Ok(())
}

#[test]
fn of_small_answers() -> Result<()> {
    measure("costsmall", 100, false)?;
    measure("costdrain", 100, true)
}

#[test]
fn of_answers_of_64_kib() -> Result<()> {
    measure("costlarge", 65_536, false)?;
    measure("costldrain", 65_536, true)
}
