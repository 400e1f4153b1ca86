//! Workers and callers that speak TLS, with certificates made by `openssl`.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::dial::PYTHON;
use crate::pace::patient;
use crate::process::run;
use crate::sandbox::{Place, Sandbox};

/// A certificate and its key, in files.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// PEM.
    pub cert: PathBuf,
    /// PEM.
    pub key: PathBuf,
}

impl Certificate {
    /// Makes one that has signed itself, for these names (`IP:127.0.0.1,DNS:web.internal`), which ends in so many days; -1:
    /// it has ended.
    pub fn new(folder: &Path, name: &str, names: &str, days: i32) -> Result<Self> {
        let at = |what: &str| folder.join(format!("{name}.{what}"));
        fs::write(at("more"), format!("basicConstraints=critical,CA:TRUE\nsubjectAltName={names}\n"))?;
        let script = "openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout $1.key -subj /CN=web -out \
                      $1.csr\nopenssl x509 -req -in $1.csr -signkey $1.key -days $2 -extfile $1.more -out $1.pem";
        let days = days.to_string();
        run(Command::new("sh").args(["-ec", script, "sh", name, &days]).current_dir(folder))
            .context("make a certificate")?;
        Ok(Self { cert: at("pem"), key: at("key") })
    }
}

/// Writes the worker's program; see `tls_worker.py`. Returns the words that run it, for a `command` in TOML; without a
/// certificate it speaks plain HTTP.
pub fn worker(sandbox: &Sandbox, certificate: Option<&Certificate>) -> Result<String> {
    let script = sandbox.dir().join("tls_worker.py");
    fs::write(&script, include_str!("../app/tls_worker.py")).context("write tls_worker.py")?;
    let (cert, key) = certificate.map_or((Path::new("-"), Path::new("-")), |of| (of.cert.as_path(), of.key.as_path()));
    Ok(format!("[{PYTHON:?}, \"-sE\", {script:?}, \"{{address}}\", \"{{port}}\", {cert:?}, {key:?}]"))
}

/// A caller that keeps one connection; ends when dropped.
#[derive(Debug)]
pub struct Caller {
    child: Child,
    orders: ChildStdin,
    lines: Receiver<String>,
}

impl Caller {
    /// Connects, among the sandbox's callers.
    pub fn start(sandbox: &Sandbox, address: &str, port: u16) -> Result<Self> {
        let script = sandbox.dir().join("tls_caller.py");
        fs::write(&script, include_str!("../app/tls_caller.py")).context("write tls_caller.py")?;
        let mut command = sandbox.command(Place::Callers, PYTHON);
        command.arg(script).args([address, &port.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("start a caller of TLS")?;
        let orders = child.stdin.take().context("its input")?;
        let output = BufReader::new(child.stdout.take().context("its output")?);
        let (sender, lines) = channel();
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let mut caller = Self { child, orders, lines };
        caller.says("connected", Duration::from_secs(20))?;
        Ok(caller)
    }

    /// Asks for a path; see [`Self::says`] for the answer.
    pub fn ask(&mut self, path: &str) -> Result<()> {
        writeln!(self.orders, "{path}").context("ask a caller of TLS")
    }

    /// Waits until it says this, at most for so long.
    pub fn says(&mut self, word: &str, within: Duration) -> Result<()> {
        let line = self.lines.recv_timeout(patient(within)).with_context(|| format!("it has not said {word:?}"))?;
        ensure!(line.starts_with(word), "it says {line:?}, not {word:?}");
        Ok(())
    }

    /// Whether it says nothing for so long.
    pub fn is_silent(&mut self, time: Duration) -> bool {
        self.lines.recv_timeout(time).is_err()
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
