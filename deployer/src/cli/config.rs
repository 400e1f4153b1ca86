//! `deployer config check`: reads a configuration as the daemon would, and says what is wrong.

use std::path::Path;

use super::out;
use crate::{
    api::Exit,
    config::{self, Config},
};

pub(super) fn check(file: &Path) -> Exit {
    match Config::load(file) {
        Ok(config) => {
            let said = out::say(&format!("{}{}", fine(file, &config), limits(&config)));
            said.unwrap_or_else(|failure| {
                out::error(&failure.message);
                failure.exit
            })
        }
        Err(error) => {
            out::complain(&error.to_string());
            Exit::Usage
        }
    }
}

/// What each service is held to, a line each: shares and defaults as they come out.
fn limits(config: &Config) -> String {
    let line = |service: &config::Service| {
        let config::Limits { min_up, cold_limit } = service.limits;
        let workers = out::counted(service.workers.len(), "worker");
        let second = service.deploy.as_ref().map_or_else(String::new, second);
        let cold_limit = out::short(cold_limit.as_secs_f64());
        format!("\n  {}: min_up {min_up} of {workers}, cold_limit {cold_limit}{second}", service.name)
    };
    config.services.values().map(line).collect()
}

/// `; second pool of 4 workers from 127.0.0.1:8004 on, 16 lanes, bake 10 min`: "next" as it comes out.
fn second(deploy: &config::Deploy) -> String {
    let from = deploy.second.first().map_or_else(String::new, |first| format!(" from {first} on"));
    let (workers, bake) = (out::counted(deploy.second.len(), "worker"), out::short(deploy.bake.as_secs_f64()));
    format!("; second pool of {workers}{from}, {} lanes, bake {bake}", deploy.lanes)
}

pub(super) fn fine(file: &Path, config: &Config) -> String {
    let workers = config.services.values().map(|service| service.workers.len()).sum();
    let services = out::counted(config.services.len(), "service");
    let spares = config.services.values().map(|service| service.spares.len()).sum();
    let spares = if spares > 0 { format!(", {}", out::counted(spares, "spare")) } else { String::new() };
    out::clean(&format!("{}: fine: {services}, {}{spares}", file.display(), out::counted(workers, "worker")))
}
