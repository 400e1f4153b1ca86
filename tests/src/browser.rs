//! Browsers: sessions that load a page, and whose page then makes XHRs for a while, each of which must be answered by the
//! version that made the page.
//!
//! They go by what tests/app/pages.py serves ([`crate::pages`]).

mod seen;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

pub use self::seen::{Loaded, Page, Seen};
use crate::client::{Client, receive};
use crate::http::{Request, Response};
use crate::journal::monotonic_ns;
use crate::load::splitmix;
use crate::nginx;
use crate::pace::patient;
use crate::pages::Said;
use crate::sandbox::Sandbox;

const NAVIGATION: [(&str, &str); 2] = [("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "document")];
const XHR: [(&str, &str); 2] = [("Sec-Fetch-Mode", "cors"), ("Sec-Fetch-Dest", "empty")];

/// The sessions. Of 20 in a row, 10 name the lane in the URL instead of a header, 10 keep their connections, 4 reload in the
/// middle, 4 are two tabs with one cookie jar, and 4 load a page of which a cache may have a copy.
#[derive(Clone, Debug)]
pub struct Browsers {
    /// Request ids are `<run>-<session>-<tab>-<number>`; no two of a test may share a run.
    pub run: String,
    /// Where to.
    pub target: SocketAddr,
    /// How many.
    pub sessions: u32,
    /// XHRs of a page, half of them POSTs; then its tab begins again with a new page.
    pub xhrs: u32,
    /// Over this time; longer on a slow machine.
    pub spread: Duration,
    /// How long caches may keep the copies, s.
    pub cache_seconds: u32,
    /// What a request may take before it counts as failed; longer on a slow machine.
    pub limit: Duration,
}

/// Running browsers. Dropping this ends them without a result.
#[derive(Debug)]
pub struct BrowsersHandle {
    stop: watch::Sender<bool>,
    seen: Arc<Mutex<Seen>>,
    thread: Option<JoinHandle<Result<Result<()>>>>,
}

/// What is peculiar to a session.
#[derive(Clone, Copy, Debug)]
struct Habits {
    prefix: bool,
    keeps: bool,
    reloads: bool,
    tabs: u64,
    cached: bool,
}

impl Habits {
    /// All combinations come up in 20 sessions in a row.
    fn of(session: u32) -> Self {
        let manner = session / 4 % 5;
        Self {
            prefix: session % 2 == 1,
            keeps: session / 2 % 2 == 1,
            reloads: manner == 2,
            tabs: if manner == 3 { 2 } else { 1 },
            cached: manner == 4,
        }
    }
}

impl Browsers {
    /// 200 sessions through nginx, whose pages make 20 XHRs in 30 s: some 170 requests a second.
    pub fn new(run: &str) -> Self {
        Self {
            run: run.to_owned(),
            target: nginx::ADDRESS,
            sessions: 200,
            xhrs: 20,
            spread: Duration::from_secs(30),
            cache_seconds: 5,
            limit: Duration::from_secs(30),
        }
    }

    /// Starts them in the sandbox's namespace, one after the other in the time of a page.
    pub fn start(self, sandbox: &Sandbox) -> Result<BrowsersHandle> {
        if self.sessions == 0 || self.xhrs == 0 || self.spread.is_zero() {
            bail!("{} sessions, {} XHRs in {:?}: each must be more than 0", self.sessions, self.xhrs, self.spread);
        }
        let (stop, stopped) = watch::channel(false);
        let seen = Arc::<Mutex<Seen>>::default();
        let theirs = Arc::clone(&seen);
        let thread = sandbox.spawn_in_netns(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.context("the browsers' runtime")?.block_on(browse(Arc::new(self), theirs, stopped))
        });
        Ok(BrowsersHandle { stop, seen, thread: Some(thread) })
    }
}

impl BrowsersHandle {
    /// What they have seen so far.
    pub fn so_far(&self) -> Seen {
        lock(&self.seen).clone()
    }

    /// Has them send nothing more, waits for the answers that are still due, and says what they have seen.
    pub fn stop(mut self) -> Result<Seen> {
        self.stop.send_replace(true);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result.flatten()?,
            Some(Err(panic)) => bail!("the browsers panicked: {panic:?}"),
            None => (),
        }
        Ok(self.so_far())
    }
}

impl Drop for BrowsersHandle {
    fn drop(&mut self) {
        // Not joined: after a failed assertion nobody wants to wait. The thread ends by itself.
        self.stop.send_replace(true);
    }
}

async fn browse(browsers: Arc<Browsers>, seen: Arc<Mutex<Seen>>, stopped: watch::Receiver<bool>) -> Result<()> {
    let mut tabs = JoinSet::new();
    let start = Instant::now();
    let spread = patient(browsers.spread);
    for session in 0..browsers.sessions {
        let habits = Habits::of(session);
        let (client, jar) = (Arc::new(Client::new(browsers.target)), Arc::<Mutex<Option<String>>>::default());
        for tab in 0..habits.tabs {
            // The second tab is opened when the first one's page is half through.
            let share = f64::from(session) / f64::from(browsers.sessions) + tab as f64 / 2.0;
            let tab = Tab {
                browsers: Arc::clone(&browsers),
                habits,
                name: format!("{}-{session}-{tab}", browsers.run),
                draw: u64::from(session) << 32 | tab << 24,
                client: Arc::clone(&client),
                jar: Arc::clone(&jar),
                seen: Arc::clone(&seen),
                stopped: stopped.clone(),
                sent: 0,
            };
            tabs.spawn(tab.live(start + spread.mul_f64(share)));
        }
    }
    while let Some(ended) = tabs.join_next().await {
        ended.context("a tab")?;
    }
    Ok(())
}

/// One tab of a session.
struct Tab {
    browsers: Arc<Browsers>,
    habits: Habits,
    name: String,
    /// Where its numbers begin ([`splitmix`]).
    draw: u64,
    /// The session's connections and its cookie.
    client: Arc<Client>,
    jar: Arc<Mutex<Option<String>>>,
    seen: Arc<Mutex<Seen>>,
    stopped: watch::Receiver<bool>,
    /// Requests so far.
    sent: u64,
}

impl Tab {
    /// Page after page.
    async fn live(mut self, mut at: Instant) {
        let step = patient(self.browsers.spread) / self.browsers.xhrs;
        while self.until(at).await {
            let Some(mut page) = self.load().await else {
                at = Instant::now() + step;
                continue;
            };
            let begun = Instant::now();
            for number in 0..self.browsers.xhrs {
                if self.habits.reloads && number == self.browsers.xhrs / 2 {
                    // One that could not be loaded leaves the old page as it was.
                    page = self.load().await.unwrap_or(page);
                }
                let jitter = (self.random() >> 40) as f64 / (1_u64 << 24) as f64;
                if !self.until(begun + step.mul_f64(f64::from(number) + jitter)).await {
                    return;
                }
                self.xhr(&page).await;
            }
            at = begun + step * self.browsers.xhrs;
        }
    }

    /// Waits until then; whether to go on.
    async fn until(&mut self, at: Instant) -> bool {
        // An error: nobody is left who could stop it.
        tokio::time::timeout_at(at, self.stopped.wait_for(|stopped| *stopped)).await.is_err()
    }

    /// A number that is the same in every run.
    fn random(&self) -> u64 {
        splitmix(self.draw + self.sent)
    }

    /// Navigates.
    async fn load(&mut self) -> Option<Page> {
        let id = self.next_id();
        let path = match self.habits.cached {
            true => format!("/page?cache={}", self.browsers.cache_seconds),
            false => "/page".to_owned(),
        };
        let begin_ns = monotonic_ns();
        // A copy bears the id of whoever asked first.
        let answer = self.answer("GET", &path, &NAVIGATION, (!self.habits.cached).then_some(id.as_str()));
        let page = answer.await.and_then(|answer| {
            if let Some(cookie) = answer.header("Set-Cookie") {
                let cookie = cookie.split(';').next().unwrap_or(cookie);
                *lock(&self.jar) = Some(cookie.to_owned());
            }
            Page::parse(&answer.body)
        });
        lock(&self.seen).page(&format!("{id} GET {path}"), self.habits.cached, begin_ns, page)
    }

    /// One XHR of a page.
    async fn xhr(&mut self, page: &Page) {
        let id = self.next_id();
        let method = if self.random() & 1 == 0 { "GET" } else { "POST" };
        let (mut path, mut headers) = (format!("/xhr?id={id}"), XHR.to_vec());
        match (page.lane.as_str(), self.habits.prefix) {
            ("", _) => (),
            (lane, true) => path = format!("/_lane/{lane}{path}"),
            (lane, false) => headers.push(("X-Deployer-Lane", lane)),
        }
        let answer = self.answer(method, &path, &headers, Some(&id)).await;
        let said = answer.and_then(|answer| Said::parse(&answer.body));
        lock(&self.seen).xhr(&format!("{id} {method} {path}"), page, said);
    }

    fn next_id(&mut self) -> String {
        self.sent += 1;
        format!("{}-{}", self.name, self.sent)
    }

    /// An answer with status 200, and if the request had an id, to this very request.
    async fn answer(&self, method: &str, path: &str, headers: &[(&str, &str)], id: Option<&str>) -> Result<Response> {
        let cookie = lock(&self.jar).clone();
        let named = id.map(|id| ("X-Request-Id", id));
        let headers: Vec<_> =
            headers.iter().copied().chain(named).chain(cookie.as_deref().map(|cookie| ("Cookie", cookie))).collect();
        let body = if method == "POST" { path } else { "" };
        let limit = patient(self.browsers.limit);
        let exchange = self.exchange(Request { method, path, headers: &headers, body });
        let answer =
            tokio::time::timeout(limit, exchange).await.with_context(|| format!("no answer within {limit:?}"))??;
        ensure!(answer.status == 200, "status {}: {:?}", answer.status, answer.body);
        ensure!(id.is_none() || answer.header("X-Request-Id") == id, "the answer to another request");
        Ok(answer)
    }

    async fn exchange(&self, request: Request<'_>) -> Result<Response> {
        if self.habits.keeps {
            return self.client.exchange(&request).await;
        }
        let mut stream = TcpStream::connect(self.browsers.target).await.context("connect")?;
        stream.set_nodelay(true)?;
        stream.write_all(&request.encode()).await.context("send")?;
        receive(&mut stream).await
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twenty_sessions_have_all_habits() {
        let all: Vec<_> = (0..20).map(Habits::of).collect();
        let count = |has: fn(&Habits) -> bool| all.iter().filter(|habits| has(habits)).count();
        assert_eq!((count(|h| h.prefix), count(|h| h.keeps)), (10, 10));
        assert_eq!((count(|h| h.reloads), count(|h| h.tabs == 2), count(|h| h.cached)), (4, 4, 4));
        for manner in 0..5 {
            let of = &all[manner * 4..manner * 4 + 4];
            assert_eq!(of.iter().filter(|h| h.prefix && h.keeps).count(), 1, "{of:?}");
        }
    }
}
