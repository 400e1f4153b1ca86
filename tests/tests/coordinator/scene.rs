//! A ZooKeeper in a sandbox, and clients of it on a runtime in the sandbox's namespace.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use deployer::fleet::coordinator::{Coordinator, Kind, Link, Op, Trouble, Watch};
use deployer::fleet::zookeeper::{Acl, Settings, ZooKeeper};
use deployer_tests::pace::patient;
use deployer_tests::sandbox::Sandbox;
use deployer_tests::zookeeper::ZooKeeper as Servers;

/// Given to everything that should happen soon.
pub(crate) const SOON: Duration = Duration::from_secs(20);
/// The sessions of most tests.
pub(crate) const SESSION: Duration = Duration::from_secs(2);

/// Runs a test's own part, which is asynchronous, on a runtime in the sandbox's namespace.
pub(crate) fn run<F: Future<Output = Result<()>>>(sandbox: &Sandbox, work: impl FnOnce() -> F + Send) -> Result<()> {
    sandbox.in_netns(|| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(2).enable_all().build().context("a runtime")?;
        let result = runtime.block_on(work());
        runtime.shutdown_timeout(Duration::from_secs(2));
        result
    })?
}

/// Settings of a client of these servers, without a digest.
pub(crate) fn settings(servers: &Servers<'_>) -> Settings {
    Settings { servers: servers.connect(), session_timeout: SESSION, digest: None, acl: Acl::Anyone }
}

/// A client, connected.
pub(crate) async fn client(settings: Settings) -> Result<ZooKeeper> {
    let client = ZooKeeper::start(settings);
    until(&client, |link| link.is_connected).await?;
    Ok(client)
}

/// Waits until the connection is like that.
pub(crate) async fn until(client: &ZooKeeper, wanted: impl Fn(&Link) -> bool) -> Result<Link> {
    let mut link = client.link();
    let found = tokio::time::timeout(patient(SOON), link.wait_for(|link| wanted(link))).await;
    match found {
        Ok(found) => Ok(*found.context("the client has ended")?),
        Err(_) => bail!("it stays {:?}; {:?}", *client.link().borrow(), client.get("/").await),
    }
}

/// Tries a write until it is done: what is not known is looked at by the next attempt.
pub(crate) async fn insist(client: &ZooKeeper, path: &str, text: &str) -> Result<()> {
    let deadline = Instant::now() + patient(SOON);
    loop {
        match client.get(path).await {
            Ok(Some(node)) if node.data == text.as_bytes() => return Ok(()),
            Ok(Some(node)) => drop(client.transact(vec![set(path, text, node.version)]).await),
            Ok(None) => drop(client.transact(vec![create(path, text, Kind::Persistent)]).await),
            Err(error) if Instant::now() >= deadline => bail!("{path}: {error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Whether a watch tells within this time.
pub(crate) async fn told(watch: &mut Watch, limit: Duration) -> bool {
    tokio::time::timeout(limit, watch.changed()).await.is_ok()
}

/// Waits until a watch has been made, of which it tells once.
pub(crate) async fn made(watch: &mut Watch) -> Result<()> {
    anyhow::ensure!(told(watch, patient(SOON)).await, "the watch was not made");
    Ok(())
}

pub(crate) fn create(path: &str, text: &str, kind: Kind) -> Op {
    Op::Create { path: path.to_owned(), data: text.as_bytes().to_vec(), kind }
}

pub(crate) fn set(path: &str, text: &str, version: i32) -> Op {
    Op::Set { path: path.to_owned(), data: text.as_bytes().to_vec(), version }
}

pub(crate) fn check(path: &str, version: i32) -> Op {
    Op::Check { path: path.to_owned(), version }
}

pub(crate) fn delete(path: &str, version: Option<i32>) -> Op {
    Op::Delete { path: path.to_owned(), version }
}

/// The data of a node, as text.
pub(crate) async fn text(client: &ZooKeeper, path: &str) -> Result<Option<String>, Trouble> {
    Ok(client.get(path).await?.map(|node| String::from_utf8_lossy(&node.data).into_owned()))
}
