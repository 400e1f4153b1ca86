//! What managers call workers, and where they log: no two workers may have the same process, unit, log or command.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use super::{Builtin, Manager, placeholders::filled, raw::Value};

/// The name of one worker's process, unit, log or command.
struct Name<'a> {
    /// What is called so, where the name must be its own: "process of /run/supervisor.sock".
    kind: String,
    name: String,
    service: String,
    worker: SocketAddr,
    value: Value<'a>,
}

/// The names of all services' workers.
#[derive(Default)]
pub(super) struct Names<'a>(Vec<Name<'a>>);

/// A service whose names are entered.
pub(super) struct Named<'b> {
    pub(super) service: &'b str,
    pub(super) manager: &'b Manager,
    /// Of both pools, and the spares.
    pub(super) workers: &'b [SocketAddr],
}

impl<'a> Names<'a> {
    /// Enters what a service's manager calls its workers; `value` is the key `manager`.
    pub(super) fn enter(&mut self, value: &Value<'a>, named: &Named<'_>) {
        let service = named.service;
        let mut each = |key: &'static str, kind: String, text: &dyn Fn(SocketAddr) -> String| {
            let value = value.table().and_then(|mut table| table.take(key)).unwrap_or_else(|| value.clone());
            self.0.extend(named.workers.iter().map(|at| Name {
                kind: kind.clone(),
                name: text(*at),
                service: service.to_owned(),
                worker: *at,
                value: value.clone(),
            }));
        };
        match named.manager {
            Manager::Supervisord { socket, program, .. } => {
                each("program", format!("process of {}", socket.display()), &|at| filled(program, service, at));
            }
            Manager::Systemd { unit, bus, .. } => {
                let bus = bus.as_deref().unwrap_or("the system bus");
                each("unit", format!("unit of {bus}"), &|at| filled(unit, service, at));
            }
            Manager::Builtin(builtin) => {
                each("log", "log".to_owned(), &|at| filled(&builtin.log, service, at));
                each("command", format!("command of {service}"), &|at| told_apart_by(builtin, service, at));
            }
            Manager::Exec(exec) => {
                for (key, command) in [("start", &exec.start), ("stop", &exec.stop), ("status", &exec.status)] {
                    each(key, format!("{key} of {service}"), &|at| filled(&command.argv.join(" "), service, at));
                }
            }
        }
    }

    /// Reports names that two workers have, once for each pair of keys.
    pub(super) fn check(&self) {
        let mut first: BTreeMap<(&str, &str), &Name<'a>> = BTreeMap::new();
        let mut told = BTreeSet::new();
        for name in &self.0 {
            match first.get(&(name.kind.as_str(), name.name.as_str())) {
                // An address that is used twice has been told of.
                Some(earlier) if earlier.worker == name.worker => {}
                Some(earlier) if told.insert((name.value.at(), earlier.value.at())) => name.refuse(earlier),
                Some(_) => {}
                None => drop(first.insert((&name.kind, &name.name), name)),
            }
        }
    }
}

impl Name<'_> {
    fn refuse(&self, earlier: &Self) {
        let what = self.kind.split(' ').next().unwrap_or_default();
        let (one, other) =
            (format!("{} {}", earlier.service, earlier.worker), format!("{} {}", self.service, self.worker));
        let instead = match (earlier.service == self.service, earlier.worker.port() == self.worker.port()) {
            (false, _) => "write {service} where their names differ",
            (true, true) => "write {address} and {port} where they differ",
            (true, false) => "write {port} where they differ",
        };
        let reason = match what {
            "process" | "unit" | "log" => {
                format!("makes {} the {what} of both {one} and {other}; {instead}", self.name)
            }
            "command" => format!(
                "starts {one} and {other} in the same way, so that both would listen at one address; write {{port}}, and \
                 {{address}} where addresses differ, in it: [\"/srv/app\", \"--port={{port}}\"], or in the environment: \
                 environment = {{ PORT = \"{{port}}\" }}"
            ),
            _ => format!("is the same for both {one} and {other}; {instead}"),
        };
        self.value.refuse_once(&reason);
    }
}

/// What a built-in worker can tell its own address by.
fn told_apart_by(builtin: &Builtin, service: &str, at: SocketAddr) -> String {
    let mut texts: Vec<String> = builtin.command.argv.clone();
    texts.extend(builtin.environment.values().cloned());
    texts.push(builtin.directory.display().to_string());
    let text = texts.join("\0");
    // A shell's line may read what every built-in worker finds in its environment.
    let port = if text.contains("DEPLOYER_PORT") { at.port() } else { 0 };
    let ip = if text.contains("DEPLOYER_ADDRESS") { at.ip().to_string() } else { String::new() };
    format!("{}\0{port}\0{ip}", filled(&text, service, at))
}

/// Refuses a command that has its worker listen at a unix socket only: callers reach workers by TCP addresses.
pub(super) fn listens_by_tcp(value: &Value<'_>, argv: &[String]) -> Option<()> {
    let words: Vec<&str> = argv.iter().flat_map(|word| word.split_whitespace()).collect();
    let Some(nth) = words.iter().position(|word| names_unix_socket(word)) else { return Some(()) };
    // It may listen at several addresses.
    let is_tcp =
        |word: &&str| !names_unix_socket(word) && ["{port}", "DEPLOYER_PORT"].iter().any(|port| word.contains(port));
    let path_of_it = if words[nth].starts_with("unix:") || words[nth].contains('=') { nth } else { nth + 1 };
    if words.iter().enumerate().any(|(other, word)| other != path_of_it && is_tcp(word)) {
        return Some(());
    }
    value.refuse(format!(
        "has the worker listen at a unix socket ({}), and workers are reached by TCP: connections are steered by address \
         and port; write a TCP address, 127.0.0.1:{{port}}",
        words[nth]
    ))
}

/// `unix:/run/x.sock` in any option, gunicorn's `-bunix:`, uvicorn's and hypercorn's `--uds`, `--unix-socket`.
fn names_unix_socket(word: &str) -> bool {
    let option = word.split('=').next().unwrap_or_default();
    let value = word.split_once('=').map_or(word, |(_, value)| value);
    let value = value.trim_start_matches(['\'', '"']);
    let value = value.strip_prefix("-b").or_else(|| value.strip_prefix("-H")).unwrap_or(value);
    value.starts_with("unix:") || matches!(option, "--uds" | "--unix-socket" | "--unix-socket-path" | "--listen-unix")
}

#[cfg(test)]
mod tests {
    use super::names_unix_socket;

    #[test]
    fn unix_sockets_are_known() {
        for word in ["unix:/run/a", "--bind=unix:/run/a", "-bunix:/run/a", "--uds", "--uds=/run/a", "'unix:///run/a'"] {
            assert!(names_unix_socket(word), "{word}");
        }
        for word in ["127.0.0.1:{port}", "--bind=127.0.0.1:{port}", "unix", "--unix", "/run/unix:", "-b"] {
            assert!(!names_unix_socket(word), "{word}");
        }
    }
}
