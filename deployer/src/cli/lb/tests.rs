mod lanes;

use std::path::Path;

use super::*;

fn backend(name: &str, addresses: &[&str], policy: Policy) -> Backend {
    let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
    Backend { name: name.to_owned(), addresses, policy, lanes: None }
}

/// What is left for a load balancer to read.
fn settings(text: &str) -> String {
    text.lines().filter(|line| !line.trim_start().starts_with('#') && !line.is_empty()).collect::<Vec<_>>().join("\n")
}

#[test]
fn nginx_gets_an_upstream() {
    let steered = backend("web", &["127.0.0.1:8000", "[::1]:8001"], Policy::Steer);
    let text = Balancer::Nginx.text(&[steered], None);
    let wanted = "upstream web {
    server 127.0.0.1:8000;
    server [::1]:8001;
    keepalive 32;
}
proxy_http_version 1.1;
proxy_set_header Connection \"\";";
    assert_eq!(settings(&text), wanted);
    assert!(!text.contains("max_fails") && !text.contains("{{"), "{text}");
}

#[test]
fn nginx_benches_nobody_who_refuses() {
    let several = Balancer::Nginx.text(&[backend("web", &["127.0.0.1:8000", "127.0.0.1:8001"], Policy::Refuse)], None);
    assert!(settings(&several).contains("server 127.0.0.1:8000 max_fails=0;\n    server 127.0.0.1:8001 max_fails=0;"));
    assert!(several.contains("benches a worker for 10 s"), "{several}");
    let one = Balancer::Nginx.text(&[backend("web", &["127.0.0.1:9000"], Policy::Refuse)], None);
    assert_eq!(one.matches("server 127.0.0.1:9000 max_fails=0;").count(), 2, "{one}");
}

#[test]
fn two_services_share_the_settings_of_nginx() {
    let both = ["web", "api"].map(|name| backend(name, &["127.0.0.1:9000"], Policy::Steer));
    let text = settings(&Balancer::Nginx.text(&both, None));
    assert!(text.contains("upstream web {") && text.contains("upstream api {"), "{text}");
    assert_eq!(text.matches("proxy_http_version").count(), 1, "a second one is an error to nginx: {text}");
}

#[test]
fn haproxy_keeps_no_connection_to_a_server() {
    let text = Balancer::Haproxy.text(&[backend("web", &["127.0.0.1:8000", "[::1]:8001"], Policy::Steer)], None);
    let wanted = "backend web
  balance roundrobin
  option http-server-close
  server web-1 127.0.0.1:8000
  server web-2 [::1]:8001";
    assert_eq!(settings(&text), wanted);
    let refusing = Balancer::Haproxy.text(&[backend("web", &["127.0.0.1:8000"], Policy::Refuse)], None);
    assert!(settings(&refusing).contains("option redispatch 1"), "{refusing}");
    assert!(!settings(&refusing).contains("retry-on"), "{refusing}");
}

#[test]
fn varnish_keeps_no_connection_to_a_backend() {
    let text = Balancer::Varnish.text(&[backend("my-web", &["127.0.0.1:8000", "[::1]:8001"], Policy::Steer)], None);
    let wanted = "vcl 4.1;
import directors;
backend s1_my_web_1 {
  .host = \"127.0.0.1\";
  .port = \"8000\";
}
backend s1_my_web_2 {
  .host = \"::1\";
  .port = \"8001\";
}
sub vcl_init {
  new s1_my_web = directors.round_robin();
  s1_my_web.add_backend(s1_my_web_1);
  s1_my_web.add_backend(s1_my_web_2);
}
sub vcl_recv {
  set req.backend_hint = s1_my_web.backend();
}
sub vcl_backend_fetch {
  set bereq.http.Connection = \"close\";
}";
    assert_eq!(settings(&text), wanted);
    let both = ["web", "api"].map(|name| backend(name, &["127.0.0.1:9000"], Policy::Steer));
    let text = settings(&Balancer::Varnish.text(&both, None));
    assert!(text.contains("if (req.http.host == \"api\") {\n    set req.backend_hint = s2_api.backend();"), "{text}");
    assert_eq!(text.matches("sub vcl_recv").count(), 1, "{text}");
}

#[test]
fn a_service_is_chosen_by_name() {
    let text = "[service.web]\nworkers = \"127.0.0.1:8000-8001\"\nmanager = { unit = \"web@{port}.service\" }\n\
                [service.api]\naddress = \"127.0.0.1:9000\"\nworkers = \"127.0.0.1:8010-8011\"\n\
                manager = { unit = \"api@{port}.service\" }\n";
    let config = Config::parse(Path::new("f.toml"), text).unwrap();
    assert_eq!(chosen(&config, None).unwrap().len(), 2);
    let api = Backend::of(chosen(&config, Some("api")).unwrap()[0]);
    assert_eq!(api.addresses, ["127.0.0.1:9000".parse().unwrap()], "the service address stands for its workers");
    let web = Backend::of(chosen(&config, Some("web")).unwrap()[0]);
    assert_eq!(web.addresses.len(), 2);
    let failure = chosen(&config, Some("wob")).unwrap_err();
    assert_eq!(failure.exit, Exit::Usage);
    assert!(failure.message.contains("\"wob\"") && failure.message.contains("api, web"), "{}", failure.message);
}

#[test]
fn without_a_configuration_there_is_an_example() {
    for balancer in [Balancer::Nginx, Balancer::Haproxy, Balancer::Varnish] {
        let text = balancer.text(&[Backend::example(None)], None);
        assert!(text.contains("127.0.0.1") && text.contains("8003") && !text.contains("{{"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 130 && line == line.trim_end()), "{text}");
    }
}
