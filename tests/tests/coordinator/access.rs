//! Digests, and who may do what.

use anyhow::Result;
use deployer::fleet::coordinator::{Coordinator, Kind, Trouble};
use deployer::fleet::zookeeper::{Acl, Settings};
use deployer_tests::sandbox::Sandbox;
use deployer_tests::zookeeper::ZooKeeper as Servers;

use crate::scene::{client, create, run, set, settings, text};

fn of(servers: &Servers<'_>, digest: &str, acl: Acl) -> Settings {
    Settings { digest: Some(digest.to_owned()), acl, ..settings(servers) }
}

#[test]
fn only_the_creator_may_write_and_who_may_read_is_set() -> Result<()> {
    let sandbox = Sandbox::new("zkaccess")?;
    let servers = Servers::start(&sandbox, 1)?;
    run(&sandbox, || async {
        let open = client(of(&servers, "shop:right", Acl::CreatorAndReaders)).await?;
        let closed = client(of(&servers, "shop:right", Acl::Creator)).await?;
        open.ensure("/open/x").await?;
        closed.ensure("/closed/x").await?;
        open.transact(vec![set("/open/x", "1", 0)]).await?;
        closed.transact(vec![set("/closed/x", "1", 0)]).await?;
        closed.ensure("/open/x").await?;

        let wrong = client(of(&servers, "shop:wrong", Acl::Creator)).await?;
        let nobody = client(settings(&servers)).await?;
        for (zk, hint) in [(&wrong, "\"shop\""), (&nobody, "name the file")] {
            assert_eq!(text(zk, "/open/x").await?.as_deref(), Some("1"), "everybody may read");
            let mut refusals = vec![zk.get("/closed/x").await.err(), zk.children("/closed").await.err()];
            refusals.push(zk.transact(vec![set("/open/x", "2", 1)]).await.err());
            refusals.push(zk.transact(vec![create("/closed/y", "", Kind::Ephemeral)]).await.err());
            refusals.push(zk.ensure("/open/y").await.err());
            for refusal in refusals {
                let Some(Trouble::Failed(why)) = &refusal else { panic!("{refusal:?}") };
                assert!(why.contains("no right to /") && why.contains(hint), "{why}");
                assert!(!why.contains("wrong"), "no password in {why}");
            }
        }
        Ok(())
    })
}

#[test]
fn rights_without_a_digest_are_refused() -> Result<()> {
    let sandbox = Sandbox::new("zkacl")?;
    let servers = Servers::start(&sandbox, 1)?;
    run(&sandbox, || async {
        let zk = client(Settings { acl: Acl::Creator, ..settings(&servers) }).await?;
        let refusals = [zk.ensure("/a").await.err(), zk.transact(vec![create("/a", "", Kind::Ephemeral)]).await.err()];
        for refusal in refusals {
            let Some(Trouble::Failed(why)) = &refusal else { panic!("{refusal:?}") };
            assert!(why.contains("digest"), "{why}");
        }
        Ok(())
    })
}
