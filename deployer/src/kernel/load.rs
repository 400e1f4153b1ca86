//! Loading and attaching the programs.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow};
use aya::{
    Ebpf, EbpfLoader,
    programs::{CgroupAttachMode, CgroupSock, CgroupSockAddr, Program, SockOps},
};

use super::{btf::Structs, cgroup, host, tables::Tables};

/// The programs, built from deployer-ebpf by the build script.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("DEPLOYER_EBPF_OBJECT"));

/// Where the running kernel describes its types.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Offsets that the caller rules need: global, structure, member.
const OFFSETS: [(&str, &str, &str); 6] = [
    ("OFF_TASK_MM", "task_struct", "mm"),
    ("OFF_MM_EXE_FILE", "mm_struct", "exe_file"),
    ("OFF_FILE_INODE", "file", "f_inode"),
    ("OFF_INODE_INO", "inode", "i_ino"),
    ("OFF_INODE_SB", "inode", "i_sb"),
    ("OFF_SB_DEV", "super_block", "s_dev"),
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
    fn watched(&self) -> Vec<&Path> {
        if self.workers.starts_with(&self.callers) {
            vec![&self.callers]
        } else if self.callers.starts_with(&self.workers) {
            vec![&self.workers]
        } else {
            vec![&self.callers, &self.workers]
        }
    }
}

/// The attached programs; dropping them detaches all.
pub struct Programs {
    _ebpf: Ebpf,
}

impl Programs {
    /// Loads and attaches everything, the connect hooks last: they find tables in which no service is named yet, and let
    /// all pass.
    ///
    /// # Errors
    /// When the kernel lacks something or refuses; says at which program and cgroup.
    pub fn attach(attachment: &Attachment) -> Result<(Self, Tables)> {
        let netns = host::netns_cookie().context("reading the cookie of this network namespace (Linux 5.14)")?;
        let mut ebpf = load()?;
        let tables = Tables::take(&mut ebpf, netns)?;
        for cgroup in attachment.watched() {
            sock_ops(&mut ebpf, cgroup)?;
        }
        sock_release(&mut ebpf, &attachment.callers)?;
        for name in ["getpeername4", "getpeername6", "connect4", "connect6"] {
            sock_addr(&mut ebpf, name, &attachment.callers)?;
        }
        Ok((Self { _ebpf: ebpf }, tables))
    }
}

/// Loads all programs, so that the verifier sees them, attaches none and drops them.
///
/// # Errors
/// When the kernel lacks something or refuses; says at which program.
pub fn can_load() -> Result<()> {
    let mut ebpf = load()?;
    for (name, program) in ebpf.programs_mut() {
        match program {
            Program::CgroupSockAddr(program) => program.load(),
            Program::CgroupSock(program) => program.load(),
            Program::SockOps(program) => program.load(),
            other => return Err(anyhow!("program {name} is of an unexpected type, {:?}", other.prog_type())),
        }
        .with_context(|| format!("loading program {name}"))?;
    }
    Ok(())
}

fn load() -> Result<Ebpf> {
    let btf = fs::read(VMLINUX)
        .with_context(|| format!("reading {VMLINUX}: the kernel must be built with CONFIG_DEBUG_INFO_BTF"))?;
    let structs = Structs::parse(&btf).ok_or_else(|| anyhow!("{VMLINUX} is not understood"))?;
    // In the programs 0 means unknown, and all ones an offset of 0.
    let offsets = OFFSETS.map(|(global, structure, member)| {
        let offset = structs.offset(structure, member).map_or(0, |at| if at == 0 { u64::MAX } else { u64::from(at) });
        (global, offset)
    });
    let has_set_retval = u32::from(host::version() >= (6, 1));
    let mut loader = EbpfLoader::new();
    for (global, offset) in &offsets {
        loader.override_global(global, offset, true);
    }
    loader.override_global("HAS_SET_RETVAL", &has_set_retval, true);
    loader.load(OBJECT).context(
        "creating the eBPF tables; this needs root, or CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (deployer check says more)",
    )
}

fn open(cgroup: &Path) -> Result<File> {
    File::open(cgroup).with_context(|| format!("opening cgroup {}", cgroup.display()))
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P>
where
    &'a mut P: TryFrom<&'a mut Program, Error = aya::programs::ProgramError>,
{
    let program = ebpf.program_mut(name).ok_or_else(|| anyhow!("the eBPF object has no program {name}"))?;
    program.try_into().with_context(|| format!("program {name} is of another type"))
}

fn attaching(name: &str, cgroup: &Path) -> String {
    format!("attaching program {name} to cgroup {}", cgroup.display())
}

// `CgroupAttachMode::Single` in all three: a link always allows other programs beside it, and refuses the flag.

fn sock_addr(ebpf: &mut Ebpf, name: &str, cgroup: &Path) -> Result<()> {
    let program: &mut CgroupSockAddr = program(ebpf, name)?;
    program.load().with_context(|| format!("loading program {name}"))?;
    program.attach(open(cgroup)?, CgroupAttachMode::Single).with_context(|| attaching(name, cgroup))?;
    Ok(())
}

fn sock_release(ebpf: &mut Ebpf, cgroup: &Path) -> Result<()> {
    let program: &mut CgroupSock = program(ebpf, "released")?;
    program.load().context("loading program released")?;
    program.attach(open(cgroup)?, CgroupAttachMode::Single).with_context(|| attaching("released", cgroup))?;
    Ok(())
}

fn sock_ops(ebpf: &mut Ebpf, cgroup: &Path) -> Result<()> {
    let program: &mut SockOps = program(ebpf, "sockets")?;
    if program.fd().is_err() {
        program.load().context("loading program sockets")?;
    }
    program.attach(open(cgroup)?, CgroupAttachMode::Single).with_context(|| attaching("sockets", cgroup))?;
    Ok(())
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
