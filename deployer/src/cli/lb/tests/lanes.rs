//! Services with lanes.

use super::*;

const VIA: &str = "127.0.0.1:8080";

fn web(count: u8) -> Backend {
    let lanes = Some(Lanes { count, port: 9000 });
    Backend { lanes, ..backend("web", &["127.0.0.1:9000"], Policy::Steer) }
}

fn via() -> Option<SocketAddr> {
    Some(VIA.parse().unwrap())
}

#[test]
fn nginx_gets_maps_and_a_location() {
    let text = Balancer::Nginx.text(&[web(3)], None);
    let wanted = r#"map $request_uri $named_s1_web {
    default $http_x_deployer_lane;
    "~^/_lane/(?<number_s1_web>[^/?]*)/" $number_s1_web;
}
map $named_s1_web $page_s1_web {
    default 0;
    1 1; 2 2; 3 3;
}
map "$http_sec_fetch_mode $http_sec_fetch_dest" $lane_s1_web {
    default $page_s1_web;
    "navigate document" 0;
}
map $request_uri $uri_s1_web {
    default $request_uri;
    "~^/_lane/[^/?]*(?<rest_s1_web>/.*)$" $rest_s1_web;
}
location / {
    proxy_pass http://127.77.0.$lane_s1_web:9000$uri_s1_web;
    proxy_http_version 1.1;
    proxy_set_header Host $host;
    proxy_set_header Connection close;
}"#;
    let joined = |line: &str| {
        let indent = &line[..line.len() - line.trim_start().len()];
        format!("{indent}{}", line.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    assert_eq!(settings(&text).lines().map(joined).collect::<Vec<_>>().join("\n"), wanted);
    assert!(!text.contains("upstream") && !text.contains("keepalive"), "{text}");
}

#[test]
fn nginx_keeps_what_other_services_have() {
    let other = backend("api", &["127.0.0.1:8000"], Policy::Steer);
    let text = settings(&Balancer::Nginx.text(&[web(16), other], None));
    assert!(text.contains("upstream api {") && text.contains("    9 9; 10 10;"), "{text}");
    assert!(text.contains("    9 9; 10 10; 11 11; 12 12; 13 13; 14 14; 15 15; 16 16;\n}"), "{text}");
    let (http, server) = text.split_once("location /").unwrap();
    assert!(http.contains("proxy_set_header Connection \"\"") && !http.contains("127.77"), "{http}");
    assert!(server.contains("127.77.0.$lane_s1_web:9000") && !server.contains("map "), "{server}");
}

#[test]
fn haproxy_sets_the_address() {
    let text = settings(&Balancer::Haproxy.text(&[web(16)], None));
    for line in [
        "  acl deployer_known var(txn.deployer_lane) -m int 1:16",
        "  http-request set-dst var(txn.deployer_address)",
        "  option http-server-close",
        "  http-reuse never",
        "  server web-lane 0.0.0.0:9000",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    }
    assert!(text.starts_with("backend web\n") && !text.contains("roundrobin"), "{text}");
}

#[test]
fn varnish_has_a_backend_for_each_lane() {
    let text = settings(&Balancer::Varnish.text(&[web(16)], None));
    assert_eq!(text.matches("\nbackend s1_web_").count(), 17, "lane 0 is one, too: {text}");
    assert!(text.contains("backend s1_web_16 {\n  .host = \"127.77.0.16\";\n  .port = \"9000\";\n}"), "{text}");
    let choice = "  if (!req.http.X-Deployer-Lane) {\n    set req.backend_hint = s1_web_0;\n  } \
                  else if (req.http.X-Deployer-Lane == \"1\") {\n    set req.backend_hint = s1_web_1;\n  } else if";
    assert!(text.contains(choice), "{text}");
    assert!(text.contains("sub vcl_recv {\n  call s1_web_lane;\n}"), "{text}");
    for once in ["sub vcl_hash", "set bereq.http.Connection = \"close\"", "import std;", "> 16 ||"] {
        assert_eq!(text.matches(once).count(), 1, "{once}: {text}");
    }
}

#[test]
fn varnish_passes_the_lane_on() {
    let text = settings(&Balancer::Varnish.text(&[web(16)], via()));
    assert_eq!(text.matches("\nbackend ").count(), 1, "{text}");
    assert!(text.contains("backend s1_web {\n  .host = \"127.0.0.1\";\n  .port = \"8080\";\n}"), "{text}");
    assert!(text.contains("  set req.backend_hint = s1_web;\n") && !text.contains("127.77"), "{text}");
    // The next one decides for each request on its own.
    assert!(!text.contains("Connection") && text.contains("sub vcl_hash"), "{text}");
    let plain = settings(&Balancer::Varnish.text(&[backend("api", &["127.0.0.1:8000"], Policy::Steer)], via()));
    assert!(plain.contains("8080") && !plain.contains("8000") && !plain.contains("Lane"), "{plain}");
}

#[test]
fn varnish_tells_services_apart() {
    let other = backend("api", &["127.0.0.1:8000"], Policy::Steer);
    let text = settings(&Balancer::Varnish.text(&[web(3), other], None));
    assert!(text.contains("if (req.http.host == \"web\") {\n    call s1_web_lane;\n  }"), "{text}");
    let api = "if (req.http.host == \"api\") {\n    set req.backend_hint = s2_api.backend();\n  }";
    assert!(text.contains(api), "{text}");
}

#[test]
fn names_and_templates_are_whole() {
    let named = |name: &str| Backend { name: name.to_owned(), ..web(255) };
    for balancer in [Balancer::Nginx, Balancer::Haproxy, Balancer::Varnish] {
        for via in [None, via().filter(|_| balancer == Balancer::Varnish)] {
            let text = balancer.text(&[named("my-web"), named("my_web")], via);
            assert!(!text.contains("{{") && !text.contains("}}"), "{text}");
            assert!(text.lines().all(|line| line.chars().count() <= 130 && line == line.trim_end()), "{text}");
            let example = balancer.text(&[Backend::example(Some(16))], via);
            assert!(example.lines().any(|line| line.contains("lane")), "{example}");
        }
    }
}
