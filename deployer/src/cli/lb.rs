//! `deployer lb`: what a load balancer is told, as a piece of its configuration that says why.

#[cfg(test)]
mod tests;

use std::{net::SocketAddr, path::Path};

use clap::ValueEnum;

use super::{client::Failure, out};
use crate::{
    api::Exit,
    config::{Config, Policy, Service},
};

/// A load balancer that there is something to say about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Balancer {
    /// nginx 1.22 or later
    Nginx,
    /// HAProxy 2.6 or later
    Haproxy,
    /// Varnish 7.1 or later
    Varnish,
}

/// Of a service, what a load balancer has to know.
#[derive(Debug)]
struct Backend {
    name: String,
    /// The service address alone, or the workers' addresses.
    addresses: Vec<SocketAddr>,
    policy: Policy,
}

pub(super) fn run(balancer: Balancer, config: Option<&Path>, service: Option<&str>) -> Exit {
    let backends = match config.map(Config::load) {
        None => vec![Backend::example()],
        Some(Ok(config)) => match chosen(&config, service) {
            Ok(services) => services.into_iter().map(Backend::of).collect(),
            Err(failure) => return failed(&failure),
        },
        Some(Err(error)) => {
            out::complain(&error.to_string());
            return Exit::Usage;
        }
    };
    out::say(&balancer.text(&backends)).unwrap_or_else(|failure| failed(&failure))
}

fn failed(failure: &Failure) -> Exit {
    out::error(&failure.message);
    failure.exit
}

/// The service of this name, or all of them.
fn chosen<'a>(config: &'a Config, name: Option<&str>) -> Result<Vec<&'a Service>, Failure> {
    let Some(name) = name else { return Ok(config.services.values().collect()) };
    match config.services.get(name) {
        Some(service) => Ok(vec![service]),
        None => {
            let known: Vec<_> = config.services.keys().collect();
            let message = format!("no service {:?}; the configuration has {}", name, out::joined(&known, ", "));
            Err(Failure::new(Exit::Usage, message))
        }
    }
}

impl Backend {
    fn of(service: &Service) -> Self {
        let addresses = service.address.map_or_else(|| service.workers.clone(), |address| vec![address]);
        Self { name: service.name.clone(), addresses, policy: service.drain.policy }
    }

    fn example() -> Self {
        let worker = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Self { name: "web".to_owned(), addresses: (8000..8004).map(worker).collect(), policy: Policy::Steer }
    }

    /// A text for each address, with its number from 1.
    fn each(&self, line: impl Fn(usize, SocketAddr) -> String) -> String {
        let numbered = self.addresses.iter().enumerate();
        let lines: Vec<_> = numbered.map(|(index, address)| line(index + 1, *address)).collect();
        lines.join("\n")
    }
}

impl Balancer {
    fn text(self, backends: &[Backend]) -> String {
        let each = |part: fn(&Backend) -> String| backends.iter().map(part).collect::<Vec<_>>().join("\n");
        match self {
            Self::Nginx => {
                let (head, tail) = (include_str!("lb/nginx-head.conf"), include_str!("lb/nginx-tail.conf"));
                format!("{head}\n{}{tail}", each(nginx))
            }
            Self::Haproxy => format!("{}\n{}", include_str!("lb/haproxy-head.cfg"), each(haproxy)),
            Self::Varnish => varnish(backends),
        }
    }
}

fn nginx(backend: &Backend) -> String {
    let (why, parameters) = match backend.policy {
        Policy::Steer => ("", ""),
        Policy::Refuse => (include_str!("lb/nginx-refuse.conf"), " max_fails=0"),
    };
    let line = |_, address| format!("    server {address}{parameters};");
    let mut servers = backend.each(line);
    if backend.policy == Policy::Refuse
        && let [only] = *backend.addresses
    {
        servers =
            format!("    # Twice: a refused connection needs a next server to go to.\n{servers}\n{}", line(2, only));
    }
    fill(include_str!("lb/nginx.conf"), backend, &[("why", why), ("servers", &servers)])
}

fn haproxy(backend: &Backend) -> String {
    let why = match backend.policy {
        Policy::Steer => "",
        Policy::Refuse => include_str!("lb/haproxy-refuse.cfg"),
    };
    let servers = backend.each(|number, address| format!("  server {}-{number} {address}", backend.name));
    fill(include_str!("lb/haproxy.cfg"), backend, &[("why", why), ("servers", &servers)])
}

/// One file: parts of the same name are run one after the other, so the last choice of a director would win.
fn varnish(backends: &[Backend]) -> String {
    let mut text = include_str!("lb/varnish-head.vcl").to_owned();
    for (nth, backend) in backends.iter().enumerate() {
        let name = director(nth, backend);
        let host = |address: SocketAddr| format!("  .host = \"{}\";\n  .port = \"{}\";", address.ip(), address.port());
        let servers = backend.each(|number, address| format!("backend {name}_{number} {{\n{}\n}}", host(address)));
        let adds = backend.each(|number, _| format!("  {name}.add_backend({name}_{number});"));
        let places = [("servers", servers.as_str()), ("adds", adds.as_str()), ("director", name.as_str())];
        text.push('\n');
        text.push_str(&fill(include_str!("lb/varnish.vcl"), backend, &places));
    }
    let choice = match backends {
        [only] => format!("  set req.backend_hint = {}.backend();\n", director(0, only)),
        several => several.iter().enumerate().map(choice).collect(),
    };
    text.push_str(&include_str!("lb/varnish-tail.vcl").replace("{{choice}}\n", &choice));
    text
}

/// Names in VCL hold no `-` in all versions; the number keeps `web-1` and `web_1` apart.
fn director(nth: usize, backend: &Backend) -> String {
    format!("s{}_{}", nth + 1, backend.name.replace('-', "_"))
}

/// Which requests are for a service is the reader's to say.
fn choice((nth, backend): (usize, &Backend)) -> String {
    let (name, director) = (&backend.name, director(nth, backend));
    format!("  if (req.http.host == \"{name}\") {{\n    set req.backend_hint = {director}.backend();\n  }}\n")
}

/// Puts values in the places of a template, `{{place}}`; a line that is left with nothing is left out.
fn fill(template: &str, backend: &Backend, values: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for line in template.lines() {
        let mut filled = line.replace("{{service}}", &backend.name);
        for (place, value) in values {
            filled = filled.replace(&format!("{{{{{place}}}}}"), value.trim_end_matches('\n'));
        }
        if line.is_empty() || !filled.is_empty() {
            text.push_str(&filled);
            text.push('\n');
        }
    }
    text
}
