//! Where the workspace and its target directory are, and commands that run there.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The checkout that this xtask belongs to.
pub(crate) struct Workspace {
    root: PathBuf,
    target: PathBuf,
}

impl Workspace {
    /// Finds the checkout and asks cargo for its target directory.
    pub(crate) fn find() -> Result<Self> {
        // cargo run tells the manifest's folder; the one of build time serves whoever calls the binary itself.
        let manifest =
            env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest.parent().context("xtask has no parent folder")?.to_path_buf();
        let target = target_directory(&root)?;
        Ok(Self { root, target })
    }

    /// The folder of the build tools that setup installs for this checkout.
    pub(crate) fn toolchain(&self) -> PathBuf {
        self.target.join("toolchain")
    }

    /// The folder of what the suite `kernels` gets and makes.
    pub(crate) fn kernels(&self) -> PathBuf {
        self.target.join("kernels")
    }

    /// A program of the debug build.
    pub(crate) fn debug(&self, program: &str) -> PathBuf {
        self.target.join("debug").join(program)
    }

    /// A program of the release build.
    pub(crate) fn release(&self, program: &str) -> PathBuf {
        self.target.join("release").join(program)
    }

    /// A command in the workspace's root.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.root);
        command
    }

    /// A cargo command in the workspace's root, with the same target directory.
    pub(crate) fn cargo<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = self.command(cargo());
        // A relative CARGO_TARGET_DIR was meant from the caller's folder, not from the root.
        command.env("CARGO_TARGET_DIR", &self.target).args(args);
        // What cargo says to this tool of its package. Build scripts look at it (ring's): dependencies would be built anew
        // after every `cargo build` by hand.
        let is_of_this_tool = |name: &OsString| {
            let name = name.to_string_lossy();
            name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
        };
        env::vars_os().map(|(name, _)| name).filter(is_of_this_tool).for_each(|name| {
            command.env_remove(name);
        });
        command
    }

    /// The same with clippy in the compiler's place, which builds as well, and takes a warning for an error. `cargo clippy`
    /// would check all dependencies once more, which takes two minutes of two processors.
    ///
    /// # Errors
    /// When this tool chain has no clippy.
    pub(crate) fn linting_cargo<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Result<Command> {
        let sysroot =
            output_of(self.command("rustc").args(["--print", "sysroot"])).context("rustc names no sysroot")?;
        let driver = Path::new(&sysroot).join("bin/clippy-driver");
        if !driver.exists() {
            bail!("there is no clippy-driver in {sysroot}. Add clippy to this tool chain: rustup component add clippy");
        }
        let mut command = self.cargo(args);
        // As cargo-clippy tells it to its driver.
        let args = "-D__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__";
        command.env("RUSTC_WORKSPACE_WRAPPER", driver).env("CLIPPY_ARGS", args);
        Ok(command)
    }
}

/// Runs a command with its output on stderr, as stdout belongs to results; an error names the command.
pub(crate) fn run_quietly(command: &mut Command) -> Result<()> {
    let line = shown(command);
    let status = command.stdout(Stdio::from(io::stderr())).status().with_context(|| format!("cannot run `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed ({status})");
    }
    Ok(())
}

/// What a command prints, if it runs and succeeds.
pub(crate) fn output_of(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A command as one would type it (for reading: without the program's folder, and nothing is quoted).
pub(crate) fn shown(command: &Command) -> String {
    let path = Path::new(command.get_program());
    let program = path.file_name().unwrap_or(path.as_os_str());
    let words = std::iter::once(program).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// The cargo that runs us, else the one on PATH.
fn cargo() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

fn target_directory(root: &Path) -> Result<PathBuf> {
    if let Some(named) = env::var_os("CARGO_TARGET_DIR").filter(|named| !named.is_empty()) {
        return std::path::absolute(named).context("CARGO_TARGET_DIR");
    }
    let mut command = Command::new(cargo());
    command.current_dir(root).args(["metadata", "--no-deps", "--format-version", "1"]);
    let output = command.stderr(Stdio::inherit()).output().context("cannot run `cargo metadata`")?;
    if !output.status.success() {
        bail!("`cargo metadata` failed ({})", output.status);
    }
    let json = String::from_utf8_lossy(&output.stdout);
    json_string(&json, "target_directory").map(PathBuf::from).context("`cargo metadata` names no target directory")
}

/// The value of the last `"key":"…"` in compact JSON (a parser for one field that cargo itself writes).
fn json_string(json: &str, key: &str) -> Option<String> {
    let start = format!("\"{key}\":\"");
    let rest = &json[json.rfind(&start)? + start.len()..];
    let mut value = String::new();
    let mut letters = rest.chars();
    loop {
        match letters.next()? {
            '"' => return Some(value),
            '\\' => value.push(letters.next().filter(|letter| matches!(letter, '"' | '\\' | '/'))?),
            letter => value.push(letter),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_json_string() {
        let json = r#"{"packages":[],"target_directory":"/a b/c","version":1}"#;
        assert_eq!(json_string(json, "target_directory").as_deref(), Some("/a b/c"));
        assert_eq!(json_string(json, "version"), None);
        assert_eq!(json_string(json, "absent"), None);
    }

    #[test]
    fn undoes_json_escapes() {
        assert_eq!(json_string(r#"{"k":"a\"b\\c"}"#, "k").as_deref(), Some(r#"a"b\c"#));
        assert_eq!(json_string(r#"{"k":"cut"#, "k"), None);
    }

    #[test]
    fn shows_a_command() {
        assert_eq!(shown(Command::new("/sbin/ip").args(["link", "show"])), "ip link show");
    }
}
