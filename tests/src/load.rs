//! A steady, open-loop load: requests start when they are due, whether or not earlier ones have been answered.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::client::Client;
use crate::http::{Request, Response};
use crate::journal::monotonic_ns;
use crate::nginx;
use crate::pace::{gentle, patient};
use crate::report::{Mark, Outcome, Report};
use crate::sandbox::Sandbox;

/// Above this many requests in flight, due ones wait; they are made up for later.
const MOST_IN_FLIGHT: u32 = 512;

/// What is sent. Every request has a connection of its own, so that no failure is the client's own doing, unless
/// connections are kept.
#[derive(Clone, Debug)]
pub struct Load {
    /// Request ids are `<run>-<number>`; no two loads of a test may share a run.
    pub run: String,
    /// Where to.
    pub target: SocketAddr,
    /// Requests a second; fewer on a slow machine.
    pub rate: f64,
    /// The share of POSTs, 0 to 1.
    pub post_share: f64,
    /// One request in this many, on average, is slow; 0: none.
    pub slow_one_in: u64,
    /// What a slow one takes.
    pub slow_seconds: u32,
    /// What a request may take before it counts as failed; longer on a slow machine.
    pub limit: Duration,
    /// Whether the clients keep their connections.
    pub keep_alive: bool,
    /// A closed loop instead of the rate: so many clients, each of which sends a request as soon as it has its answer.
    pub clients: usize,
    /// Answers come in two halves, chunked or with a length, with a pause of 50 ms to 5 s between them.
    pub paused: bool,
    /// How long the fast worker takes, ms.
    pub wait_ms: u32,
}

/// A running load. Dropping it ends it without a report.
#[derive(Debug)]
pub struct LoadHandle {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<Result<()>>>>,
}

#[derive(Debug)]
struct Shared {
    stopping: AtomicBool,
    sent: AtomicU64,
    failed: AtomicU64,
    outcomes: Mutex<Vec<Outcome>>,
    marks: Mutex<Vec<Mark>>,
}

impl Load {
    /// 300 requests a second through nginx, half of them POSTs, one in 200 takes 8 s.
    pub fn new(run: &str) -> Self {
        Self {
            run: run.to_owned(),
            target: nginx::ADDRESS,
            rate: 300.0,
            post_share: 0.5,
            slow_one_in: 200,
            slow_seconds: 8,
            limit: Duration::from_secs(30),
            keep_alive: false,
            clients: 0,
            paused: false,
            wait_ms: 0,
        }
    }

    /// Starts the load in the sandbox's namespace, in a phase called `before`.
    pub fn start(self, sandbox: &Sandbox) -> Result<LoadHandle> {
        if !(self.rate > 0.0 && self.rate <= 100_000.0) {
            bail!("a load of {} requests a second", self.rate);
        }
        let shared = Arc::new(Shared {
            stopping: AtomicBool::new(false),
            sent: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            outcomes: Mutex::default(),
            marks: Mutex::new(vec![Mark::now("before")]),
        });
        let theirs = Arc::clone(&shared);
        let thread = sandbox.spawn_in_netns(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().context("the load's runtime")?;
            runtime.block_on(generate(Arc::new(self), theirs))
        });
        Ok(LoadHandle { shared, thread: Some(thread) })
    }

    /// Request number `n`: method, path, whether it is slow.
    fn request(&self, n: u64) -> (&'static str, String, bool) {
        // Drawn from a hash: a fixed pattern would fall in step with nginx's round robin, and a worker would see one
        // method only.
        let draw = splitmix(n);
        let post = (draw >> 40) as f64 / ((1_u64 << 24) as f64) < self.post_share;
        let method = if post { "POST" } else { "GET" };
        if self.paused {
            return (method, paused_path(draw), true);
        }
        let path = match (post, draw % 8) {
            (true, _) => "/post".to_owned(),
            (false, 0..=1) => "/".to_owned(),
            (false, 2..=3) => "/pin/1".to_owned(),
            (false, _) => format!("/pin/{}", 2 + n % 997),
        };
        let slow = self.slow_one_in > 0 && (draw >> 8).is_multiple_of(self.slow_one_in);
        let path = match (slow, self.wait_ms) {
            (true, _) => format!("{path}?slow={}", self.slow_seconds),
            (false, 0) => path,
            (false, wait) => format!("{path}?wait={wait}"),
        };
        (method, path, slow)
    }
}

/// A pause of 50 ms to 5 s, short ones as often as long ones; half a body of 1 byte to 32 KiB.
fn paused_path(draw: u64) -> String {
    let kind = if draw & 16 == 0 { "length" } else { "chunked" };
    let share = (draw >> 8 & 0xffff) as f64 / 65536.0;
    let pause = 0.05 * 100_f64.powf(share);
    format!("/paused/{kind}?pause={pause:.3}&size={}", 1 << (draw >> 32 & 15))
}

impl Shared {
    fn keep(&self, outcome: Outcome) {
        if outcome.failed() {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        lock(&self.outcomes).push(outcome);
    }
}

impl LoadHandle {
    /// Begins a new phase: requests that start from now on are reported under `label`.
    pub fn mark(&self, label: &str) {
        lock(&self.shared.marks).push(Mark::now(label));
    }

    /// Requests sent so far.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// Requests failed so far.
    pub fn failed(&self) -> u64 {
        self.shared.failed.load(Ordering::Relaxed)
    }

    /// Sends nothing more, waits for the answers that are still due, and reports.
    pub fn stop(mut self) -> Result<Report> {
        self.end()?;
        let outcomes = std::mem::take(&mut *lock(&self.shared.outcomes));
        let marks = std::mem::take(&mut *lock(&self.shared.marks));
        Ok(Report::new(self.sent(), outcomes, &marks))
    }

    /// Sends nothing more, and waits for the answers that are still due.
    pub fn end(&mut self) -> Result<()> {
        self.shared.stopping.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result.flatten(),
            Some(Err(panic)) => bail!("the load panicked: {panic:?}"),
            None => Ok(()),
        }
    }
}

impl Drop for LoadHandle {
    fn drop(&mut self) {
        // Not joined: after a failed assertion nobody wants to wait for the slow ones. The thread ends by itself.
        self.shared.stopping.store(true, Ordering::Relaxed);
    }
}

async fn generate(load: Arc<Load>, shared: Arc<Shared>) -> Result<()> {
    let client = Arc::new(Client::new(load.target));
    if load.clients > 0 {
        return closed_loop(&load, &shared).await;
    }
    let rate = gentle(load.rate);
    let room = Arc::new(Semaphore::new(MOST_IN_FLIGHT as usize));
    let start = Instant::now();
    let mut n = 0_u64;
    while !shared.stopping.load(Ordering::Relaxed) {
        let due = (start.elapsed().as_secs_f64() * rate) as u64;
        if n >= due {
            let next = start + Duration::from_secs_f64((n + 1) as f64 / rate);
            tokio::time::sleep_until(next.into()).await;
            continue;
        }
        let place = Arc::clone(&room).acquire_owned().await?;
        let (load, shared, client) = (Arc::clone(&load), Arc::clone(&shared), Arc::clone(&client));
        shared.sent.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            let outcome = one(&load, &client, n).await;
            shared.keep(outcome);
            drop(place);
        });
        n += 1;
    }
    // Every request has its time limit, so this ends. One that never reports back would be counted as failed.
    let rest = patient(load.limit + Duration::from_secs(5));
    let all = tokio::time::timeout(rest, room.acquire_many(MOST_IN_FLIGHT)).await;
    drop(all);
    Ok(())
}

/// Clients that are always busy, each with a connection of its own.
async fn closed_loop(load: &Arc<Load>, shared: &Arc<Shared>) -> Result<()> {
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..load.clients {
        let (load, shared, client) = (Arc::clone(load), Arc::clone(shared), Client::new(load.target));
        clients.spawn(async move {
            while !shared.stopping.load(Ordering::Relaxed) {
                let n = shared.sent.fetch_add(1, Ordering::Relaxed);
                let outcome = one(&load, &client, n).await;
                shared.keep(outcome);
            }
        });
    }
    while let Some(client) = clients.join_next().await {
        client.context("a client")?;
    }
    Ok(())
}

async fn one(load: &Load, client: &Client, n: u64) -> Outcome {
    let id = format!("{}-{n}", load.run);
    let (method, path, slow) = load.request(n);
    let body = if method == "POST" { body(n) } else { String::new() };
    let headers = [("X-Request-Id", id.as_str()), ("User-Agent", "load/1")];
    let request = Request { method, path: &path, headers: &headers, body: &body };
    let start_ns = monotonic_ns();
    let answer = tokio::time::timeout(patient(load.limit), exchange(load, client, &request)).await;
    let end_ns = monotonic_ns();
    let answer = match answer {
        Ok(answer) => answer.and_then(|answer| check(answer, &id, &request)),
        Err(_) => Err(anyhow::anyhow!("no answer within {:?}", patient(load.limit))),
    };
    Outcome::new(id, method, path, slow, (start_ns, end_ns), answer)
}

/// Spreads consecutive numbers evenly (SplitMix64); the same load draws the same requests every time.
pub fn splitmix(n: u64) -> u64 {
    let mut z = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Between 8 bytes and 2 KiB, so that some need more than one read.
fn body(n: u64) -> String {
    format!("n={n:06}{}", "x".repeat((n * 37 % 2048) as usize))
}

async fn exchange(load: &Load, client: &Client, request: &Request<'_>) -> Result<Response> {
    if load.keep_alive || load.clients > 0 {
        return client.exchange(request).await;
    }
    let mut stream = TcpStream::connect(load.target).await.context("connect")?;
    stream.write_all(&request.encode()).await.context("send")?;
    let mut answer = Vec::with_capacity(512);
    stream.read_to_end(&mut answer).await.context("receive")?;
    if load.paused {
        return Response::complete(&answer)?.with_context(|| format!("cut after {} bytes", answer.len()));
    }
    Response::parse(&answer)
}

/// A 200 must be the answer to this very request.
fn check(answer: Response, id: &str, request: &Request<'_>) -> Result<Response> {
    if answer.status == 200 {
        if answer.header("X-Request-Id") != Some(id) {
            bail!("the answer to another request");
        }
        if let Some((_, size)) = request.path.split_once("&size=") {
            let size = size.parse()?;
            let right =
                answer.body.bytes().eq([b'a', b'b'].into_iter().flat_map(|byte| std::iter::repeat_n(byte, size)));
            if !right {
                bail!("a body of {} bytes that is not the one that was asked for", answer.body.len());
            }
        } else if request.method == "POST" && answer.body != request.body.len().to_string() {
            bail!("the worker has read {} of {} bytes", answer.body, request.body.len());
        }
    }
    Ok(answer)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
