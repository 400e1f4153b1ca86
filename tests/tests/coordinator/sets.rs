//! Server sets: what is published, Kazoo reads.

use std::collections::BTreeMap;

use anyhow::Result;
use deployer::fleet::coordinator::Coordinator;
use deployer::fleet::serverset::{self, Endpoint, Member};
use deployer_tests::sandbox::Sandbox;
use deployer_tests::zookeeper::ZooKeeper as Servers;

use crate::kazoo::Kazoo;
use crate::scene::{client, create, run, settings};

const SET: &str = "/deployer/shop/serversets/web/active";

fn member(host: &str, version: &str) -> Member {
    let endpoint = Endpoint { host: "10.0.0.17".to_owned(), port: 8080 };
    let metadata = [("host", host), ("version", version), ("lane", "3"), ("epoch", "42"), ("fleet", "shop")];
    let metadata: BTreeMap<_, _> = metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    Member::serving(endpoint, metadata)
}

#[test]
fn kazoo_reads_what_is_published_once_for_each_host() -> Result<()> {
    let sandbox = Sandbox::new("zksets")?;
    let servers = Servers::start(&sandbox, 1)?;
    run(&sandbox, || async {
        let zk = client(settings(&servers)).await?;
        let first = serverset::publish(&zk, SET, &member("app1", "v1"), None).await?;
        serverset::publish(&zk, SET, &member("app2", "v1"), None).await?;
        // In another version: a new node in place of the former.
        let second = serverset::publish(&zk, SET, &member("app1", "v2"), Some(&first)).await?;
        assert_ne!(first, second);
        // What is known has gone meanwhile; and what a former daemon left behind is replaced.
        let third = serverset::publish(&zk, SET, &member("app1", "v3"), Some(&first)).await?;
        let last = serverset::publish(&zk, SET, &member("app1", "v4"), None).await?;
        assert!(third != last && last.starts_with(&format!("{SET}/member_")), "{third} {last}");

        let mut kazoo = Kazoo::start(&sandbox, &servers, 20, &["sets", SET])?;
        kazoo.says("end").await?;
        let lines = kazoo.lines();
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(lines[0].contains(r#""version": "v1""#) && lines[1].contains(r#""version": "v4""#), "{lines:?}");
        assert!(lines[1].contains(r#""serviceEndpoint": {"host": "10.0.0.17", "port": 8080}"#), "{lines:?}");

        zk.transact(vec![create(
            &format!("{SET}/member_0000000099"),
            "{",
            deployer::fleet::coordinator::Kind::Ephemeral,
        )])
        .await?;
        zk.transact(vec![create(&format!("{SET}/other"), "", deployer::fleet::coordinator::Kind::Ephemeral)]).await?;
        let set = serverset::read(&zk, SET).await?;
        assert_eq!((set.members.len(), set.bad.len()), (2, 1), "{set:?}");
        assert_eq!(set.hosts(), ["app1", "app2"].map(str::to_owned).into());
        serverset::withdraw(&zk, SET, "app1").await?;
        assert_eq!(serverset::read(&zk, SET).await?.hosts(), ["app2".to_owned()].into());
        assert!(serverset::read(&zk, "/nowhere").await?.members.is_empty());
        Ok(())
    })
}
