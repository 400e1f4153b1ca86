//! Two pools of workers.

use std::{path::PathBuf, time::Duration};

use super::{
    super::{Batch, Caller, Deploy, Gate, Service},
    bad::refused,
    command, parse,
};

/// Four workers on line 2, their manager on line 3; `more` begins on line 4.
fn with(more: &str) -> String {
    format!(
        "[service.web]\nworkers = \"127.0.0.1:8000-8003\"\n\
         manager = {{ supervisord = \"/s\", program = \"web_{{port}}\" }}\n{more}\n"
    )
}

/// `deploy` on line 4, with a second pool and these keys.
fn deploy_with(keys: &str) -> String {
    with(&format!("deploy = {{ second = \"next\", {keys} }}"))
}

fn web(text: &str) -> Service {
    parse(text).unwrap().services.remove("web").unwrap()
}

fn deploy(keys: &str) -> Deploy {
    web(&deploy_with(keys)).deploy.unwrap()
}

fn ports(deploy: &Deploy) -> Vec<u16> {
    deploy.second.iter().map(|at| at.port()).collect()
}

#[test]
fn what_is_not_said_is_supposed() {
    let web = web(&with("deploy.second = \"next\""));
    let found = web.deploy.clone().unwrap();
    let expected = Deploy {
        second: (8004..8008).map(|port| ([127, 0, 0, 1], port).into()).collect(),
        lanes: 16,
        preview: Vec::new(),
        user: None,
        prepare: None,
        gate: None,
        within: Duration::from_secs(60),
        gate_every: Duration::from_secs(10),
        bake: Duration::from_secs(600),
        batch: Batch::Percent(25),
        max_crashes: 0,
        max_failed: 0.05,
        files: ["a", "b"].map(|pool| PathBuf::from(format!("/var/lib/deployer/pools/web-{pool}.env"))),
    };
    assert_eq!(found, expected);
    assert_eq!((web.members().count(), web.second().len()), (8, 4));
    assert_eq!(parse(&with("")).unwrap().services["web"].deploy, None);
}

#[test]
fn every_key_is_read() {
    let found = deploy(
        "lanes = 255, preview = [\"/sys/fs/cgroup/qa\", \"/usr/bin/curl\"], prepare = [\"/p\", \"{version}\", \"{pool}\", \
         \"{lane}\", \"{service}\"], gate = [\"/g\", \"{lane}\"], within = \"5m\", gate_every = \"1s\", bake = \"168h\", \
         batch = 2, max_crashes = 3, max_failed = \"0.5%\"",
    );
    assert_eq!((found.lanes, found.batch, found.max_crashes), (255, Batch::Count(2), 3));
    assert_eq!(found.preview.len(), 2);
    assert!(matches!((&found.preview[0], &found.preview[1]), (Caller::Cgroup(_), Caller::Executable(_))));
    assert_eq!(found.prepare, command(&["/p", "{version}", "{pool}", "{lane}", "{service}"]));
    assert!(matches!(&found.gate, Some(Gate::Command(gate)) if gate.argv == ["/g", "{lane}"]));
    assert_eq!((found.within, found.gate_every), (Duration::from_secs(300), Duration::from_secs(1)));
    assert_eq!((found.bake, found.max_failed), (Duration::from_hours(168), 0.005));
    let asked = deploy("gate = { path = \"/ready\", status = 200 }").gate;
    assert!(matches!(asked, Some(Gate::Request(asked)) if asked.path == "/ready" && asked.status == Some(200)));
    for (share, read) in [("0%", 0.0), ("100%", 1.0), ("2 %", 0.02)] {
        assert_eq!(deploy(&format!("max_failed = \"{share}\"")).max_failed, read);
    }
}

#[test]
fn the_second_pool_is_written_or_comes_next() {
    let second = |second: &str| web(&with(&format!("deploy.second = {second}"))).deploy.unwrap();
    assert_eq!(ports(&second("\"127.0.0.1:8100-8101\"")), [8100, 8101], "it need not be as large");
    assert_eq!(ports(&second("[\"127.0.0.1:8200\", \"127.0.0.1:8100\"]")), [8200, 8100]);
    let last = "[service.web]\nworkers = [\"127.0.0.1:9005\", \"127.0.0.1:8000\"]\n\
                manager = { supervisord = \"/s\", program = \"w{port}\" }\ndeploy.second = \"next\"\n";
    assert_eq!(ports(&web(last).deploy.unwrap()), [9006, 9007]);
}

#[test]
fn a_second_pool_that_cannot_be() {
    let key = "service.web.deploy.second";
    refused(&with("deploy = { bake = \"1m\" }"), &[(4, key, "is missing; write second = \"next\"")]);
    for (second, reason) in [
        ("\"other\"", "is no address; write IP:PORT"),
        ("8100", "is an integer"),
        ("[]", "names no worker"),
        ("\"127.0.0.1:8003-8004\"", "127.0.0.1:8003 is already a worker's in service.web.workers (line 2)"),
        ("\"[::1]:8100\"", "is of another address family"),
        ("\"127.0.0.1:9000-9252\"", "makes 257 with the workers; write at most 256 for both pools together"),
        ("\"127.77.0.1:9000\"", "are addresses of lanes"),
    ] {
        refused(&with(&format!("deploy.second = {second}")), &[(4, key, reason)]);
    }
    let highest = "[service.web]\nworkers = \"127.0.0.1:65530-65534\"\n\
                   manager = { supervisord = \"/s\", program = \"w{port}\" }\ndeploy.second = \"next\"\n";
    refused(highest, &[(4, key, "finds 1 ports after 65534, and needs 5; write an address range")]);
}

#[test]
fn wrong_settings() {
    for (key, value, reason) in [
        ("lanes", "2", "2 is out of range; write a whole number from 3 to 255"),
        ("lanes", "256", "out of range"),
        ("lanes", "\"16\"", "is a string"),
        ("preview", "\"/x\"", "a list of paths"),
        ("prepare", "\"make\"", "is a string"),
        ("prepare", "[]", "is empty; write a program and its arguments"),
        ("gate", "7", "\"GET /path\" or a table with method and path"),
        ("gate", "\"ready\"", "is no request; write a method and a path"),
        ("within", "\"0s\"", "is too short"),
        ("within", "60", "has no unit"),
        ("gate_every", "\"500ms\"", "is too short; write 1s to 1h"),
        ("bake", "\"0s\"", "is too short; write 1s to"),
        ("bake", "\"169h\"", "is too long"),
        ("batch", "0", "out of range; write a whole number from 1 to 256"),
        ("batch", "\"0%\"", "write 4 or \"10%\""),
        ("batch", "0.5", "is a float"),
        ("max_crashes", "-1", "out of range"),
        ("max_failed", "1", "a share of the connections, \"1%\""),
        ("max_failed", "\"1\"", "is no share; write \"0%\" to \"100%\""),
        ("max_failed", "\"101%\"", "is no share"),
        ("max_failed", "\"-1%\"", "is no share"),
        ("max_failed", "\"NaN%\"", "is no share"),
    ] {
        let path = format!("service.web.deploy.{key}");
        refused(&deploy_with(&format!("{key} = {value}")), &[(4, &path, reason)]);
    }
    let unknown = "{port} is replaced by nothing; write {version} or {service} or {pool} or {lane}";
    for key in ["prepare", "gate"] {
        let path = format!("service.web.deploy.{key}[1]");
        refused(&deploy_with(&format!("{key} = [\"/p\", \"{{port}}\"]")), &[(4, &path, unknown)]);
    }
    let relative = "is a relative path; write an absolute one";
    refused(&deploy_with("prepare = [\"./p\"]"), &[(4, "service.web.deploy.prepare[0]", relative)]);
    refused(&deploy_with("pause = 1"), &[(4, "service.web.deploy.pause", "is unknown; write one of: ")]);
}

#[test]
fn what_does_not_go_with_two_pools() {
    let key = "service.web.deploy";
    let spare = with("spare = \"127.0.0.1:8040\"\ndeploy.second = \"127.0.0.1:8100-8103\"");
    refused(&spare, &[(5, key, "stands beside `spare`")]);
    let ipv6 = "[service.web]\nworkers = \"[::1]:8000\"\naddress = \"[::1]:9000\"\n\
                manager = { supervisord = \"/s\", program = \"w{port}\" }\ndeploy.second = \"next\"\n";
    refused(ipv6, &[(5, key, "needs an IPv4 service address, of which lane addresses have the port")]);
}

#[test]
fn lane_addresses_are_nobody_elses() {
    let api = "[service.api]\nworkers = \"127.0.0.2:8000\"\naddress = \"127.0.0.2:9000\"\n\
               manager = { supervisord = \"/s\", program = \"a{port}\" }\ndeploy.second = \"next\"";
    let two = with(&format!("address = \"127.0.0.1:9000\"\ndeploy.second = \"next\"\n{api}"));
    let reason = "127.77.0.0:9000 is already a service's in service.web.deploy (line 5)";
    refused(&two, &[(10, "service.api.deploy", reason)]);
    parse(&two.replace("127.0.0.2:9000", "127.0.0.2:9001")).unwrap();
    let reason = "those of 127.77.0.0/16 are addresses of lanes; write 127.0.0.1";
    refused(&with("address = \"127.77.1.2:9000\""), &[(4, "service.web.address", reason)]);
    let worker = "[service.web]\nworkers = \"127.77.1.2:8000\"\nmanager = { supervisord = \"/s\", program = \"w\" }";
    refused(worker, &[(2, "service.web.workers", reason)]);
}
