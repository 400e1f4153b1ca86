//! What a load balancer is told of a service with lanes: which address each request is for.
//!
//! The rule, in three languages: a document navigation, and whoever names no lane, is for lane 0, whatever is current.
//! Everything else is for the lane that its page names, in the URL's prefix or else in a header. A lane is a number from 1
//! to their count, in digits, without zeros before it; anything else (`02` as well) is lane 0.

use std::net::SocketAddr;

use super::{Backend, Varnish, fill};

/// A service's lanes, and where they are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lanes {
    /// Lanes beside lane 0, from 1 on.
    pub(super) count: u8,
    /// The port of their addresses.
    pub(super) port: u16,
}

impl Lanes {
    /// All of them, lane 0 first.
    fn all(self) -> impl Iterator<Item = u8> {
        0..=self.count
    }
}

/// What a name is in nginx and in VCL, where it may hold no `-`. Two services of one text could come to the same name, so
/// that it is numbered then.
pub(super) fn word(nth: usize, backend: &Backend) -> String {
    format!("s{}_{}", nth + 1, backend.name.replace('-', "_"))
}

/// The part of nginx's `http` block.
pub(super) fn nginx_maps(nth: usize, backend: &Backend, lanes: Lanes) -> String {
    let known: Vec<_> = lanes.all().skip(1).map(|lane| format!("{lane} {lane};")).collect();
    let rows: Vec<_> = known.chunks(8).map(|row| format!("    {}", row.join(" "))).collect();
    let count = lanes.count.to_string();
    let places = [("word", word(nth, backend)), ("known", rows.join("\n")), ("count", count)];
    fill(include_str!("nginx-lanes-maps.conf"), backend, &borrowed(&places))
}

/// The part of nginx's `server` block.
pub(super) fn nginx_location(nth: usize, backend: &Backend, lanes: Lanes) -> String {
    let places = [("word", word(nth, backend)), ("port", lanes.port.to_string())];
    fill(include_str!("nginx-lanes-location.conf"), backend, &borrowed(&places))
}

pub(super) fn haproxy(backend: &Backend, lanes: Lanes) -> String {
    let places = [("count", lanes.count.to_string()), ("port", lanes.port.to_string())];
    fill(include_str!("haproxy-lanes.cfg"), backend, &borrowed(&places))
}

/// Backends, and a subroutine that gives a request one of them.
pub(super) fn varnish(nth: usize, backend: &Backend, lanes: Lanes, via: Option<SocketAddr>) -> Varnish {
    let word = word(nth, backend);
    let (servers, choice) = match via {
        Some(address) => {
            let (host, port) = (address.ip().to_string(), address.port());
            (server(&word, &host, port), format!("  set req.backend_hint = {word};"))
        }
        None => {
            let each = |lane| server(&format!("{word}_{lane}"), &format!("127.77.0.{lane}"), lanes.port);
            let servers: Vec<_> = lanes.all().map(each).collect();
            let choices: Vec<_> = lanes.all().map(|lane| chosen(&word, lane)).collect();
            (servers.join("\n"), format!("  {}", choices.join(" else ")))
        }
    };
    let why = match via {
        Some(_) => include_str!("varnish-lanes-via.vcl"),
        None => include_str!("varnish-lanes-direct.vcl"),
    };
    let places = [
        ("word", word.clone()),
        ("servers", servers),
        ("why", why.to_owned()),
        ("choice", choice),
        ("count", lanes.count.to_string()),
    ];
    let text = fill(include_str!("varnish-lanes.vcl"), backend, &borrowed(&places));
    Varnish { text, choice: format!("call {word}_lane;") }
}

fn server(name: &str, host: &str, port: u16) -> String {
    format!("backend {name} {{\n  .host = \"{host}\";\n  .port = \"{port}\";\n}}")
}

/// Lane 0 has no name by then.
fn chosen(word: &str, lane: u8) -> String {
    let condition = match lane {
        0 => "!req.http.X-Deployer-Lane".to_owned(),
        lane => format!("req.http.X-Deployer-Lane == \"{lane}\""),
    };
    format!("if ({condition}) {{\n    set req.backend_hint = {word}_{lane};\n  }}")
}

fn borrowed<'a, const N: usize>(places: &'a [(&'a str, String); N]) -> [(&'a str, &'a str); N] {
    places.each_ref().map(|(place, value)| (*place, value.as_str()))
}
