//! A service's two pools: which is current, and what the workers of each are told of it.

use std::{
    collections::BTreeMap,
    fs, io,
    net::SocketAddr,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    sync::{Arc, atomic::Ordering::SeqCst},
};

use super::{Service, Worker};
use crate::{config, version::Version};

/// How pools are called: in files, commands and what is shown.
pub const NAMES: [&str; 2] = ["a", "b"];

impl Service {
    /// The workers of the current pool: those that serve.
    #[must_use]
    pub fn workers(&self) -> &[Arc<Worker>] {
        self.pool(self.current())
    }

    /// The workers of a pool, 0 or 1; none: the service has one pool.
    #[must_use]
    pub fn pool(&self, pool: u32) -> &[Arc<Worker>] {
        &self.pools[pool as usize & 1]
    }

    /// The pool that is current, as far as the daemon has noticed: the kernel knows of a flip at once.
    #[must_use]
    pub fn current(&self) -> u32 {
        self.current.load(SeqCst)
    }

    /// Takes note of a flip.
    pub fn set_current(&self, pool: u32) {
        self.current.store(pool & 1, SeqCst);
    }

    /// The numbers that the workers of a pool have as members.
    #[must_use]
    pub fn numbers(&self, pool: u32) -> std::ops::Range<usize> {
        let first = if pool & 1 == 0 { 0 } else { self.pools[0].len() + self.spares.len() };
        first..first + self.pool(pool).len()
    }

    /// The pool that a worker is of; spares are of the first.
    #[must_use]
    pub fn pool_of(&self, worker: &Worker) -> u32 {
        u32::from(self.pools[1].iter().any(|other| other.index == worker.index))
    }
}

/// The name by which workers are told their version.
const VERSION: &str = "DEPLOYER_VERSION";

/// What the workers of a pool are told at their start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told<'a> {
    /// The lane of their version, 1-255.
    pub lane: u8,
    /// The version; `None`: nobody has said.
    pub version: Option<&'a Version>,
}

/// Writes down what the workers of a pool are told from their next start on. A worker's process manager reads it by the
/// pool, `SERVICE-a.env`, or by its address, `SERVICE-127.0.0.1:8000.env`, or by its port alone where no other worker of
/// the service has it, `SERVICE-8000.env`; or the worker does, so that every user may.
///
/// # Errors
/// When the file, its directory or the links to it cannot be written.
pub fn tell(service: &config::Service, deploy: &config::Deploy, pool: u32, told: &Told<'_>) -> io::Result<()> {
    let file = &deploy.files[pool as usize & 1];
    fs::create_dir_all(file.parent().unwrap_or(Path::new("/")))?;
    let mut text = format!("DEPLOYER_LANE={}\nDEPLOYER_POOL={}\n", told.lane, NAMES[pool as usize & 1]);
    if let Some(version) = told.version {
        text.push_str(&format!("{VERSION}={version}\n"));
    }
    let aside = file.with_extension("env.new");
    fs::write(&aside, text)?;
    open_to_all(&aside, 0o644)?;
    fs::rename(&aside, file)?;
    link(service, deploy, pool)
}

/// Has what a pool is told be found by its workers' addresses, too, and by their ports. A link by a port that two workers
/// have is removed: it would tell one of them what the other is.
///
/// # Errors
/// When a link, or the directory, cannot be written.
pub fn link(service: &config::Service, deploy: &config::Deploy, pool: u32) -> io::Result<()> {
    let file = &deploy.files[pool as usize & 1];
    let dir = file.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(dir)?;
    open_to_all(dir, 0o755)?;
    let workers = if pool & 1 == 0 { &service.workers } else { &deploy.second };
    for at in workers {
        let by_port = dir.join(format!("{}-{}.env", service.name, at.port()));
        if is_alone(*at, service, deploy) {
            link_to(file, &by_port)?;
        } else if let Err(error) = fs::remove_file(&by_port)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        link_to(file, &dir.join(format!("{}-{at}.env", service.name)))?;
    }
    Ok(())
}

/// Whether no other worker of the service has its port.
fn is_alone(at: SocketAddr, service: &config::Service, deploy: &config::Deploy) -> bool {
    service.workers.iter().chain(&deploy.second).filter(|other| other.port() == at.port()).count() < 2
}

fn link_to(file: &Path, link: &Path) -> io::Result<()> {
    let to = file.file_name().unwrap_or_default();
    if fs::read_link(link).is_ok_and(|there| there == to) {
        return Ok(());
    }
    let _ = fs::remove_file(link);
    symlink(to, link)
}

/// Whatever the daemon's umask is.
fn open_to_all(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// What a file says that [`tell`] has written; nothing, if there is none.
///
/// # Errors
/// When it cannot be read.
pub fn told(file: &Path) -> io::Result<BTreeMap<String, String>> {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error),
    };
    let lines = text.lines().filter_map(|line| line.split_once('='));
    // An earlier deployer has told versions that are none now.
    let lines = lines.filter(|(name, value)| *name != VERSION || Version::new(*value).is_ok());
    Ok(lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn what_is_told_is_read_by_pool_and_by_port() {
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            "[daemon]\nstate = {:?}\n[service.web]\nworkers = \"127.0.0.1:8000-8001\"\ndeploy.second = \"next\"\n\
             manager = {{ unit = \"web@{{port}}.service\" }}\n",
            dir.path()
        );
        let config = Config::parse(Path::new("f"), &text).unwrap().services.remove("web").unwrap();
        let deploy = config.deploy.clone().unwrap();
        for (version, lane) in [(Some("v1"), 3), (None, 4), (Some("v2"), 5)] {
            let valid = version.map(Version::from);
            tell(&config, &deploy, 1, &Told { lane, version: valid.as_ref() }).unwrap();
            for name in ["web-b.env", "web-8002.env", "web-8003.env", "web-127.0.0.1:8003.env"] {
                let told = told(&dir.path().join("pools").join(name)).unwrap();
                assert_eq!(told.get("DEPLOYER_LANE"), Some(&lane.to_string()), "{name}");
                assert_eq!(told.get("DEPLOYER_VERSION").map(String::as_str), version);
                let mode = fs::metadata(dir.path().join("pools").join(name)).unwrap().permissions().mode();
                assert_eq!(mode & 0o777, 0o644, "workers of any user read it");
            }
        }
        assert!(told(&deploy.files[0]).unwrap().is_empty(), "nobody has told the first pool anything");
    }

    #[test]
    fn one_port_of_two_workers_tells_neither() {
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            "[daemon]\nstate = {:?}\n[service.web]\nworkers = \"127.0.0.1:8000-8001\"\n\
             deploy.second = [\"127.0.0.4:8000\", \"127.0.0.4:8005\"]\n\
             manager = {{ unit = \"web@{{address}}:{{port}}.service\" }}\n",
            dir.path()
        );
        let config = Config::parse(Path::new("f"), &text).unwrap().services.remove("web").unwrap();
        let deploy = config.deploy.clone().unwrap();
        let at = |name: &str| dir.path().join("pools").join(name);
        // As a former deployer has left it.
        fs::create_dir_all(at("")).unwrap();
        symlink("web-a.env", at("web-8000.env")).unwrap();
        for (pool, lane) in [(0, 3), (1, 4)] {
            tell(&config, &deploy, pool, &Told { lane, version: None }).unwrap();
        }
        let lane = |name: &str| told(&at(name)).unwrap().get("DEPLOYER_LANE").cloned();
        let of = |name: &str| lane(name).unwrap_or_default();
        assert_eq!([of("web-127.0.0.1:8000.env"), of("web-127.0.0.4:8000.env")], ["3", "4"]);
        assert_eq!([of("web-8001.env"), of("web-8005.env"), of("web-8000.env")], ["3", "4", ""]);
    }

    #[test]
    fn a_version_that_is_not_valid_is_not_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "DEPLOYER_LANE=3\nDEPLOYER_VERSION=$(x)\n").unwrap();
        assert_eq!(told(file.path()).unwrap(), BTreeMap::from([("DEPLOYER_LANE".to_owned(), "3".to_owned())]));
    }
}
