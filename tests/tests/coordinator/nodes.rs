//! Nodes are read, and changed all at once or not at all.

use anyhow::Result;
use deployer::fleet::coordinator::{Coordinator, Kind, Trouble, Why};
use deployer_tests::sandbox::Sandbox;
use deployer_tests::zookeeper::ZooKeeper as Servers;

use crate::scene::{check, client, create, delete, run, set, settings, text};

#[test]
fn reads_and_writes() -> Result<()> {
    let sandbox = Sandbox::new("zknodes")?;
    let servers = Servers::start(&sandbox, 1)?;
    run(&sandbox, || async {
        let zk = client(settings(&servers)).await?;
        assert_eq!(zk.get("/deployer/shop").await?, None);
        assert!(zk.children("/deployer/shop").await?.is_empty());
        zk.ensure("/deployer/shop/hosts").await?;
        zk.ensure("/deployer/shop/hosts").await?;
        zk.ensure("/").await?;

        let made = zk
            .transact(vec![
                create("/deployer/shop/state", "one", Kind::Persistent),
                create("/deployer/shop/hosts/app1", "", Kind::Ephemeral),
                create("/deployer/shop/hosts/n-", "", Kind::EphemeralSequential),
                check("/deployer/shop/state", 0),
                create("/deployer/shop/log-", "", Kind::Sequential),
            ])
            .await?;
        assert_eq!(made[..2], ["/deployer/shop/state", "/deployer/shop/hosts/app1"]);
        assert!(made[2].starts_with("/deployer/shop/hosts/n-00000000"), "{made:?}");
        assert_eq!(made.len(), 4, "{made:?}");
        let children = zk.children("/deployer/shop/hosts").await?;
        assert_eq!(children[0], "app1");
        assert!(made[2].ends_with(&children[1]), "{children:?}");

        let state = zk.get("/deployer/shop/state").await?.expect("it was made");
        assert_eq!((state.data.as_slice(), state.version, state.owner), (&b"one"[..], 0, None));
        assert!(zk.transact(vec![set("/deployer/shop/state", "two", 0)]).await?.is_empty());
        assert_eq!(zk.get("/deployer/shop/state").await?.expect("it was written").version, 1);
        let host = zk.get("/deployer/shop/hosts/app1").await?.expect("it was made");
        let numbered = zk.get(&made[2]).await?.expect("it was made");
        assert!(host.owner.is_some() && host.owner == numbered.owner, "{host:?} {numbered:?}");
        assert!(zk.transact(Vec::new()).await?.is_empty(), "nothing to do is done");
        Ok(())
    })
}

#[test]
fn a_transaction_is_refused_as_a_whole_for_one_step() -> Result<()> {
    let sandbox = Sandbox::new("zkmulti")?;
    let servers = Servers::start(&sandbox, 1)?;
    run(&sandbox, || async {
        let zk = client(settings(&servers)).await?;
        zk.ensure("/a/b").await?;
        let refused = |nth, why| Err(Trouble::Refused { nth, why });
        let also = || create("/a/also", "", Kind::Persistent);
        let exists = vec![also(), create("/a", "", Kind::Persistent)];
        assert_eq!(zk.transact(exists).await, refused(1, Why::Exists));
        assert_eq!(zk.transact(vec![also(), check("/a", 7)]).await, refused(1, Why::Version));
        assert_eq!(zk.transact(vec![set("/a", "x", 7), also()]).await, refused(0, Why::Version));
        assert_eq!(zk.transact(vec![also(), also(), also()]).await, refused(1, Why::Exists));
        assert_eq!(zk.transact(vec![check("/none", 0)]).await, refused(0, Why::Missing));
        assert_eq!(zk.transact(vec![also(), delete("/a", None)]).await, refused(1, Why::NotEmpty));
        let orphan = vec![also(), create("/none/x", "", Kind::Persistent)];
        assert_eq!(zk.transact(orphan).await, refused(1, Why::Missing));
        assert_eq!(text(&zk, "/a/also").await?, None, "nothing of all that was done");

        for senseless in ["", "a", "/a/", "//", "/a/../b", "/a\u{0}"] {
            assert!(matches!(zk.get(senseless).await, Err(Trouble::Failed(_))), "{senseless:?}");
            assert!(matches!(zk.ensure(senseless).await, Err(Trouble::Failed(_))), "{senseless:?}");
            let write = zk.transact(vec![set(senseless, "", 0)]).await;
            assert!(matches!(write, Err(Trouble::Failed(_))), "{senseless:?}: {write:?}");
        }
        let large = "x".repeat(1_200_000);
        let large = zk.transact(vec![set("/a", &large, 0)]).await;
        assert!(matches!(large, Err(Trouble::Failed(_))), "{large:?}");
        zk.transact(vec![create("/a/short", "", Kind::Ephemeral)]).await?;
        let below = zk.transact(vec![create("/a/short/x", "", Kind::Persistent)]).await;
        assert!(matches!(below, Err(Trouble::Failed(_))), "{below:?}");
        assert_eq!(zk.link().borrow().session, 1, "the connection has stood all that");
        Ok(())
    })
}
