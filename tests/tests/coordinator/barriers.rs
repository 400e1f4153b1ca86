//! Barriers, shared with Kazoo.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use deployer::fleet::barrier::{self, DoubleBarrier, DoubleBarrierAt};
use deployer::fleet::coordinator::{Coordinator, Kind, Op};
use deployer::fleet::zookeeper::{Acl, Settings, ZooKeeper};
use deployer_tests::pace::patient;
use deployer_tests::sandbox::Sandbox;
use deployer_tests::zookeeper::ZooKeeper as Servers;
use tokio::task::JoinHandle;

use crate::kazoo::Kazoo;
use crate::outages::cut;
use crate::scene::{SESSION, SOON, client, run, settings, until};

const PATH: &str = "/release/monday";
/// What does not happen within this time does not happen.
const QUIET: Duration = Duration::from_millis(700);

fn double(zk: &Arc<ZooKeeper>, parties: u32) -> DoubleBarrier {
    party(zk, parties, "app17-4711")
}

fn party(zk: &Arc<ZooKeeper>, parties: u32, who: &str) -> DoubleBarrier {
    let at = DoubleBarrierAt { path: PATH.to_owned(), parties };
    DoubleBarrier::new(Arc::clone(zk) as Arc<dyn Coordinator>, at, who.to_owned())
}

/// Enters in a task of its own.
fn entering(mut barrier: DoubleBarrier) -> JoinHandle<Result<DoubleBarrier, String>> {
    tokio::spawn(async move { barrier.enter().await.map(|()| barrier) })
}

async fn soon<T>(what: &str, task: JoinHandle<T>) -> Result<T> {
    match tokio::time::timeout(patient(SOON), task).await {
        Ok(done) => Ok(done?),
        Err(_) => anyhow::bail!("not in time: {what}"),
    }
}

async fn parties(zk: &ZooKeeper) -> Result<Vec<String>> {
    Ok(zk.children(PATH).await?)
}

/// Waits until so many nodes are there.
async fn until_there_are(zk: &ZooKeeper, count: usize) -> Result<Vec<String>> {
    let deadline = std::time::Instant::now() + patient(SOON);
    loop {
        let there = parties(zk).await.unwrap_or_default();
        if there.len() == count {
            return Ok(there);
        }
        ensure!(std::time::Instant::now() < deadline, "{count} nodes wanted: {there:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn a_plain_barrier_that_kazoo_holds_and_releases() -> Result<()> {
    let sandbox = Sandbox::new("zkplain")?;
    let mut servers = Servers::start(&sandbox, 1)?;
    run(&sandbox, || async {
        let zk = Arc::new(client(Settings { session_timeout: SOON, ..settings(&servers) }).await?);
        barrier::open(&*zk, PATH).await.map_err(anyhow::Error::msg)?;
        for is_with_outage in [false, true] {
            let mut kazoo = Kazoo::start(&sandbox, &servers, 20, &["hold", PATH])?;
            kazoo.says("held").await?;
            let other = Arc::clone(&zk);
            let waiting = tokio::spawn(async move { barrier::open(&*other, PATH).await });
            tokio::time::sleep(QUIET).await;
            if is_with_outage {
                servers.kill(0)?;
                tokio::time::sleep(QUIET).await;
                ensure!(!waiting.is_finished(), "no ZooKeeper is no open barrier");
                servers.launch(0)?;
                servers.wait_ready()?;
                until(&zk, |link| link.is_connected).await?;
            }
            ensure!(!waiting.is_finished(), "it is held");
            kazoo.go_on()?;
            soon("open", waiting).await?.map_err(anyhow::Error::msg)?;
            kazoo.says("open").await?;
        }
        let refused = barrier::open(&*zk, "no/path").await;
        ensure!(refused.is_err_and(|why| why.contains("no/path")), "a path that is none ends the wait");
        Ok(())
    })
}

#[test]
fn a_barrier_of_ours_stops_kazoo() -> Result<()> {
    let sandbox = Sandbox::new("zkours")?;
    let servers = Servers::start(&sandbox, 1)?;
    run(&sandbox, || async {
        let zk = client(settings(&servers)).await?;
        zk.ensure(PATH).await?;
        let mut kazoo = Kazoo::start(&sandbox, &servers, 20, &["wait", PATH])?;
        kazoo.says("waiting").await?;
        tokio::time::sleep(QUIET).await;
        ensure!(!kazoo.has_said("open"));
        zk.transact(vec![Op::Delete { path: PATH.to_owned(), version: None }]).await?;
        kazoo.says("open").await
    })
}

#[test]
fn three_parties_of_which_two_are_kazoos_enter_and_leave_together() -> Result<()> {
    let sandbox = Sandbox::new("zkdouble")?;
    let servers = Servers::start(&sandbox, 1)?;
    run(&sandbox, || async {
        let zk = Arc::new(client(settings(&servers)).await?);
        // Who comes last lets all others in: each in turn.
        for round in 0..3 {
            let words = ["double", PATH, "3"];
            let mut ours = (round == 0).then(|| entering(double(&zk, 3)));
            if round == 0 {
                until_there_are(&zk, 1).await?;
            }
            let mut first = Kazoo::start(&sandbox, &servers, 20, &words)?;
            until_there_are(&zk, if round == 0 { 2 } else { 1 }).await?;
            if round == 1 {
                ours = Some(entering(double(&zk, 3)));
                until_there_are(&zk, 2).await?;
            }
            tokio::time::sleep(QUIET).await;
            ensure!(!first.has_said("entered") && ours.as_ref().is_none_or(|ours| !ours.is_finished()));
            let mut second = Kazoo::start(&sandbox, &servers, 20, &words)?;
            let ours = match ours {
                Some(ours) => ours,
                None => {
                    until_there_are(&zk, 2).await?;
                    entering(double(&zk, 3))
                }
            };
            let mut inside = soon("entered", ours).await?.map_err(anyhow::Error::msg)?;
            first.says("entered").await?;
            second.says("entered").await?;

            let leaving = tokio::spawn(async move { inside.leave().await });
            tokio::time::sleep(QUIET).await;
            ensure!(!leaving.is_finished(), "the others are still in it");
            first.go_on()?;
            tokio::time::sleep(QUIET / 2).await;
            ensure!(!leaving.is_finished(), "one other is still in it");
            second.go_on()?;
            soon("left", leaving).await?.map_err(anyhow::Error::msg)?;
            first.says("left").await?;
            second.says("left").await?;
            until_there_are(&zk, 0).await?;
        }
        Ok(())
    })
}

#[test]
fn two_of_ours_enter_and_leave_again_and_again() -> Result<()> {
    let sandbox = Sandbox::new("zkhasty")?;
    let servers = Servers::start(&sandbox, 1)?;
    run(&sandbox, || async {
        let (zk, other) = (Arc::new(client(settings(&servers)).await?), Arc::new(client(settings(&servers)).await?));
        for round in 0..30 {
            let ours = entering(double(&zk, 2));
            until_there_are(&zk, 1).await?;
            let mut hasty = party(&other, 2, "app18-12");
            let hasty = tokio::spawn(async move {
                hasty.enter().await?;
                // The sign that all are there is gone again before anybody can read it.
                if round % 10 == 0 {
                    tokio::time::sleep(QUIET / 2).await;
                }
                hasty.leave().await
            });
            let mut ours = soon("entered", ours).await?.map_err(anyhow::Error::msg)?;
            ours.leave().await.map_err(anyhow::Error::msg)?;
            soon("left", hasty).await?.map_err(anyhow::Error::msg)?;
        }
        Ok(())
    })
}

/// Who enters last may have left again before anybody can look; what tells the others is the watch alone.
#[test]
fn a_last_party_that_leaves_before_it_is_seen() -> Result<()> {
    let sandbox = Sandbox::new("zkbrief")?;
    let servers = Servers::start(&sandbox, 1)?;
    run(&sandbox, || async {
        let (zk, other) = (Arc::new(client(settings(&servers)).await?), client(settings(&servers)).await?);
        for _ in 0..3 {
            let ours = entering(double(&zk, 2));
            until_there_are(&zk, 1).await?;
            // Its watch is set before its node is there, and what it sees after that is this party's alone.
            tokio::time::sleep(QUIET / 2).await;
            ensure!(!ours.is_finished(), "one is not two");
            let create = |name: &str, kind| Op::Create { path: format!("{PATH}/{name}"), data: Vec::new(), kind };
            let delete = |name: &str| Op::Delete { path: format!("{PATH}/{name}"), version: None };
            let (own, ready) = ("brief", "ready");
            let (enters, tells) = (create(own, Kind::Ephemeral), create(ready, Kind::Persistent));
            other.transact(vec![enters, tells, delete(ready), delete(own)]).await?;
            let mut inside = soon("entered", ours).await?.map_err(anyhow::Error::msg)?;
            inside.leave().await.map_err(anyhow::Error::msg)?;
            until_there_are(&zk, 0).await?;
        }
        Ok(())
    })
}

#[test]
fn a_party_that_is_cut_off_is_not_counted() -> Result<()> {
    let sandbox = Sandbox::new("zkparty")?;
    let servers = Servers::start(&sandbox, 1)?;
    run(&sandbox, || async {
        let zk = Arc::new(client(settings(&servers)).await?);
        // Left over by parties that died within the barrier.
        zk.ensure(&format!("{PATH}/ready")).await?;
        let lost = Kazoo::start(&sandbox, &servers, 2, &["double", PATH, "3"])?;
        until_there_are(&zk, 2).await?;
        lost.suspend()?;
        until_there_are(&zk, 1).await?;
        let ours = entering(double(&zk, 3));
        until_there_are(&zk, 2).await?;
        zk.transact(vec![Op::Delete { path: format!("{PATH}/ready"), version: None }]).await?;
        let mut second = Kazoo::start(&sandbox, &servers, 20, &["double", PATH, "3"])?;
        until_there_are(&zk, 2).await?;
        tokio::time::sleep(QUIET).await;
        ensure!(!ours.is_finished() && !second.has_said("entered"), "two are not three");
        let mut third = Kazoo::start(&sandbox, &servers, 2, &["double", PATH, "3"])?;
        let mut inside = soon("entered", ours).await?.map_err(anyhow::Error::msg)?;
        second.says("entered").await?;
        third.says("entered").await?;
        // One dies within: its session ends, and the others leave without it.
        third.kill()?;
        second.go_on()?;
        let leaving = tokio::spawn(async move { inside.leave().await });
        soon("left", leaving).await?.map_err(anyhow::Error::msg)?;
        second.says("left").await
    })
}

#[test]
fn after_a_lost_session_it_enters_again_and_is_counted_once() -> Result<()> {
    let sandbox = Sandbox::new("zkagain")?;
    let servers = Servers::start(&sandbox, 1)?;
    run(&sandbox, || async {
        let zk = Arc::new(client(settings(&servers)).await?);
        let mut first = Kazoo::start(&sandbox, &servers, 60, &["double", PATH, "3"])?;
        until_there_are(&zk, 1).await?;
        let ours = entering(double(&zk, 3));
        let before = until_there_are(&zk, 2).await?;
        cut(&sandbox, "-A")?;
        until(&zk, |link| link.lost == 1).await?;
        tokio::time::sleep(SESSION * 2).await;
        cut(&sandbox, "-D")?;
        until(&zk, |link| link.is_connected && link.session == 2).await?;
        tokio::time::sleep(QUIET).await;
        let after = until_there_are(&zk, 2).await?;
        ensure!(before != after, "{after:?}: the node is a new one");
        ensure!(!ours.is_finished());
        let mut third = Kazoo::start(&sandbox, &servers, 60, &["double", PATH, "3"])?;
        let mut inside = soon("entered", ours).await?.map_err(anyhow::Error::msg)?;
        first.says("entered").await?;
        third.says("entered").await?;
        first.go_on()?;
        third.go_on()?;
        let leaving = tokio::spawn(async move { inside.leave().await });
        soon("left", leaving).await?.map_err(anyhow::Error::msg)?;
        first.says("left").await?;
        third.says("left").await
    })
}

#[test]
fn who_withdraws_is_no_party_any_more_and_without_a_right_it_says_so() -> Result<()> {
    let sandbox = Sandbox::new("zkwithdraw")?;
    let servers = Servers::start(&sandbox, 1)?;
    run(&sandbox, || async {
        let zk = Arc::new(client(settings(&servers)).await?);
        let mut ours = double(&zk, 2);
        ensure!(tokio::time::timeout(QUIET, ours.enter()).await.is_err(), "alone, it waits");
        until_there_are(&zk, 1).await?;
        ours.withdraw().await;
        until_there_are(&zk, 0).await?;

        let digest = Some("shop:secret".to_owned());
        let owner = client(Settings { digest, acl: Acl::Creator, ..settings(&servers) }).await?;
        owner.transact(vec![Op::Create { path: "/theirs".into(), data: Vec::new(), kind: Kind::Persistent }]).await?;
        let at = DoubleBarrierAt { path: "/theirs".to_owned(), parties: 2 };
        let mut theirs = DoubleBarrier::new(Arc::clone(&zk) as Arc<dyn Coordinator>, at, "me".to_owned());
        let refused = theirs.enter().await;
        ensure!(refused.as_ref().is_err_and(|why| why.contains("/theirs") && why.contains("no right")), "{refused:?}");
        Ok(())
    })
}
