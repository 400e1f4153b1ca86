//! Bad calls of the API: each is answered as an error, or its connection closed, and the daemon goes on.

use std::io::{Read, Write};
use std::time::Duration;

use anyhow::{Result, ensure};

use deployer_tests::api::Api;
use deployer_tests::daemon::ServiceConfig;
use deployer_tests::sandbox::Sandbox;
use deployer_tests::stage::Stage;

const ROLL: &str = "/v1/services/web/roll";
const DRAIN: &str = "/v1/services/web/drain";

/// Method, path, body, what the error must name.
const CALLS: &[(&str, &str, &[u8], &str)] = &[
    ("GET", "/", b"", "no GET /"),
    ("GET", "/v2/status", b"", "/v2/status"),
    ("POST", "/v1/status", b"", "no POST /v1/status"),
    ("GET", ROLL, b"", "no GET"),
    ("DELETE", "/v1/services/web", b"", "no DELETE"),
    ("BREW", "/v1/status", b"", "BREW"),
    ("POST", ROLL, b"v2", "body"),
    ("POST", ROLL, b"[", "body"),
    ("POST", ROLL, b"[]]", "body"),
    ("POST", ROLL, b"null", "body"),
    ("POST", ROLL, b"\xff\xfe{}", "body"),
    ("POST", ROLL, b"{\"to\":\"\xff\"}", "body"),
    ("POST", ROLL, b"{\"to\":5}", "to"),
    ("POST", ROLL, b"{\"to\":\"\"}", "is not a valid version"),
    ("POST", ROLL, b"{\"to\":\"../v2\"}", "is not a valid version"),
    ("POST", ROLL, b"{\"to\":\"v2\\u0000\"}", "is not a valid version"),
    ("POST", ROLL, b"{\"to\":\"v2\",\"nonsense\":true}", "nonsense"),
    ("POST", ROLL, b"{\"batch\":2}", "string"),
    ("POST", ROLL, b"{\"batch\":\"0\"}", "batch"),
    ("POST", ROLL, b"{\"batch\":\"-5\"}", "batch"),
    ("POST", ROLL, b"{\"dry_run\":\"yes\"}", "boolean"),
    ("POST", "/v1/services/wob/roll", b"{}", "no service `wob`"),
    ("POST", "/v1/services/..%2f..%2fetc/roll", b"{}", "no service"),
    ("POST", "/v1/services/../../etc/passwd/roll", b"{}", "no POST"),
    ("POST", "/v1/services/%ff%fe/roll", b"{}", ""),
    ("POST", "/v1/services//roll", b"{}", ""),
    ("POST", DRAIN, b"", "port"),
    ("POST", DRAIN, b"{\"port\":-1}", "-1"),
    ("POST", DRAIN, b"{\"port\":0}", "no worker on port 0"),
    ("POST", DRAIN, b"{\"port\":1}", "no worker on port 1"),
    ("POST", DRAIN, b"{\"port\":65536}", "65536"),
    ("POST", DRAIN, b"{\"port\":\"80x\"}", "write 8000, or 127.0.0.1:8000"),
    ("POST", DRAIN, b"{\"port\":8000.5}", "8000.5"),
    ("POST", DRAIN, b"{\"port\":8000,\"for_ms\":0}", "millisecond"),
    ("POST", DRAIN, b"{\"port\":8000,\"for_ms\":-1}", "-1"),
    ("POST", "/v1/services/web/enable", b"{\"port\":1}", "no worker on port 1"),
    ("GET", "/v1/rolls/nobody/events", b"", "no roll `nobody`"),
    ("GET", "/v1/rolls/%2e%2e%2fstatus/events", b"", "no roll"),
    ("GET", "/v1/rolls/%ff/events", b"", ""),
    ("POST", "/v1/rolls/web-1/stop", b"", "no roll `web-1`"),
    ("POST", "/v1/bypass", b"", "on"),
    ("POST", "/v1/bypass", b"{\"on\":1}", "boolean"),
    ("POST", "/v1/bypass", b"{\"on\":true,\"service\":\"wob\"}", "no service `wob`"),
    ("POST", "/v1/detach", b"{\"force\":null}", "body"),
];

/// What is not HTTP, or not all of it.
const GARBAGE: &[&[u8]] = &[
    b"\0\0\0\0\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"GET\r\n\r\n",
    b"GET /v1/status HTTP/9.9\r\n\r\n",
    b"GET /v1/status\r\n\r\n",
    b"POST /v1/services/web/roll HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n{}",
    b"POST /v1/services/web/roll HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n{}",
    b"POST /v1/services/web/roll HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET /v1/status HTTP/1.1\r\nHost\r\n\r\n",
    b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
];

#[test]
fn bad_calls() -> Result<()> {
    let sandbox = Sandbox::new("badcalls")?;
    let stage = Stage::new(&sandbox)?;
    let daemon = stage.daemon(&ServiceConfig::default())?;
    let api = stage.api();
    let mut wrong = Vec::new();
    for (method, path, body, named) in CALLS {
        if let Err(error) = refused(&api, method, path, body, named) {
            wrong.push(format!("{error:#}"));
        }
    }
    let long = format!("/v1/services/{}/roll", "a".repeat(5000));
    for (path, body) in [(ROLL, vec![b' '; 1 << 20]), (ROLL, vec![b'['; 60_000]), (&long, b"{}".to_vec())] {
        if let Err(error) = refused(&api, "POST", path, &body, "") {
            wrong.push(format!("{} bytes: {error:#}", body.len()));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    eprintln!("{} bad calls refused", CALLS.len() + 3);
    ensure!(stage.api().status()?["services"][0]["roll"].is_null(), "one of them has begun a roll");
    stage.only_failed(&[])?;
    ensure!(!daemon.log().contains("panicked"), "{}", daemon.log());
    stage.unharmed("bad calls")?;
    Ok(())
}

fn refused(api: &Api, method: &str, path: &str, body: &[u8], named: &str) -> Result<()> {
    let answer = api.call(method, path, body)?;
    let shown: String = format!("{method} {path}").chars().take(60).collect();
    let (error, exit) = answer.refusal().map_err(|error| error.context(format!("{shown}: {answer:?}")))?;
    ensure!((400..500).contains(&answer.status), "{shown}: {answer:?}");
    ensure!(exit == "usage" && error.contains(named), "{shown}: {named:?} is missing in {answer:?}");
    Ok(())
}

#[test]
fn connections_that_make_no_sense() -> Result<()> {
    let sandbox = Sandbox::new("badconn")?;
    let stage = Stage::new(&sandbox)?;
    let mut daemon = stage.daemon(&ServiceConfig::default())?;
    let api = stage.api();
    for bytes in GARBAGE {
        let mut stream = api.connect()?;
        stream.set_read_timeout(Some(Duration::from_millis(500)))?;
        stream.write_all(bytes)?;
        let mut answer = [0; 200];
        // No answer while more may come, an end, or an error: never a success.
        let size = stream.read(&mut answer).unwrap_or(0);
        let head = String::from_utf8_lossy(&answer[..size]).into_owned();
        eprintln!("{:?}: {:?}", String::from_utf8_lossy(bytes), head.lines().next().unwrap_or_default());
        ensure!(!head.contains(" 200 "), "{head}");
    }
    for _ in 0..1000 {
        drop(api.connect()?);
    }
    for _ in 0..200 {
        api.connect()?
            .write_all(b"POST /v1/services/web/roll HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\n{\"to\"")?;
    }
    // Two hundred that say nothing, while a roll goes on.
    let idle = (0..200).map(|_| api.connect()).collect::<Result<Vec<_>>>()?;
    let roll = stage.roll(&daemon, &["--to", "v2"])?;
    roll.end()?.must("done", &["4 workers"])?;
    stage.only_failed(&[])?;
    ensure!(api.phases()?.len() == 4);
    ensure!(daemon.stop()?.success(), "idle connections keep it from ending: {}", daemon.log());
    drop(idle);
    ensure!(!daemon.log().contains("panicked"), "{}", daemon.log());
    stage.unharmed("connections that make no sense")?;
    Ok(())
}
