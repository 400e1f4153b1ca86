//! Gates before small servers.

use std::{
    net::Ipv4Addr,
    sync::{
        LazyLock,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::sleep,
};

use super::*;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const BAD: &str = "HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n";
const LONG: Duration = Duration::from_secs(30);
static SEVEN: LazyLock<Version> = LazyLock::new(|| "7".into());

fn about() -> About<'static> {
    About { service: "web", version: Some(&SEVEN), pool: "second", lane: 3, is_tls: false }
}

/// Servers that have so many requests before them at once, at most.
#[derive(Default)]
struct Pool {
    at: Vec<SocketAddr>,
    tasks: JoinSet<()>,
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl Pool {
    /// One for each answer; an empty one never comes.
    async fn new(answers: &[&'static str]) -> Self {
        let mut pool = Self::default();
        for answer in answers {
            pool.add(answer).await;
        }
        pool
    }

    async fn add(&mut self, answer: &'static str) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        self.at.push(listener.local_addr().unwrap());
        let (now, most) = (Arc::clone(&self.now), Arc::clone(&self.most));
        self.tasks.spawn(async move {
            while let Ok((mut peer, _)) = listener.accept().await {
                let _ = peer.read(&mut [0; 4096]).await;
                most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
                sleep(if answer.is_empty() { LONG } else { Duration::from_millis(20) }).await;
                now.fetch_sub(1, SeqCst);
                let _ = peer.write_all(answer.as_bytes()).await;
            }
        });
    }

    async fn request(&self, status: Option<u16>, within: Duration) -> Result<(), String> {
        let (method, path) = ("GET".to_owned(), "/ready".to_owned());
        let gate = Gate::Request(Request { method, tls: None, path, headers: Vec::new(), body: String::new(), status });
        pass(&gate, &about(), &self.at, None, within).await
    }

    async fn sh(&self, script: &str, within: Duration) -> Result<(), String> {
        let argv = ["/bin/bash", "-c", script, "{pool}:{lane}:{service}:{version}"].map(str::to_owned).to_vec();
        pass(&Gate::Command(Command { argv }), &about(), &self.at, None, within).await
    }
}

#[tokio::test]
async fn every_worker_is_asked_a_few_at_a_time() {
    let pool = Pool::new(&[OK; 3 * AT_A_TIME]).await;
    assert_eq!(pool.request(None, LONG).await, Ok(()));
    assert!((2..=AT_A_TIME).contains(&pool.most.load(SeqCst)));
    assert!(pool.request(Some(204), LONG).await.unwrap_err().contains("status 200, expected 204"));
}

#[tokio::test]
async fn one_that_fails_is_named() {
    let pool = Pool::new(&[OK, BAD, OK]).await;
    let why = pool.request(None, LONG).await.unwrap_err();
    let bad = pool.at[1];
    let expected = format!("1 of 3 workers of the new pool failed: {bad}: status 500, expected 2xx or 3xx");
    assert_eq!(why, format!("the gate `GET /ready`: {expected}"));
    let all = Pool::new(&[BAD; 5]).await.request(None, LONG).await.unwrap_err();
    assert!(all.contains("5 of 5") && all.ends_with("; and 2 more"), "{all}");
}

#[tokio::test]
async fn those_that_hang_or_are_gone() {
    let mut pool = Pool::new(&[""; AT_A_TIME]).await;
    pool.at.push(std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap());
    let begun = Instant::now();
    let why = pool.request(None, Duration::from_millis(300)).await.unwrap_err();
    assert!(begun.elapsed() < LONG / 2 && why.contains("9 of 9") && why.contains("no answer within 0.3 s"), "{why}");
    pool.at.drain(..AT_A_TIME);
    let gone = pool.request(None, LONG).await.unwrap_err();
    assert!(gone.ends_with("connection refused"), "{gone}");
}

#[tokio::test]
async fn a_command_knows_what_it_tries() {
    let pool = Pool::new(&[OK, OK]).await;
    let workers = format!("{} {}", pool.at[0], pool.at[1]);
    let script = format!(
        "test $0 = second:3:web:7 && test \"$DEPLOYER_WORKERS\" = '{workers}' && \
         test $DEPLOYER_POOL:$DEPLOYER_LANE:$DEPLOYER_SERVICE:$DEPLOYER_VERSION = $0"
    );
    assert_eq!(pool.sh(&script, LONG).await, Ok(()));
}

/// A request by bash alone, which is all that is surely there.
#[tokio::test]
async fn a_command_has_a_door() {
    let get = "exec 3<>/dev/tcp/127.0.0.1/${DEPLOYER_URL##*:}; printf 'GET / HTTP/1.1\\r\\n\\r\\n' >&3; read -r line <&3; \
               echo \"$line\"; [[ $line == *200* ]]";
    assert_eq!(Pool::new(&[OK]).await.sh(get, LONG).await, Ok(()));
    let why = Pool::new(&[BAD]).await.sh(get, LONG).await.unwrap_err();
    assert!(why.ends_with("(exit status: 1): HTTP/1.1 500 No"), "{why}");
}

#[tokio::test]
async fn a_command_that_fails_is_told() {
    let pool = Pool::new(&[OK]).await;
    let why = pool.sh("yes fine | head -c 90000; echo 1 failed; exit 4", LONG).await.unwrap_err();
    assert!(why.starts_with("the gate `/bin/bash -c ") && why.contains("second:3:web:7` failed (exit status: 4): ..."));
    assert!(why.ends_with("fine; 1 failed"), "{why}");
    assert!(pool.sh("exit 4", LONG).await.unwrap_err().ends_with("(exit status: 4): it said nothing"));
    let late = pool.sh("exec sleep 100", Duration::from_millis(50)).await.unwrap_err();
    assert!(late.ends_with("was still running after 0.05 s, and was killed with all that it had started"), "{late}");
    let gate = Gate::Command(Command { argv: vec!["/nonexistent".to_owned()] });
    assert!(pass(&gate, &about(), &pool.at, None, LONG).await.unwrap_err().contains("cannot be run"));
    assert!(pass(&gate, &about(), &[], None, LONG).await.is_err());
}

#[test]
fn facts_are_filled_in() {
    assert_eq!(about().fill("-{version}-{lane}-{}{other}"), "-7-3-{}{other}");
    let unknown = About { version: None, ..about() };
    assert!(unknown.environment(&[]).iter().all(|(name, _)| *name != "DEPLOYER_VERSION"));
}
