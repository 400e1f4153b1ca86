//! Servers that are restarted, suspended, killed, or cut off.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use deployer::fleet::coordinator::{Coordinator, Kind, Trouble};
use deployer::fleet::zookeeper::{Settings, ZooKeeper};
use deployer_tests::process;
use deployer_tests::sandbox::{Place, Sandbox};
use deployer_tests::zookeeper::{PORT, ZooKeeper as Servers};

use crate::scene::{SESSION, client, create, insist, run, set, settings, text, until};

/// Both at once: what is asked without a connection fails, soon.
async fn away(zk: &ZooKeeper) -> Result<()> {
    let asked = Instant::now();
    let answers = [
        zk.get("/a").await.err(),
        zk.children("/a").await.err(),
        zk.ensure("/away").await.err(),
        zk.transact(vec![create("/away", "", Kind::Persistent)]).await.err(),
    ];
    for answer in answers {
        ensure!(matches!(answer, Some(Trouble::Away(_))), "{answer:?}");
    }
    ensure!(asked.elapsed() < Duration::from_secs(1), "it took {:?}", asked.elapsed());
    Ok(())
}

#[test]
fn a_restarted_server_finds_the_session_again() -> Result<()> {
    let sandbox = Sandbox::new("zkrestart")?;
    let mut servers = Servers::start(&sandbox, 1)?;
    run(&sandbox, || async {
        // Longer than a server takes to start on a busy machine.
        let long = Settings { session_timeout: Duration::from_secs(30), ..settings(&servers) };
        let zk = client(long).await?;
        zk.ensure("/a").await?;
        zk.transact(vec![create("/a/me", "", Kind::Ephemeral)]).await?;
        servers.kill(0)?;
        until(&zk, |link| !link.is_connected).await?;
        away(&zk).await?;
        servers.launch(0)?;
        servers.wait_ready()?;
        let link = until(&zk, |link| link.is_connected).await?;
        assert_eq!((link.session, link.lost), (1, 0));
        assert!(zk.get("/a/me").await?.is_some(), "it is of the session that goes on");
        assert_eq!(zk.get("/away").await?, None, "what was refused does not run later");
        Ok(())
    })
}

#[test]
fn an_outage_longer_than_the_session_counts_as_its_end_before_anybody_can_say_so() -> Result<()> {
    let sandbox = Sandbox::new("zklong")?;
    let mut servers = Servers::start(&sandbox, 1)?;
    run(&sandbox, || async {
        let zk = client(settings(&servers)).await?;
        servers.kill(0)?;
        let cut = until(&zk, |link| !link.is_connected).await?;
        assert_eq!(cut.lost, 0);
        let gone = until(&zk, |link| link.lost == 1).await?;
        assert!(!gone.is_connected && gone.session == 1, "{gone:?}");
        away(&zk).await?;
        servers.launch(0)?;
        servers.wait_ready()?;
        let back = until(&zk, |link| link.is_connected).await?;
        assert_eq!(back.lost, 1, "it is counted once");
        zk.ensure("/a").await?;
        Ok(())
    })
}

#[test]
fn a_suspended_server_lets_the_session_expire() -> Result<()> {
    let sandbox = Sandbox::new("zkstopped")?;
    let mut servers = Servers::start(&sandbox, 1)?;
    run(&sandbox, || async {
        let zk = client(settings(&servers)).await?;
        zk.ensure("/a").await?;
        zk.transact(vec![create("/a/me", "", Kind::Ephemeral)]).await?;
        servers.suspend(0)?;
        // Its kernel still takes what is sent.
        let write = zk.transact(vec![set("/a", "sent", 0)]).await;
        assert!(matches!(write, Err(Trouble::Unknown(_))), "{write:?}");
        until(&zk, |link| !link.is_connected).await?;
        away(&zk).await?;
        // A server that goes on may hear from its client before it looks at the clock, and keeps the session then.
        for _ in 0..3 {
            tokio::time::sleep(SESSION * 2).await;
            servers.resume(0)?;
            if until(&zk, |link| link.is_connected).await?.session == 2 {
                break;
            }
            servers.suspend(0)?;
            until(&zk, |link| !link.is_connected).await?;
        }
        let link = until(&zk, |link| link.is_connected && link.session == 2).await?;
        assert!(link.lost >= 1, "{link:?}");
        assert_eq!(zk.get("/a/me").await?, None, "it went with its session");
        zk.transact(vec![create("/a/me", "", Kind::Ephemeral)]).await?;
        assert_eq!(zk.get("/away").await?, None);
        Ok(())
    })
}

/// Takes all packets to the servers away, or no longer; inside the sandbox's namespace only.
pub(crate) fn cut(sandbox: &Sandbox, change: &str) -> Result<()> {
    let mut command: Command = sandbox.command(Place::Outside, "iptables");
    command.args(["-w", change, "INPUT", "-p", "tcp", "--dport", &PORT.to_string(), "-j", "DROP"]);
    process::run(&mut command).map(drop)
}

#[test]
fn a_client_that_is_cut_off_loses_its_session_and_gets_a_new_one() -> Result<()> {
    let sandbox = Sandbox::new("zkcut")?;
    let servers = Servers::start(&sandbox, 1)?;
    run(&sandbox, || async {
        let zk = client(settings(&servers)).await?;
        zk.ensure("/a").await?;
        zk.transact(vec![create("/a/me", "", Kind::Ephemeral)]).await?;
        cut(&sandbox, "-A")?;
        let asked = Instant::now();
        let write = zk.transact(vec![create("/a/late", "", Kind::Persistent)]).await;
        assert!(matches!(write, Err(Trouble::Unknown(_))), "{write:?}");
        assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
        until(&zk, |link| link.lost == 1).await?;
        away(&zk).await?;
        // The server takes its time by steps of its own.
        tokio::time::sleep(SESSION).await;
        cut(&sandbox, "-D")?;
        let link = until(&zk, |link| link.is_connected).await?;
        assert_eq!((link.session, link.lost), (2, 1));
        assert_eq!(zk.get("/a/me").await?, None);
        tokio::time::sleep(SESSION).await;
        assert_eq!(zk.get("/a/late").await?, None, "it came too late for its session");
        Ok(())
    })
}

#[test]
fn a_leader_that_is_killed_costs_no_session() -> Result<()> {
    let sandbox = Sandbox::new("zkleader")?;
    let mut servers = Servers::start(&sandbox, 3)?;
    run(&sandbox, || async {
        let long = Settings { session_timeout: Duration::from_secs(10), ..settings(&servers) };
        let (zk, other) = (client(long.clone()).await?, client(long).await?);
        zk.ensure("/a").await?;
        zk.transact(vec![create("/a/me", "", Kind::Ephemeral)]).await?;
        for round in 0..2 {
            let leader = servers.leader()?;
            servers.kill(leader)?;
            let killed = Instant::now();
            insist(&zk, "/a/state", &round.to_string()).await?;
            println!("written {} ms after the leader was killed", killed.elapsed().as_millis());
            // Who was connected to another server reads the same.
            insist(&other, "/a/other", &round.to_string()).await?;
            assert_eq!(text(&other, "/a/state").await?, Some(round.to_string()));
            servers.launch(leader)?;
            servers.wait_ready()?;
        }
        for zk in [&zk, &other] {
            let link = until(zk, |link| link.is_connected).await?;
            assert_eq!((link.session, link.lost), (1, 0));
        }
        assert!(other.get("/a/me").await?.is_some());
        // Without a quorum nothing is said, and nothing is done.
        servers.kill(0)?;
        servers.kill(1)?;
        until(&zk, |link| !link.is_connected).await?;
        away(&zk).await
    })
}
