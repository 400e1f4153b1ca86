//! What is in front of a fleet: Varnish in a namespace of its own, and the follower that tells it the hosts.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::network::Hub;
use crate::daemon::DeployerBin;
use crate::pace::SOON;
use crate::process::{Process, run};
use crate::sandbox::{Place, Sandbox};
use crate::varnish::Varnish;

/// Where Varnish listens, for browsers in its own namespace.
pub const FRONT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8081);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// Says whose fault a failed request is.
const BLAME: &str = r#"
sub vcl_backend_response {
  if (beresp.status >= 500) {
    return (error(503, "by the host"));
  }
}

sub vcl_backend_response {
  # Else a page that cannot be had anew is served for ten seconds longer, beyond the bake.
  set beresp.grace = 0s;
}
sub vcl_backend_error {
  synthetic("blames " + beresp.backend);
  return (deliver);
}
"#;

/// Varnish, with browsers beside it.
#[derive(Debug)]
pub struct Front {
    follower: Option<Process>,
    varnish: Option<Varnish>,
    /// Last: what runs in it goes before it.
    pub sandbox: Sandbox,
}

impl Front {
    /// Makes the namespace; nothing runs in it yet.
    pub fn new(hub: &Hub) -> Result<Self> {
        let sandbox = Sandbox::new("fleet_front")?;
        hub.join("front", &sandbox, ADDRESS)?;
        Ok(Self { follower: None, varnish: None, sandbox })
    }

    /// Starts Varnish, which takes these hosts in turn: names and addresses; `config` is one of theirs. Each that does not
    /// answer is left out within a second or two.
    pub fn start(&mut self, config: &Path, hosts: &[(&str, SocketAddr)]) -> Result<()> {
        let text = format!("{}{BLAME}", vcl(&self.printed(config, hosts)?, hosts)?);
        self.varnish = Some(Varnish::start_caching(&self.sandbox, FRONT, &text, &[])?);
        Ok(())
    }

    fn printed(&self, config: &Path, hosts: &[(&str, SocketAddr)]) -> Result<String> {
        let (_, first) = hosts.first().context("a fleet without hosts")?;
        let mut command = DeployerBin::find()?.command(&self.sandbox);
        run(command.args(["lb", "varnish", "web", "--via", &first.to_string(), "--config"]).arg(config))
    }

    /// Has a follower write Varnish's hosts from the server sets at `SERVERS/PATH/FLEET`, from now on.
    pub fn follow(&mut self, serversets: &str) -> Result<()> {
        let (vcl, reload) = (self.dir().join("followed.vcl"), self.reload_script()?);
        let mut command = DeployerBin::find()?.command(&self.sandbox);
        command.args(["lb", "varnish", "web", "--from-serverset", serversets, "--follow", "--out"]).arg(&vcl);
        command.arg("--reload").arg(reload);
        self.follower = Some(Process::start("the follower", command, &self.dir().join("follower.out"))?);
        let loaded = self.dir().join("loaded");
        let follower = self.follower.as_mut().context("the follower")?;
        follower.wait_ready(SOON, || loaded.exists())
    }

    /// `kill -9` of the follower.
    pub fn kill_follower(&mut self) -> Result<()> {
        self.follower.take().context("nobody follows")?.kill().map(drop)
    }

    /// A script that has Varnish take what the follower has written. It counts how often in the file `loaded`.
    fn reload_script(&self) -> Result<PathBuf> {
        let (dir, script) = (self.dir(), self.dir().join("reload.sh"));
        let shown = dir.display();
        fs::write(dir.join("blame.vcl"), format!("vcl 4.1;\n{BLAME}")).context("write blame.vcl")?;
        let text = format!(
            r#"#!/bin/sh
set -e
cd {shown}
name="web$(date +%s%N)"
# Backends by the names of their hosts.
awk '/^backend / {{ name = $2 }} name && match($0, /10\.77\.0\.1[0-9]/) {{
  print name, "h" substr($0, RSTART + 9, 1); name = "" }}' followed.vcl > names
sed "$(sed 's|\(.*\) \(.*\)|s/\\b\1\\b/\2/g|' names)" followed.vcl > "named-$name.vcl"
printf 'vcl 4.1;\ninclude "{shown}/named-%s.vcl";\ninclude "{shown}/blame.vcl";\n' "$name" > "$name.vcl"
varnishadm -n {shown}/work vcl.load "$name" "{shown}/$name.vcl"
varnishadm -n {shown}/work vcl.use "$name"
echo "$name" >> loaded
"#
        );
        fs::write(&script, text).context("write reload.sh")?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).context("make reload.sh executable")?;
        Ok(script)
    }

    /// How often Varnish was given other hosts.
    #[must_use]
    pub fn reloads(&self) -> usize {
        fs::read_to_string(self.dir().join("loaded")).map_or(0, |text| text.lines().count())
    }

    /// What the follower has written last.
    pub fn followed(&self) -> Result<String> {
        fs::read_to_string(self.dir().join("followed.vcl")).context("what the follower has written")
    }

    /// The backends of Varnish, as `varnishadm` shows them.
    pub fn backends(&self) -> Result<String> {
        let mut command = self.sandbox.command(Place::Outside, "varnishadm");
        run(command.arg("-n").arg(self.dir().join("work")).args(["backend.list", "-p"]))
    }

    /// What the follower has printed.
    #[must_use]
    pub fn log(&self) -> String {
        let of = |process: &Option<Process>| process.as_ref().map(Process::log_tail).unwrap_or_default();
        format!("== follower\n{}", of(&self.follower))
    }

    fn dir(&self) -> PathBuf {
        self.sandbox.dir().join("varnish")
    }
}

/// What `deployer lb` prints for one next load balancer, with several in turn in its place.
fn vcl(printed: &str, hosts: &[(&str, SocketAddr)]) -> Result<String> {
    let (head, rest) = printed.split_once("backend s1_web {").context("no backend in what was printed")?;
    let (_, tail) = rest.split_once("}\n").context("a backend without an end")?;
    let hint = "set req.backend_hint = s1_web;";
    ensure!(tail.contains(hint), "no {hint:?} in what was printed: {printed}");
    let tail = tail.replace(hint, "set req.backend_hint = hosts.backend();");
    let mut text = format!(
        "{head}probe alive {{ .url = \"/version\"; .interval = 500ms; .timeout = 1s; .window = 3; .threshold = 2; \
         .initial = 2; }}\n"
    );
    for (name, at) in hosts {
        let (ip, port) = (at.ip(), at.port());
        text += &format!(
            "backend {name} {{ .host = \"{ip}\"; .port = \"{port}\"; .connect_timeout = 1s; .probe = alive; }}\n"
        );
    }
    text += "sub vcl_init {\n  new hosts = directors.round_robin();\n";
    text.extend(hosts.iter().map(|(name, _)| format!("  hosts.add_backend({name});\n")));
    Ok(format!("{text}}}\n{tail}"))
}
