use super::*;

#[test]
fn a_finding_is_one_line() {
    let finding =
        Finding::fail("127.0.0.1:8003", "nat OUTPUT rule redirects it").fix("delete", "iptables -t nat -D OUTPUT");
    assert_eq!(
        finding.to_string(),
        "FAIL  127.0.0.1:8003: nat OUTPUT rule redirects it; delete: iptables -t nat -D OUTPUT"
    );
    assert_eq!(Finding::ok("kernel 6.18", "good").to_string(), "ok    kernel 6.18: good");
    let hostile = Finding::warn("a\nb", format!("\u{1b}[2J first\n\n  {} last", "x".repeat(10_000))).to_string();
    assert!(hostile.starts_with("warn  a b: \u{fffd}[2J first "), "{hostile}");
    assert!(hostile.ends_with(" last") && hostile.chars().count() < 600 && !hostile.contains(char::is_control));
}

#[test]
fn json_has_what_the_line_has() -> Result<(), serde_json::Error> {
    let finding = Finding::fail("a", "b").fix("run", "c");
    let value = serde_json::to_value(Report { fit: false, findings: vec![finding] })?;
    let expected = serde_json::json!({
        "fit": false,
        "findings": [{ "level": "fail", "what": "a", "detail": "b", "fix": "c" }],
    });
    assert_eq!(value, expected);
    Ok(())
}

#[test]
fn addresses_are_short() -> Result<(), std::net::AddrParseError> {
    let all = ["[::1]:1", "127.0.0.1:8001", "127.0.0.1:8000", "127.0.0.1:65535", "127.0.0.1:65534", "127.0.0.1:8003"];
    let all = all.iter().map(|text| text.parse()).collect::<Result<Vec<_>, _>>()?;
    assert_eq!(addresses(&all), "127.0.0.1:8000-8001,8003,65534-65535 [::1]:1");
    Ok(())
}

#[test]
fn without_a_configuration_there_is_a_hint() {
    let found = findings(None);
    assert!(found.last().is_some_and(|finding| finding.detail.contains("--config")));
}
