//! Loading and attaching the programs.

use std::{
    fs,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use aya::{Btf, Ebpf, EbpfLoader, VerifierLogLevel, maps::Map, programs::Program};
use deployer_common::layout::TABLES;
use tracing::warn;

use super::{
    bpf,
    btf::{Field, Structs},
    cgroup,
    events::Events,
    features, host,
    links::{self, Link, Steering},
    pins::{Generation, Pins},
    tables::{Iterators, Tables},
    trace::Decisions,
    versions,
};

/// The programs, built from deployer-ebpf by the build script.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("DEPLOYER_EBPF_OBJECT"));

/// What the verifier says of a program that it refuses: why, and how much it has looked at. Its trace, which is aya's
/// default, is of many megabytes where it gives up at its limit, and takes minutes to write.
pub(super) const VERIFIER_LOG: VerifierLogLevel = VerifierLogLevel::STATS;

/// Programs that count the relatives of a process that is killed with it (`deaths.rs`), by `bpf_loop` (Linux 5.17). Where
/// they are refused, they are loaded once more without.
const COUNTING: [&str; 2] = ["signalled", "exits"];

/// Where the running kernel describes its types.
pub(super) const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Fields that programs read: global, structure, member.
const OFFSETS: [Field; 39] = [
    ("OFF_TASK_CHILDREN", "task_struct", "children"),
    ("OFF_TASK_FILES", "task_struct", "files"),
    ("OFF_TASK_FLAGS", "task_struct", "flags"),
    ("OFF_TASK_MM", "task_struct", "mm"),
    ("OFF_TASK_PARENT", "task_struct", "real_parent"),
    ("OFF_TASK_SIBLING", "task_struct", "sibling"),
    ("OFF_TASK_SIGNAL", "task_struct", "signal"),
    ("OFF_TASK_TGID", "task_struct", "tgid"),
    ("OFF_SIGNAL_FLAGS", "signal_struct", "flags"),
    ("OFF_SIGNAL_LIVE", "signal_struct", "live"),
    ("OFF_FILES_FDT", "files_struct", "fdt"),
    ("OFF_FDT_MAX", "fdtable", "max_fds"),
    ("OFF_FDT_FD", "fdtable", "fd"),
    ("OFF_MM_EXE_FILE", "mm_struct", "exe_file"),
    ("OFF_FILE_INODE", "file", "f_inode"),
    ("OFF_FILE_PRIVATE", "file", "private_data"),
    ("OFF_FILE_REF", "file", "f_ref"),
    ("OFF_FILE_COUNT", "file", "f_count"),
    ("OFF_INODE_INO", "inode", "i_ino"),
    ("OFF_INODE_SB", "inode", "i_sb"),
    ("OFF_SB_DEV", "super_block", "s_dev"),
    ("OFF_SOCKET_FILE", "socket", "file"),
    ("OFF_SOCKET_SK", "socket", "sk"),
    ("OFF_SOCKET_STATE", "socket", "state"),
    ("OFF_SK_OWNED", "sock", "sk_lock.owned"),
    ("OFF_SK_SOCKET", "sock", "sk_socket"),
    ("OFF_SK_ERR", "sock", "sk_err"),
    ("OFF_SK_STATE", "sock_common", "skc_state"),
    ("OFF_SK_FAMILY", "sock_common", "skc_family"),
    ("OFF_SK_NUM", "sock_common", "skc_num"),
    ("OFF_SK_ADDR4", "sock_common", "skc_rcv_saddr"),
    ("OFF_SK_ADDR6", "sock_common", "skc_v6_rcv_saddr"),
    ("OFF_SK_NET", "sock_common", "skc_net"),
    ("OFF_NET_COOKIE", "net", "net_cookie"),
    ("OFF_SKB_HEAD", "sk_buff", "head"),
    ("OFF_SKB_NETWORK", "sk_buff", "network_header"),
    ("OFF_SKB_TRANSPORT", "sk_buff", "transport_header"),
    ("OFF_SKB_DEV", "sk_buff", "dev"),
    ("OFF_DEV_NET", "net_device", "nd_net"),
];

/// Where the programs are attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// Cgroup of the callers.
    pub callers: PathBuf,
    /// Cgroup that holds the workers.
    pub workers: PathBuf,
}

impl Attachment {
    /// Cgroups in which sockets are watched: both, or the outer one where one holds the other.
    pub(super) fn watched(&self) -> Vec<&Path> {
        if self.workers.starts_with(&self.callers) {
            vec![&self.callers]
        } else if self.callers.starts_with(&self.workers) {
            vec![&self.workers]
        } else {
            vec![&self.callers, &self.workers]
        }
    }
}

/// The attached programs. They stay in the kernel when this is dropped, and when the process ends: only
/// [`Programs::detach`] takes them out.
pub struct Programs {
    ebpf: Ebpf,
    /// The tables by the names of their pins, for pinning them again.
    tables: Vec<(String, OwnedFd)>,
    steering: Arc<Steering>,
    pins: Pins,
    generation: Generation,
}

/// What an attachment gives.
pub struct Attached {
    /// The programs.
    pub programs: Programs,
    /// Their tables.
    pub tables: Tables,
    /// What they tell of workers.
    pub events: Events,
    /// What they tell of decisions.
    pub decisions: Decisions,
}

impl Programs {
    /// Loads this version's programs, over the tables that are pinned below `pins` where there are any, and puts them in
    /// place of those that are attached; no connection is steered by neither. The connect hooks come last: at a first
    /// start they find tables in which no service is named yet, and let all pass.
    ///
    /// # Errors
    /// When another daemon holds the pins, the tables are from a newer version (nothing is changed then), the kernel
    /// lacks something or refuses; says at which program and cgroup.
    pub fn attach(attachment: &Attachment, pins: &Path) -> Result<Attached> {
        let netns = host::netns_cookie().context("reading the cookie of this network namespace (Linux 5.14)")?;
        let pins = Pins::open(pins)?;
        let found = pins.live();
        let inheritance = found.as_ref().map(versions::inherit).transpose()?.unwrap_or_default();
        let kept = found.iter().flat_map(|found| inheritance.kept.iter().map(|(table, pin)| (*table, found.path(pin))));
        let kept: Vec<_> = kept.collect();
        let (mut ebpf, Loaded { missing, .. }) = load_all(&kept)?;
        // One that a daemon left aside which died while building it may hold links that nobody else does.
        let former: Vec<_> = found.iter().cloned().chain(pins.others()).collect();
        let generation = pins.begin()?;
        let tables = pin_tables(&ebpf, &generation)?;
        let moving = found.as_ref().map(|found| inheritance.copy(found, &generation)).transpose()?.unwrap_or_default();
        let (binds, missing): (Vec<_>, Vec<_>) = missing.into_iter().partition(|(name, _)| protects(name));
        for (name, error) in &binds {
            warn!(program = name, "`protect` does not keep strangers from all addresses on this kernel: {error:#}");
        }
        let mut links = attach_tracing(&ebpf, missing, &generation)?;
        let is_there = |wanted: &links::Wanted| !binds.iter().any(|(name, _)| *name == wanted.program);
        for wanted in links::wanted(attachment).into_iter().filter(is_there) {
            let link = Link::take(wanted.clone(), &former, program(&ebpf, wanted.program)?)?;
            link.pin(&generation)?;
            links.push(link);
        }
        host::grace_period().context("waiting for an RCU grace period (membarrier)")?;
        moving.finish();
        pin_programs(&ebpf, &generation)?;
        pins.publish(&generation)?;
        let steering = Arc::new(Steering::new(links));
        let (events, decisions) = (Events::take(&mut ebpf)?, Decisions::take(&mut ebpf)?);
        let iterator = |name| -> Result<Option<OwnedFd>> {
            let found = program(&ebpf, name).ok().map(|it| it.try_clone_to_owned()).transpose();
            found.with_context(|| format!("program {name}"))
        };
        let iterators = Iterators { arm: iterator("arm")?, ticketed: iterator("ticketed")? };
        let taken = Tables::take(&mut ebpf, netns, Arc::clone(&steering), iterators)?;
        let programs = Self { ebpf, tables, steering, pins, generation };
        Ok(Attached { programs, tables: taken, events, decisions })
    }

    /// Looks whether links and pins are still what they should be, and makes them so. Returns what was lost, and what came
    /// of it; nothing, as a rule. A cgroup that is gone cannot be attached to until there is one of that name again.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn repair(&mut self) -> Result<Vec<String>> {
        let mut lost = Vec::new();
        for link in self.steering.links().iter_mut().filter(|link| !link.is_attached()) {
            self.steering.interrupted();
            let wanted = link.wanted.clone();
            let place = wanted.place();
            if wanted.is_nowhere() {
                lost.push(format!("{place} is gone, and program {} with it", wanted.program));
                continue;
            }
            *link = Link::attach(wanted.clone(), program(&self.ebpf, wanted.program)?)?;
            // The pin of the lost link, if it is still there.
            let _ = fs::remove_file(self.generation.path(&wanted.pin));
            let _ = link.pin(&self.generation);
            lost.push(format!("{place} was made anew; program {} is attached again", wanted.program));
        }
        if self.pins.live().as_ref() != Some(&self.generation) || !self.is_pinned() {
            self.pin_again()?;
            lost.push(format!("the pins in {} were gone; pinned again", self.pins.dir().display()));
        }
        Ok(lost)
    }

    fn is_pinned(&self) -> bool {
        let names = self.generation.names();
        self.steering.links().iter().all(|link| names.contains(&link.wanted.pin))
            && self.tables.iter().all(|(table, _)| names.contains(table))
    }

    fn pin_again(&mut self) -> Result<()> {
        // Where the file system was unmounted, the lock lies in the former one: another directory altogether.
        if !self.pins.is_there() {
            self.pins = Pins::open(self.pins.dir())?;
        }
        let generation = self.pins.begin()?;
        for (name, fd) in &self.tables {
            let path = generation.path(name);
            bpf::pin(fd.as_fd(), &path).with_context(|| format!("pinning {}", path.display()))?;
        }
        self.steering.links().iter().try_for_each(|link| link.pin(&generation))?;
        pin_programs(&self.ebpf, &generation)?;
        self.pins.publish(&generation)?;
        self.generation = generation;
        Ok(())
    }

    /// How long each program has run so far, and how often: by its name. Counted while `kernel.bpf_stats_enabled` is 1.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn runs(&self) -> Result<Vec<(String, Duration, u64)>> {
        // One that this kernel does without is not there.
        let loaded = self.ebpf.programs().filter(|(_, program)| program.fd().is_ok());
        let runs = loaded.map(|(name, program)| {
            let info = program.info().with_context(|| format!("asking for the run time of program {name}"))?;
            Ok((name.to_owned(), info.run_time(), info.run_count()))
        });
        runs.collect()
    }

    /// Takes programs, links and tables out of the kernel.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn detach(&mut self) -> Result<()> {
        self.pins.remove()?;
        self.steering.links().clear();
        Ok(())
    }
}

/// Programs that see processes end, and sockets that are older than they. A kernel that lacks what they need (the iterator
/// may set a socket's flags from 6.12 on) does without: user space notices by itself, later. The last two are about
/// tickets; they need socket storage in tracing programs, and `bpf_sock_from_file` (5.11).
const TRACING: [&str; 6] = ["signalled", "exits", REFUSALS, "arm", "failed", "ticketed"];
/// Those of them that are iterators: they are run, not attached.
const ITERATORS: [&str; 2] = ["arm", "ticketed"];

/// The program that sees what workers' addresses reset and refuse.
const REFUSALS: &str = "refusals";

/// What is lost without an optional program, in words.
pub(crate) fn without(program: &str) -> &'static str {
    match program {
        REFUSALS => "connections that a worker's closed port refuses are not counted",
        "failed" => {
            "the number of pending connect() calls includes some that have failed, until their sockets are closed"
        }
        "ticketed" => {
            "a connect() that has failed may hold a drain until its socket connects again or is closed, and status and \
             rolls cannot name the process whose connect() call holds a drain"
        }
        name if protects(name) => "`protect` does not keep strangers from all addresses",
        _ => "a worker that crashes is noticed within 0.1 s instead of at once",
    }
}

/// Whether a program is one of those that keep strangers from protected addresses.
fn protects(program: &str) -> bool {
    links::BINDS.iter().any(|(name, _)| *name == program)
}

/// What of the programs this kernel takes.
#[derive(Debug)]
pub struct Loaded {
    /// Those that it does without, and why.
    pub missing: Vec<(&'static str, anyhow::Error)>,
    /// Whether the relatives of a process that is killed are counted.
    pub counts_relatives: bool,
}

/// Creates the tables, but for those that are `kept`, and loads every program.
fn load_all(kept: &[(&'static str, PathBuf)]) -> Result<(Ebpf, Loaded)> {
    let mut counts_relatives = true;
    loop {
        let mut ebpf = load(kept, counts_relatives)?;
        let missing = load_programs(&mut ebpf)?;
        let is_refused = missing.iter().any(|(name, _)| COUNTING.contains(name));
        if !(is_refused && counts_relatives) {
            return Ok((ebpf, Loaded { missing, counts_relatives: counts_relatives && !is_refused }));
        }
        counts_relatives = false;
    }
}

/// Loads every program. Returns those that this kernel does without, and why.
fn load_programs(ebpf: &mut Ebpf) -> Result<Vec<(&'static str, anyhow::Error)>> {
    let btf = Btf::from_sys_fs().context("reading the kernel's BTF")?;
    let mut missing = Vec::new();
    for (name, program) in ebpf.programs_mut() {
        let loaded = match program {
            Program::CgroupSockAddr(program) => program.load(),
            Program::CgroupSock(program) => program.load(),
            Program::SockOps(program) => program.load(),
            Program::BtfTracePoint(program) if name == "signalled" => program.load("signal_generate", &btf),
            Program::BtfTracePoint(program) if name == "failed" => program.load("inet_sock_set_state", &btf),
            Program::BtfTracePoint(program) if name == REFUSALS => program.load("tcp_send_reset", &btf),
            Program::BtfTracePoint(program) => program.load("sched_process_exit", &btf),
            Program::Iter(program) if name == "ticketed" => program.load("task_file", &btf),
            Program::Iter(program) => program.load("tcp", &btf),
            other => return Err(anyhow!("program {name} is of an unexpected type, {:?}", other.prog_type())),
        };
        let mut optional = TRACING.into_iter().chain(links::BINDS.map(|(name, _)| name));
        match (loaded.with_context(|| format!("loading program {name}")), optional.find(|known| *known == name)) {
            (Ok(()), _) => {}
            (Err(error), Some(name)) => missing.push((name, error)),
            (Err(error), None) => return Err(error),
        }
    }
    Ok(missing)
}

/// Attaches what sees processes end and connect() calls fail, as far as this kernel can, and says so of what it cannot.
fn attach_tracing(
    ebpf: &Ebpf,
    missing: Vec<(&'static str, anyhow::Error)>,
    generation: &Generation,
) -> Result<Vec<Link>> {
    let (mut links, mut missing) = (Vec::new(), missing);
    let not_loaded: Vec<_> = missing.iter().map(|(name, _)| *name).collect();
    let attached = TRACING.into_iter().filter(|name| !ITERATORS.contains(name) && !not_loaded.contains(name));
    for wanted in links::tracing(attached) {
        let name = wanted.program;
        match Link::attach(wanted, program(ebpf, name)?) {
            Ok(link) => {
                link.pin(generation)?;
                links.push(link);
            }
            Err(error) => missing.push((name, error)),
        }
    }
    for (name, error) in missing {
        warn!(program = name, "this kernel does without an optional program: {}: {error:#}", without(name));
    }
    Ok(links)
}

/// Pins every table under its name and version; returns them.
fn pin_tables(ebpf: &Ebpf, to: &Generation) -> Result<Vec<(String, OwnedFd)>> {
    let mut pinned = Vec::new();
    for (table, version) in TABLES {
        let map = ebpf.map(table).ok_or_else(|| anyhow!("the eBPF object has no table {table}"))?;
        let (Map::Array(data) | Map::HashMap(data) | Map::LruHashMap(data) | Map::SkStorage(data) | Map::RingBuf(data)) =
            map
        else {
            return Err(anyhow!("table {table} is of an unexpected type, {map:?}"));
        };
        let name = versions::pin_name(table, version);
        let path = to.path(&name);
        data.pin(&path).with_context(|| format!("pinning {}", path.display()))?;
        pinned.push((name, bpf::get(&path).with_context(|| format!("opening {}", path.display()))?));
    }
    Ok(pinned)
}

fn pin_programs(ebpf: &Ebpf, to: &Generation) -> Result<()> {
    for (name, program) in ebpf.programs() {
        let path = to.path(&format!("program-{name}"));
        // One that this kernel does without is not there.
        let Ok(fd) = program.fd() else { continue };
        bpf::pin(fd.as_fd(), &path).with_context(|| format!("pinning {}", path.display()))?;
    }
    Ok(())
}

fn program<'a>(ebpf: &'a Ebpf, name: &str) -> Result<BorrowedFd<'a>> {
    let program = ebpf.program(name).ok_or_else(|| anyhow!("the eBPF object has no program {name}"))?;
    Ok(program.fd().with_context(|| format!("program {name}"))?.as_fd())
}

/// Loads all programs, so that the verifier sees them, attaches none and drops them.
///
/// # Errors
/// When the kernel lacks something or refuses; says at which program.
pub fn can_load() -> Result<Loaded> {
    Ok(load_all(&[])?.1)
}

/// How the running kernel describes its types.
pub(crate) fn vmlinux() -> Result<Vec<u8>> {
    fs::read(VMLINUX).with_context(|| format!("reading {VMLINUX}: the kernel must be built with CONFIG_DEBUG_INFO_BTF"))
}

/// Creates the tables, but for those that are `kept`: names and pins.
fn load(kept: &[(&'static str, PathBuf)], counts_relatives: bool) -> Result<Ebpf> {
    let btf = vmlinux()?;
    let structs = Structs::parse(&btf).ok_or_else(|| anyhow!("{VMLINUX} is not understood"))?;
    let offsets = structs.globals(&OFFSETS);
    let has_set_retval = u32::from(features::sets_retval());
    let counts_relatives = u32::from(counts_relatives);
    let has_mptcp = u32::from(features::finds_multipath(&structs));
    let mut loader = EbpfLoader::new();
    loader.verifier_log_level(VERIFIER_LOG);
    for (global, offset) in &offsets {
        loader.override_global(global, offset, true);
    }
    loader.override_global("HAS_SET_RETVAL", &has_set_retval, true);
    loader.override_global("COUNTS_RELATIVES", &counts_relatives, true);
    loader.override_global("HAS_MPTCP", &has_mptcp, true);
    for (table, pin) in kept {
        loader.map_pin_path(table, pin);
    }
    loader.load(OBJECT).context(
        "creating the eBPF tables; this needs root, or CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (deployer check says more)",
    )
}

/// Fills in the default cgroups: the root of cgroup v2.
///
/// # Errors
/// When no cgroup v2 is mounted, or a cgroup that was named is not there.
pub fn attachment(callers: Option<&Path>, workers: Option<&Path>) -> Result<Attachment> {
    let root = cgroup::root().context("looking for the cgroup v2 root")?;
    let resolve = |named: Option<&Path>, what: &str| -> Result<PathBuf> {
        let path = named.unwrap_or(&root);
        path.canonicalize().with_context(|| format!("looking for the {what} cgroup {}", path.display()))
    };
    Ok(Attachment { callers: resolve(callers, "callers'")?, workers: resolve(workers, "workers'")? })
}
