//! What is written is read again; what others write is read as well as it can be; nothing of it does harm.

use proptest::prelude::*;

use super::*;

fn at(host: &str, port: u16) -> Endpoint {
    Endpoint { host: host.to_owned(), port }
}

fn ours() -> Member {
    let metadata = [("version", "v7"), ("lane", "3"), ("host", "app17")];
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    Member::serving(at("10.0.0.17", 8080), metadata)
}

fn hosts(count: usize) -> BTreeSet<String> {
    (0..count).map(|nth| format!("app{nth:02}")).collect()
}

#[test]
fn writes_what_finagle_and_twitter_common_read() {
    let value: Value = serde_json::from_slice(&ours().to_json()).unwrap();
    let expected = json!({
        "serviceEndpoint": { "host": "10.0.0.17", "port": 8080 },
        "additionalEndpoints": { "http": { "host": "10.0.0.17", "port": 8080 } },
        "status": "ALIVE",
        "metadata": { "host": "app17", "lane": "3", "version": "v7" },
    });
    assert_eq!(value, expected);
    let sharded = Member { shard: Some(-4), status: Status::Stopping, ..ours() };
    assert_eq!(Member::parse(&sharded.to_json()), Ok(sharded));
}

#[test]
fn reads_what_others_write() {
    let text = r#"{"serviceEndpoint":{"host":"db-1.example","port":"81","weight":7},"shard":"x","status":"warning",
        "additionalEndpoints":{"aurora":{"host":"h","port":1},"bad":{"host":"h"},"worse":3},"metadata":{"n":1},"more":[]}"#;
    let member = Member::parse(text.as_bytes()).unwrap();
    assert_eq!((member.endpoint.clone(), member.status, member.shard), (at("db-1.example", 81), Status::Warning, None));
    assert_eq!(member.additional, BTreeMap::from([("aurora".to_owned(), at("h", 1))]));
    assert_eq!((member.host(), member.metadata["n"].as_str()), ("db-1.example", "1"));
    let short = Member::parse(br#"{"serviceEndpoint":{"host":"::1","port":80}}"#).unwrap();
    assert_eq!((short.endpoint, short.status), (at("::1", 80), Status::Alive));
}

#[test]
fn refuses_what_cannot_be_dialled_or_would_be_more_than_an_address() {
    let host = |host: &str| json!({ "serviceEndpoint": { "host": host, "port": 80 } }).to_string();
    let port = |port: Value| json!({ "serviceEndpoint": { "host": "h", "port": port } }).to_string();
    let mut bad = ["", "null", "[]", "7", "{", "{}", r#"{"serviceEndpoint":3}"#].map(str::to_owned).to_vec();
    bad.extend(["", "a b", "a\"; }", "a\nb", "-x", "ä", "a;b", "{{why}}"].map(host));
    bad.push(host(&"x".repeat(254)));
    bad.extend([json!(0), json!(65536), json!(-1), json!(1.5), json!("x"), json!(null), json!([80])].map(port));
    bad.push("[".repeat(100_000));
    bad.push(format!("{}{}", "[".repeat(20_000), "]".repeat(20_000)));
    bad.push(host(&"x".repeat(100_000)));
    for text in bad {
        assert!(Member::parse(text.as_bytes()).is_err(), "{}", text.chars().take(60).collect::<String>());
    }
}

#[test]
fn a_set_does_not_shrink_below_half_by_itself() {
    let full = hosts(10);
    assert_eq!(may_shrink(&full, &hosts(5), false), Ok(()));
    let why = may_shrink(&full, &hosts(4), false).unwrap_err();
    assert!(why.contains("only 4 of 10") && why.contains("app04, app05"), "{why}");
    assert!(may_shrink(&full, &hosts(0), false).unwrap_err().contains("nobody of 10"));
    assert!(may_shrink(&hosts(1), &hosts(0), false).is_err(), "one host is no half of itself");
    assert_eq!(may_shrink(&hosts(2), &hosts(1), false), Ok(()));
    assert!(may_shrink(&hosts(3), &hosts(1), false).is_err());
    assert_eq!(may_shrink(&full, &hosts(0), true), Ok(()), "an operator has accepted it");
    assert_eq!(may_shrink(&hosts(0), &hosts(0), false), Ok(()), "a fleet that was never there");
    let why = may_shrink(&hosts(30), &hosts(1), false).unwrap_err();
    assert!(why.ends_with("and 21 more"), "{why}");
}

proptest! {
    #[test]
    fn nothing_that_is_read_panics(data in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Member::parse(&data);
    }

    #[test]
    fn hosts_that_are_read_are_plain(host in ".{0,20}", port in 0..70_000u32) {
        let text = json!({ "serviceEndpoint": { "host": host, "port": port } }).to_string();
        if let Ok(member) = Member::parse(text.as_bytes()) {
            let legal = |char: char| char.is_ascii_alphanumeric() || "._-:".contains(char);
            prop_assert!(member.endpoint.host.chars().all(legal));
            prop_assert_eq!(u32::from(member.endpoint.port), port);
        }
    }
}
