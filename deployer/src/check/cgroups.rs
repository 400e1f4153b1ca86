//! What the configuration names: cgroups and executables.

use std::{
    fs::{self, File},
    io::Read,
    path::{Component, Path, PathBuf},
};

use super::Finding;
use crate::{
    config::{Caller, Config},
    kernel::cgroup,
};

pub(super) fn findings(config: &Config) -> Vec<Finding> {
    // Without a root nothing can be said; that there is none is a finding of the kernel's already.
    let Some(root) = cgroup::root().ok().and_then(|root| root.canonicalize().ok()) else {
        return Vec::new();
    };
    let mut found: Vec<_> = [("callers", &config.kernel.callers), ("workers", &config.kernel.workers)]
        .into_iter()
        .map(|(key, path)| attach_point(&root, key, path.as_deref()))
        .collect();
    let attached = config.kernel.callers.as_deref().unwrap_or(&root);
    let attached = attached.canonicalize().unwrap_or_else(|_| attached.to_owned());
    for service in config.services.values() {
        found.extend(service.callers.iter().map(|rule| caller(&root, &attached, &service.name, rule)));
    }
    found
}

/// A cgroup that the programs are attached to.
fn attach_point(root: &Path, key: &str, path: Option<&Path>) -> Finding {
    let what = format!("kernel.{key}");
    let Some(path) = path else {
        return Finding::ok(what, format!("the cgroup v2 root, {}", root.display()));
    };
    let shown = path.display();
    if let Err(problem) = inside(root, path) {
        return Finding::fail(what, problem)
            .fix("write", format!("{key} = {:?} (the root), or a slice below it", root));
    }
    // As named and as resolved: either may be the one that is recreated.
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let Some(unit) = unit(path).or_else(|| unit(&real)) else {
        return Finding::ok(what, format!("{shown} is there and no unit's own, so it outlives restarts"));
    };
    let name = unit.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let stays = unit.parent().unwrap_or(root);
    let detail = format!("{shown} is recreated when {name} restarts, and the programs are gone with the old one");
    Finding::fail(what, detail).fix("write", format!("{key} = {stays:?}"))
}

/// A cgroup v2 directory?
fn inside(root: &Path, path: &Path) -> Result<(), String> {
    let shown = path.display();
    match fs::metadata(path) {
        Err(error) => return Err(format!("{shown}: {error}")),
        Ok(meta) if !meta.is_dir() => return Err(format!("{shown} is not a directory; a cgroup is one")),
        Ok(_) => {}
    }
    cgroup::id(root, path).map(drop).map_err(|error| format!("{shown} is not a cgroup v2: {error}"))
}

/// The path down to the first component that comes and goes with a unit.
fn unit(path: &Path) -> Option<PathBuf> {
    let mut upto = PathBuf::new();
    for component in path.components() {
        upto.push(component);
        if let Component::Normal(name) = component
            && [".service", ".scope"].iter().any(|end| name.to_string_lossy().ends_with(end))
        {
            return Some(upto);
        }
    }
    None
}

/// A rule for who is steered. A unit's own cgroup is welcome here: the daemon looks again every second.
fn caller(root: &Path, attached: &Path, service: &str, rule: &Caller) -> Finding {
    let what = format!("service.{service}.callers");
    match rule {
        Caller::Cgroup(path) => cgroup_rule(root, attached, what, path),
        Caller::Executable(path) => executable(what, path),
    }
}

fn cgroup_rule(root: &Path, attached: &Path, what: String, path: &Path) -> Finding {
    let shown = path.display();
    if !path.exists() {
        let detail = format!("{shown} does not exist: nobody is steered by it until it does (looked for every second)");
        return Finding::warn(what, detail);
    }
    if let Err(problem) = inside(root, path) {
        return Finding::warn(what, format!("{problem}; nobody is steered by it"));
    }
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if !real.starts_with(attached) && !attached.starts_with(&real) {
        let attached = attached.display();
        let detail = format!("{shown} is not below kernel.callers ({attached}), so its processes are never steered");
        return Finding::warn(what, detail);
    }
    Finding::ok(what, format!("cgroup {shown} is there"))
}

fn executable(what: String, path: &Path) -> Finding {
    let shown = path.display();
    match fs::metadata(path) {
        Err(error) => Finding::warn(what, format!("{shown}: {error}; nobody is steered by it until it is there")),
        Ok(meta) if !meta.is_file() => Finding::warn(what, format!("{shown} is not a file; nobody runs it")),
        Ok(_) if is_script(path) => {
            let detail = format!("{shown} is a script: its process runs the interpreter, and is not steered by this");
            Finding::warn(what, detail).fix("write", "the cgroup in which it runs")
        }
        Ok(_) => Finding::ok(what, format!("executable {shown} is there")),
    }
}

fn is_script(path: &Path) -> bool {
    let mut begin = [0; 2];
    File::open(path).and_then(|mut file| file.read_exact(&mut begin)).is_ok() && begin == *b"#!"
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::{super::Level, *};

    /// Any directory does for the root: the checks are of paths.
    #[test]
    fn a_unit_s_own_cgroup_is_no_attach_point() -> Result<(), Box<dyn Error>> {
        let root = tempfile::tempdir()?;
        let root = root.path().canonicalize()?;
        fs::create_dir_all(root.join("system.slice/nginx.service/inner"))?;
        fs::create_dir(root.join("web.slice"))?;
        fs::write(root.join("cgroup.procs"), "")?;
        std::os::unix::fs::symlink(root.join("system.slice/nginx.service"), root.join("alias"))?;
        let level = |path: &str| attach_point(&root, "callers", Some(&root.join(path))).level;
        assert_eq!(attach_point(&root, "callers", None).level, Level::Ok);
        assert_eq!(level("web.slice"), Level::Ok);
        assert_eq!(level("system.slice"), Level::Ok);
        assert_eq!(level("cgroup.procs"), Level::Fail);
        assert_eq!(level("missing"), Level::Fail);
        assert_eq!(level("alias"), Level::Fail);
        assert_eq!(attach_point(&root, "callers", Some(Path::new("/"))).level, Level::Fail, "not below the root");
        let finding = attach_point(&root, "workers", Some(&root.join("system.slice/nginx.service/inner")));
        assert_eq!(finding.level, Level::Fail);
        assert_eq!(finding.fix, Some(format!("workers = {:?}", root.join("system.slice"))));
        Ok(())
    }

    #[test]
    fn callers_only_warn() -> Result<(), Box<dyn Error>> {
        let root = tempfile::tempdir()?;
        let root = root.path().canonicalize()?;
        fs::create_dir_all(root.join("a.slice/nginx.service"))?;
        fs::create_dir(root.join("b.slice"))?;
        let script = root.join("script");
        fs::write(&script, "#!/bin/sh\n")?;
        let attached = root.join("a.slice");
        let level = |rule| caller(&root, &attached, "web", &rule).level;
        assert_eq!(level(Caller::Cgroup(root.join("a.slice/nginx.service"))), Level::Ok);
        assert_eq!(level(Caller::Cgroup(root.clone())), Level::Ok);
        assert_eq!(level(Caller::Cgroup(root.join("b.slice"))), Level::Warn);
        assert_eq!(level(Caller::Cgroup(root.join("missing"))), Level::Warn);
        assert_eq!(level(Caller::Executable(std::env::current_exe()?)), Level::Ok);
        assert_eq!(level(Caller::Executable(script)), Level::Warn);
        assert_eq!(level(Caller::Executable(root.clone())), Level::Warn);
        assert_eq!(level(Caller::Executable(root.join("missing"))), Level::Warn);
        Ok(())
    }
}
