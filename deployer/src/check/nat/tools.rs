//! The tools that show rules, and what they say.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{super::Finding, iptables, nft, rules::Ruleset};

/// What there is to see.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) rulesets: Vec<Ruleset>,
    /// Tools that are missing where they are needed, or fail.
    pub(super) problems: Vec<Finding>,
    /// In words: which tools were asked.
    pub(super) looked: String,
}

/// One family of iptables.
struct Family {
    tool: &'static str,
    is_v4: bool,
    /// Lists the tables of the old kind; only once they are in use, and asking the old tool would bring them in.
    legacy_tables: &'static str,
    /// The table of the new kind, as nft names it.
    table: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family { tool: "iptables", is_v4: true, legacy_tables: "/proc/net/ip_tables_names", table: "ip nat" },
    Family { tool: "ip6tables", is_v4: false, legacy_tables: "/proc/net/ip6_tables_names", table: "ip6 nat" },
];

/// Asks all tools that are installed.
pub(super) fn look() -> Seen {
    let mut seen = Seen::default();
    let mut looked = Vec::new();
    let mut known = Vec::new();
    for family in &FAMILIES {
        family.look(&mut seen, &mut looked, &mut known);
    }
    match find("nft") {
        None => looked.push("nft not installed".to_owned()),
        Some(path) => match run(&path, &["-a", "list", "ruleset"]) {
            Err(said) => seen.problems.push(failed("nft -a list ruleset", &said)),
            Ok(text) => {
                looked.push("nft".to_owned());
                let tables = nft::parse(&text).into_iter();
                seen.rulesets.extend(tables.map(|(table, ruleset)| without_known(&table, ruleset, &known)));
            }
        },
    }
    seen.looked = looked.join(", ");
    seen
}

/// Leaves out iptables' own chain in nft's view, or each of its rules would be reported twice. A chain of that name
/// with rules that iptables cannot read is somebody else's, and stays.
pub(super) fn without_known(table: &str, mut ruleset: Ruleset, known: &[(&'static str, usize)]) -> Ruleset {
    let is_known = known.iter().any(|(at, count)| *at == table && *count == nft::count(&ruleset, "OUTPUT"));
    if is_known && let Some(chain) = ruleset.chains.get_mut("OUTPUT") {
        chain.is_base = false;
    }
    ruleset
}

impl Family {
    fn look(&self, seen: &mut Seen, looked: &mut Vec<String>, known: &mut Vec<(&'static str, usize)>) {
        let Some(main) = find(&format!("{}-save", self.tool)) else {
            looked.push(format!("{} not installed", self.tool));
            return;
        };
        // Before 1.8 there was only the old kind, and no answer to -V.
        let main_is_new = run(&main, &["-V"]).is_ok_and(|version| version.contains("nf_tables"));
        for is_new in [true, false] {
            if !is_new && !self.has_legacy_nat() {
                continue;
            }
            let tool = match (is_new == main_is_new, is_new) {
                (true, _) => self.tool.to_owned(),
                (false, true) => format!("{}-nft", self.tool),
                (false, false) => format!("{}-legacy", self.tool),
            };
            let save = format!("{tool}-save");
            let Some(path) = find(&save) else {
                if !is_new {
                    let detail = "is not installed, but the kernel holds a nat table that only it shows";
                    seen.problems.push(Finding::warn(save, detail));
                }
                continue;
            };
            match run(&path, &["-t", "nat"]) {
                Err(said) => seen.problems.push(failed(&format!("{save} -t nat"), &said)),
                Ok(text) => {
                    let ruleset = iptables::parse(&text, &tool, self.is_v4);
                    if is_new {
                        known.extend(iptables::count(&ruleset, "OUTPUT").map(|count| (self.table, count)));
                    }
                    seen.rulesets.push(ruleset);
                    looked.push(tool);
                }
            }
        }
    }

    /// Where that may not be read, the tool is asked, and says why it may not either.
    fn has_legacy_nat(&self) -> bool {
        match fs::read_to_string(self.legacy_tables) {
            Ok(tables) => tables.lines().any(|table| table == "nat"),
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }
}

fn failed(command: &str, said: &str) -> Finding {
    Finding::warn("nat rules", format!("{command} failed, so its rules are not known: {said}"))
}

/// In PATH, and where administrators' tools are although others' PATH has it not.
fn find(tool: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders.filter(|folder| folder.is_absolute()).map(|folder| folder.join(tool)).find(|file| file.is_file())
}

/// What a tool prints, or what it says against it.
fn run(tool: &Path, args: &[&str]) -> Result<String, String> {
    let output = Command::new(tool).args(args).env("LC_ALL", "C").stdin(Stdio::null()).output();
    let output = output.map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(if said.is_empty() { output.status.to_string() } else { said })
}
