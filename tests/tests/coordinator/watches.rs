//! Who watches a node hears of each change, once for a burst, and once after each new connection.

use std::time::Duration;

use anyhow::Result;
use deployer::fleet::coordinator::{Coordinator, Kind};
use deployer_tests::pace::patient;
use deployer_tests::sandbox::Sandbox;
use deployer_tests::zookeeper::ZooKeeper as Servers;

use crate::scene::{SOON, client, create, delete, insist, made, run, set, settings, told, until};

/// What does not come within this time does not come.
const QUIET: Duration = Duration::from_millis(500);

#[test]
fn tells_of_what_is_watched_and_of_nothing_else() -> Result<()> {
    let sandbox = Sandbox::new("zkwatch")?;
    let servers = Servers::start(&sandbox, 1)?;
    run(&sandbox, || async {
        let (zk, other) = (client(settings(&servers)).await?, client(settings(&servers)).await?);
        zk.ensure("/a").await?;
        let (mut node, mut below, mut absent) = (zk.watch("/a", false), zk.watch("/a", true), zk.watch("/b/c", false));
        for watch in [&mut node, &mut below, &mut absent] {
            made(watch).await?;
            assert!(!told(watch, QUIET).await);
        }
        other.transact(vec![create("/a/x", "", Kind::Ephemeral)]).await?;
        assert!(told(&mut below, patient(SOON)).await);
        assert!(!told(&mut node, QUIET).await, "it is not about what is below");
        other.transact(vec![set("/a", "1", 0)]).await?;
        assert!(told(&mut node, patient(SOON)).await && told(&mut below, patient(SOON)).await);
        other.transact(vec![delete("/a/x", None)]).await?;
        assert!(told(&mut below, patient(SOON)).await);
        other.ensure("/b/c").await?;
        assert!(told(&mut absent, patient(SOON)).await, "a node that was not there was made");
        other.transact(vec![delete("/b/c", None)]).await?;
        assert!(told(&mut absent, patient(SOON)).await);

        // Of two watches on a node, one goes: the other stays.
        drop(below);
        assert!(!told(&mut node, QUIET).await);
        other.transact(vec![set("/a", "2", 1)]).await?;
        assert!(told(&mut node, patient(SOON)).await);
        // A burst is heard of, but not once for each.
        for version in 2..100 {
            other.transact(vec![set("/a", "3", version)]).await?;
        }
        tokio::time::sleep(QUIET).await;
        assert!(told(&mut node, patient(SOON)).await);
        assert!(!told(&mut node, QUIET).await);
        Ok(())
    })
}

#[test]
fn tells_after_each_new_connection_and_goes_on() -> Result<()> {
    let sandbox = Sandbox::new("zkrewatch")?;
    let mut servers = Servers::start(&sandbox, 1)?;
    run(&sandbox, || async {
        let zk = client(settings(&servers)).await?;
        zk.ensure("/a").await?;
        let mut watch = zk.watch("/a", true);
        made(&mut watch).await?;
        for round in 0..3 {
            servers.kill(0)?;
            until(&zk, |link| !link.is_connected).await?;
            assert!(!told(&mut watch, QUIET).await, "nothing is known without a connection");
            servers.launch(0)?;
            servers.wait_ready()?;
            until(&zk, |link| link.is_connected).await?;
            assert!(told(&mut watch, patient(SOON)).await, "what was missed is not known");
            assert!(!told(&mut watch, QUIET).await);
            insist(&zk, "/a/x", &round.to_string()).await?;
            assert!(told(&mut watch, patient(SOON)).await, "round {round}");
            told(&mut watch, QUIET).await;
        }
        Ok(())
    })
}
