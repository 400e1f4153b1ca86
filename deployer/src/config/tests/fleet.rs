//! `[fleet]`, and who is published.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf, time::Duration};

use super::{
    super::{Acl, Fleet, secret},
    MINIMAL,
    bad::{refused, with},
    parse,
};

/// [`MINIMAL`] with a fleet: its table on line 4, `connect` and `name` on 5 and 6, `more` from line 7 on.
fn fleet_with(more: &str) -> String {
    with(&format!("[fleet]\nconnect = \"zk1:2181\"\nname = \"shop\"\n{more}"))
}

fn fleet(text: &str) -> Fleet {
    parse(text).unwrap().fleet
}

/// A file of this text and mode.
fn file(text: &str, mode: u32) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("zookeeper.secret");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    (dir, path)
}

#[test]
fn without_it_a_host_is_alone() {
    let alone = fleet(MINIMAL);
    assert_eq!((alone.connect.as_ref(), alone.name.as_str(), alone.enrol), (None, "local", true));
    let machine = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(alone.host, machine.trim_end());
}

#[test]
fn what_is_not_said_is_supposed() {
    let found = fleet(&fleet_with("host = \"app17.example\""));
    let connect = found.connect.as_ref().unwrap();
    assert_eq!((connect.servers.as_str(), connect.path.as_str()), ("zk1:2181", "/deployer"));
    assert_eq!(connect.to_string(), "zk1:2181/deployer");
    assert_eq!((found.name.as_str(), found.host.as_str()), ("shop", "app17.example"));
    let rest = (found.session_timeout, found.digest, found.acl, found.enrol);
    assert_eq!(rest, (Duration::from_secs(10), None, Acl::Anyone, true));
    // Whatever this machine is called: it is that, or has to be written.
    match parse(&fleet_with("")) {
        Ok(config) => assert_eq!(config.fleet.host, Fleet::local().host),
        Err(error) => assert!(error.to_string().contains("fleet.host: is missing; write host"), "{error}"),
    }
}

#[test]
fn connect_strings() {
    for (text, servers, path) in [
        ("zk1:2181,zk-2.example.com:1", "zk1:2181,zk-2.example.com:1", "/deployer"),
        ("10.0.0.1:65535/a/b-c_d.e", "10.0.0.1:65535", "/a/b-c_d.e"),
        ("[::1]:2181,[fe80::1]:2181/x", "[::1]:2181,[fe80::1]:2181", "/x"),
    ] {
        let text = format!("fleet = {{ connect = {text:?}, name = \"a\", host = \"b\" }}\n{MINIMAL}");
        let connect = fleet(&text).connect.unwrap();
        assert_eq!((connect.servers.as_str(), connect.path.as_str()), (servers, path));
    }
}

#[test]
fn connect_strings_that_lead_nowhere() {
    for (connect, reason) in [
        ("2181", "is an integer; write a string"),
        ("[\"zk1:2181\"]", "is a list; write a string"),
        ("\"\"", "is empty"),
        ("\"zk1\"", "\"zk1\" has no port after zk1; write zk1:2181"),
        ("\"zk1:2181,zk2/x\"", "has no port after zk2; write zk2:2181"),
        ("\"zk1:\"", "has no port in \"\"; write 1 to 65535, zk1:2181"),
        ("\"zk1:0\"", "has no port in \"0\""),
        ("\"zk1:65536\"", "has no port in \"65536\""),
        ("\"zk1:+1\"", "has no port in \"+1\""),
        ("\"zk1:2181,\"", "has \"\", which is no server; write HOST:PORT, zk1:2181, with commas between"),
        ("\"zk1:2181 zk2:2181\"", "has \"zk1:2181 zk2:2181\", which is no server"),
        ("\"tcp://zk1:2181\"", "has no port in \"\""),
        ("\"::1:2181\"", "which is no server"),
        ("\"[10.0.0.1]:2181\"", "which is no server"),
        ("\"/deployer\"", "has \"\", which is no server"),
        ("\"zk1:2181,zk1:2181\"", "names \"zk1:2181\" twice; write each server once"),
        ("\"zk1:2181/\"", "has \"/\", which is no path; write parts without blanks, /deployer, behind the last server"),
        ("\"zk1:2181/a/\"", "which is no path"),
        ("\"zk1:2181//a\"", "which is no path"),
        ("\"zk1:2181/a/../b\"", "which is no path"),
        ("\"zk1:2181/a b\"", "which is no path"),
        ("\"zk1:2181/a,zk2:2181\"", "which is no path"),
        ("\"zk1:2181/zookeeper/a\"", "where ZooKeeper keeps its own; write /deployer"),
    ] {
        let text = with(&format!("[fleet]\nconnect = {connect}\nname = \"shop\"\nhost = \"a\""));
        refused(&text, &[(5, "fleet.connect", reason)]);
    }
    let long = format!("zk1:2181/{}", "a".repeat(512));
    let text = with(&format!("[fleet]\nconnect = {long:?}\nname = \"shop\"\nhost = \"a\""));
    refused(&text, &[(5, "fleet.connect", "too long; write at most 512 letters")]);
}

#[test]
fn wrong_settings() {
    let missing = [
        (4, "fleet.connect", "is missing; write connect = \"zk1:2181,zk2:2181,zk3:2181/deployer\""),
        (4, "fleet.name", "is missing; write name = \"shop\""),
    ];
    refused(&with("[fleet]\nhost = \"a\""), &missing);
    refused(&format!("fleet = true\n{MINIMAL}"), &[(1, "fleet", "is a boolean; write a table")]);
    let name = "is no name of a fleet; write 1 to 64 of letters, digits, -, _, beginning with a letter or digit";
    for bad in ["", ".", "a.b", "a/b", "-a", "ä", "a b"] {
        let text = with(&format!("[fleet]\nconnect = \"a:1\"\nname = {bad:?}\nhost = \"h\""));
        refused(&text, &[(6, "fleet.name", name)]);
    }
    let host = "is no name of a host; write 1 to 64 of letters, digits, -, _, .";
    for (key, value, reason) in [
        ("host", "\"..\"", host),
        ("host", "\"a/b\"", host),
        ("host", "\"\"", host),
        ("host", "17", "is an integer; write a string"),
        ("session_timeout", "\"499ms\"", "is too short; write 500ms to 2m"),
        ("session_timeout", "\"3m\"", "is too long; write 500ms to 2m"),
        ("session_timeout", "10", "has no unit"),
        ("acl", "\"world\"", "write \"anyone\" or \"creator\" or \"creator-and-readers\""),
        ("acl", "\"creator\"", "needs somebody whom ZooKeeper knows; write digest = "),
        ("acl", "\"creator-and-readers\"", "or acl = \"anyone\""),
        ("enrol", "\"yes\"", "is a string; write true or false"),
        ("digest", "\"zookeeper.secret\"", "write the absolute path"),
        ("digest", "\"/nonexistent/s\"", "/nonexistent/s cannot be read: No such file"),
        ("digest", "\"/proc\"", "/proc is no file; write the path of one with a line `user:password`"),
        ("colour", "1", "one of: connect, name, host, session_timeout, digest, acl, enrol"),
    ] {
        let host = if key == "host" { "" } else { "host = \"h\"\n" };
        let line = if key == "host" { 7 } else { 8 };
        let text = fleet_with(&format!("{host}{key} = {value}"));
        refused(&text, &[(line, &format!("fleet.{key}"), reason)]);
    }
    let long = "a".repeat(65);
    refused(&fleet_with(&format!("host = {long:?}")), &[(7, "fleet.host", "1 to 64")]);
}

#[test]
fn secrets() {
    let (_dir, path) = file("deployer:geheim:1\n", 0o600);
    for acl in ["creator", "creator-and-readers"] {
        let text = fleet_with(&format!("host = \"h\"\ndigest = {path:?}\nacl = {acl:?}"));
        assert_eq!(fleet(&text).digest.as_ref(), Some(&path));
    }
    let found = secret(&path).unwrap();
    assert_eq!((found.user.as_str(), found.password.as_str()), ("deployer", "geheim:1"));
    assert!(!format!("{found:?}").contains("geheim"));
    let (_dir, path) = file("deployer:x", 0o640);
    let why = secret(&path).unwrap_err();
    assert!(why.contains("others may read or write it (mode 0640). Next: chmod 600 /"), "{why}");
    for text in ["", "\n", "geheim", ":geheim", "u:", "u:geheim\nv:geheim\n", "u:ge\theim"] {
        let (_dir, path) = file(text, 0o400);
        let why = secret(&path).unwrap_err();
        assert!(why.contains("is not one line `user:password`") && !why.contains("geheim"), "{why}");
    }
}

#[test]
fn who_is_published() {
    let web = |more: &str| parse(&with(more)).unwrap().services.remove("web").unwrap();
    assert_eq!(web("").publish, None);
    assert_eq!(web("publish = \"10.0.0.17:8080\"").publish, Some("10.0.0.17:8080".parse().unwrap()));
    assert_eq!(web("publish = \"[fd00::1]:80\"").publish, Some("[fd00::1]:80".parse().unwrap()));
    for (publish, reason) in [
        ("8080", "is an integer; write a string"),
        ("\"10.0.0.17\"", "has no port; write 10.0.0.17:8000"),
        ("\"0.0.0.0:80\"", "is every address and none to connect to"),
        ("\"app17:80\"", "has no IP address before the port"),
        ("\"10.0.0.17:80-81\"", "is a range; write one address"),
    ] {
        refused(&with(&format!("publish = {publish}")), &[(4, "service.web.publish", reason)]);
    }
}

#[test]
fn double_barriers_have_a_place_of_their_own() {
    let root = |more: &str| fleet(&fleet_with(&format!("host = \"a\"\n{more}"))).barrier_root();
    assert_eq!(root("").as_deref(), Some("/deployer/shop/barriers"));
    assert_eq!(root("barrier_root = \"/release\"").as_deref(), Some("/release"));
    assert_eq!(root("barrier_root = \"/deployer/shop/barriers/x\"").as_deref(), Some("/deployer/shop/barriers/x"));
    assert_eq!(fleet(MINIMAL).barrier_root(), None);
    for (wrong, why) in [
        ("/", "which is no path"),
        ("release", "no path from the root of ZooKeeper"),
        ("/release/../x", "which is no path"),
        ("/zookeeper/x", "where ZooKeeper keeps its own"),
        ("/deployer", "is where fleets keep what they agree on"),
        ("/deployer/shop/hosts", "is where fleets keep what they agree on"),
    ] {
        let text = fleet_with(&format!("host = \"a\"\nbarrier_root = {wrong:?}"));
        refused(&text, &[(8, "fleet.barrier_root", why)]);
    }
}
