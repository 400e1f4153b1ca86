//! `deployer lb`: what a load balancer is told, as a piece of its configuration that says why.

mod lanes;
mod serverset;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, ValueEnum, builder::NonEmptyStringValueParser};

use self::lanes::Lanes;
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

/// What is asked for.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("source").args(["config", "from_serverset"])))]
pub(super) struct Options {
    /// The load balancer
    #[arg(value_enum)]
    balancer: Balancer,
    /// Only this service [default: all]
    #[arg(requires = "source", value_parser = NonEmptyStringValueParser::new())]
    service: Option<String>,
    /// The same, as an option
    #[arg(long = "service", value_name = "NAME", hide = true, conflicts_with = "service", requires = "config", value_parser = NonEmptyStringValueParser::new())]
    named: Option<String>,
    /// With the addresses of this configuration's services [default: an example]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Give the example so many lanes: versions side by side
    #[arg(long, value_name = "NUMBER", conflicts_with = "config", value_parser = clap::value_parser!(u8).range(1..))]
    lanes: Option<u8>,
    /// Varnish passes everything on to this load balancer, which chooses among lanes
    #[arg(long, value_name = "ADDRESS:PORT")]
    via: Option<SocketAddr>,
    #[command(flatten)]
    set: serverset::Options,
}

/// Of a service, what a load balancer has to know.
#[derive(Debug)]
struct Backend {
    name: String,
    /// The service address alone, or the workers' addresses.
    addresses: Vec<SocketAddr>,
    policy: Policy,
    /// With two pools of workers: which of them a connection is for goes by its address.
    lanes: Option<Lanes>,
}

/// A piece of VCL.
struct Varnish {
    text: String,
    /// The statement by which a request gets its backend.
    choice: String,
}

pub(super) fn run(options: &Options) -> Exit {
    let Options { balancer, via, .. } = *options;
    if via.is_some() && balancer != Balancer::Varnish {
        out::complain("--via is for Varnish: nginx and HAProxy choose among lanes themselves; leave it out");
        return Exit::Usage;
    }
    let service = options.service.as_deref().or(options.named.as_deref());
    if let Some(connect) = &options.set.from_serverset {
        if balancer != Balancer::Varnish || via.is_some() || options.lanes.is_some() {
            out::complain(
                "--from-serverset is for Varnish, which passes everything on to the hosts: leave --via and --lanes out",
            );
            return Exit::Usage;
        }
        return serverset::run(service.unwrap_or_default(), connect, &options.set);
    }
    let backends = match options.config.as_deref().map(Config::load) {
        None => vec![Backend::example(options.lanes)],
        Some(Ok(config)) => match chosen(&config, service) {
            Ok(services) => services.into_iter().map(Backend::of).collect(),
            Err(failure) => return failed(&failure),
        },
        Some(Err(error)) => {
            out::complain(&error.to_string());
            return Exit::Usage;
        }
    };
    out::say(&balancer.text(&backends, via)).unwrap_or_else(|failure| failed(&failure))
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
        let deploy = service.deploy.as_ref().zip(service.address);
        let lanes = deploy.map(|(deploy, address)| Lanes { count: deploy.lanes, port: address.port() });
        Self { name: service.name.clone(), addresses, policy: service.drain.policy, lanes }
    }

    fn example(lanes: Option<u8>) -> Self {
        let worker = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Self {
            name: "web".to_owned(),
            addresses: (8000..8004).map(worker).collect(),
            policy: Policy::Steer,
            lanes: lanes.map(|count| Lanes { count, port: 9000 }),
        }
    }
}

/// A text for each address, with its number from 1.
fn each(addresses: &[SocketAddr], line: impl Fn(usize, SocketAddr) -> String) -> String {
    let lines: Vec<_> = addresses.iter().enumerate().map(|(index, address)| line(index + 1, *address)).collect();
    lines.join("\n")
}

impl Balancer {
    fn text(self, backends: &[Backend], via: Option<SocketAddr>) -> String {
        match self {
            Self::Nginx => nginx_text(backends),
            Self::Haproxy => {
                let part = |backend: &Backend| {
                    backend.lanes.map_or_else(|| haproxy(backend), |of| lanes::haproxy(backend, of))
                };
                let parts: Vec<_> = backends.iter().map(part).collect();
                format!("{}\n{}", include_str!("lb/haproxy-head.cfg"), parts.join("\n"))
            }
            Self::Varnish => varnish(backends, via),
        }
    }
}

/// What goes into its `http` block comes first; only services with lanes have more to say.
fn nginx_text(backends: &[Backend]) -> String {
    let (mut upstreams, mut maps, mut locations) = (Vec::new(), Vec::new(), Vec::new());
    for (nth, backend) in backends.iter().enumerate() {
        let Some(of) = backend.lanes else {
            upstreams.push(nginx(backend));
            continue;
        };
        maps.push(lanes::nginx_maps(nth, backend, of));
        locations.push(lanes::nginx_location(nth, backend, of));
    }
    let mut parts = Vec::new();
    if !upstreams.is_empty() || locations.is_empty() {
        let (head, tail) = (include_str!("lb/nginx-head.conf"), include_str!("lb/nginx-tail.conf"));
        parts.push(format!("{head}\n{}{tail}", upstreams.join("\n")));
    }
    if !maps.is_empty() {
        maps.insert(0, include_str!("lb/nginx-lanes-head.conf").to_owned());
    }
    parts.extend(maps);
    parts.extend(locations);
    parts.join("\n")
}

fn nginx(backend: &Backend) -> String {
    let (why, parameters) = match backend.policy {
        Policy::Steer => ("", ""),
        Policy::Refuse => (include_str!("lb/nginx-refuse.conf"), " max_fails=0"),
    };
    let line = |_, address| format!("    server {address}{parameters};");
    let mut servers = each(&backend.addresses, line);
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
    let servers = each(&backend.addresses, |number, address| format!("  server {}-{number} {address}", backend.name));
    fill(include_str!("lb/haproxy.cfg"), backend, &[("why", why), ("servers", &servers)])
}

/// One file: parts of the same name are run one after the other, so the last choice of a director would win.
fn varnish(backends: &[Backend], via: Option<SocketAddr>) -> String {
    let with_lanes = backends.iter().any(|backend| backend.lanes.is_some());
    let parts: Vec<_> = backends.iter().enumerate().map(|(nth, backend)| varnish_of(nth, backend, via)).collect();
    let mut text = include_str!("lb/varnish-head.vcl").to_owned();
    if with_lanes {
        text.push_str("import std;\n");
    }
    for part in &parts {
        text.push('\n');
        text.push_str(&part.text);
    }
    let choice: String = match parts.as_slice() {
        [only] => format!("  {}\n", only.choice),
        several => several.iter().zip(backends).map(choice).collect(),
    };
    text.push_str(&include_str!("lb/varnish-recv.vcl").replace("{{choice}}\n", &choice));
    if with_lanes {
        text.push_str(include_str!("lb/varnish-lanes-tail.vcl"));
    }
    if via.is_none() {
        text.push_str(include_str!("lb/varnish-tail.vcl"));
    }
    text
}

fn varnish_of(nth: usize, backend: &Backend, via: Option<SocketAddr>) -> Varnish {
    if let Some(of) = backend.lanes {
        return lanes::varnish(nth, backend, of, via);
    }
    let name = lanes::word(nth, backend);
    let host = |address: SocketAddr| format!("  .host = \"{}\";\n  .port = \"{}\";", address.ip(), address.port());
    let addresses = via.map_or_else(|| backend.addresses.clone(), |address| vec![address]);
    let servers = each(&addresses, |number, address| format!("backend {name}_{number} {{\n{}\n}}", host(address)));
    let adds = each(&addresses, |number, _| format!("  {name}.add_backend({name}_{number});"));
    let places = [("servers", servers.as_str()), ("adds", adds.as_str()), ("director", name.as_str())];
    let text = fill(include_str!("lb/varnish.vcl"), backend, &places);
    Varnish { text, choice: format!("set req.backend_hint = {name}.backend();") }
}

/// Which requests are for a service is the reader's to say.
fn choice((part, backend): (&Varnish, &Backend)) -> String {
    format!("  if (req.http.host == \"{}\") {{\n    {}\n  }}\n", backend.name, part.choice)
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
