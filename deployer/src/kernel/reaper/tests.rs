use super::*;

fn at(text: &str) -> Pair {
    let (caller, worker) = text.split_once(' ').expect("two ends");
    Pair { caller: caller.parse().expect("an end"), worker: worker.parse().expect("an end") }
}

#[test]
fn ends_and_back() {
    for text in ["127.0.0.1:43210 127.0.0.1:8003", "[::1]:43210 [::1]:8003", "10.0.0.1:1 10.0.0.2:65535"] {
        let pair_of = at(text);
        assert_eq!(pair(&ends(&pair_of).expect("one family")), pair_of);
    }
    let mapped = at("[::ffff:127.0.0.1]:43210 127.0.0.1:8003");
    assert_eq!(ends(&mapped).ok(), ends(&at("127.0.0.1:43210 127.0.0.1:8003")).ok(), "mapped is IPv4");
}

#[test]
fn two_families_are_no_connection() {
    let error = ends(&at("127.0.0.1:43210 [::1]:8003")).expect_err("no such connection");
    assert!(error.to_string().contains("127.0.0.1:43210 to [::1]:8003"), "{error}");
}
